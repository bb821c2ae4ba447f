"""`asyn2f compare`: see `asyn2f.cli.compare`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("compare")
