"""`asyn2f worker`: see `asyn2f.cli.worker`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("worker")
