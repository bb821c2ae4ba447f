"""`asyn2f keys`: see `asyn2f.cli.keys`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("keys")
