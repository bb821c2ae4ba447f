"""`asyn2f verify`: see `asyn2f.cli.verify`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("verify")
