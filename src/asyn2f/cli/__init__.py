"""The programs behind the console command `asyn2f`."""
