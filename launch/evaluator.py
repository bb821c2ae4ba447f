"""`asyn2f evaluator`: see `asyn2f.cli.evaluator`."""

from asyn2f.cli.main import start

if __name__ == "__main__":
    start("evaluator")
