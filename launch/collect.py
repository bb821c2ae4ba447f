"""`asyn2f collect`: see `asyn2f.cli.collect`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("collect")
