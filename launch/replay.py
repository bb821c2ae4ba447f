"""`asyn2f replay`: see `asyn2f.cli.replay`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("replay")
