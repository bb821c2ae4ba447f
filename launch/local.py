"""`asyn2f run`: see `asyn2f.cli.local`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("run")
