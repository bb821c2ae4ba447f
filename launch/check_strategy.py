"""`asyn2f check-strategy`: see `asyn2f.cli.tools`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("check-strategy")
