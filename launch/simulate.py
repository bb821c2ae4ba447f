"""`asyn2f simulate`: see `asyn2f.cli.simulate`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("simulate")
