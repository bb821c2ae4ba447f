"""`asyn2f quality`: see `asyn2f.cli.quality`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("quality")
