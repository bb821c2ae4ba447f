"""`asyn2f server`: see `asyn2f.cli.server`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("server")
