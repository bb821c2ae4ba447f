"""`asyn2f report`: see `asyn2f.cli.report`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("report")
