"""`python -m tests.bench [NAME ...]`: all benchmarks, or those named."""

import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("[a-z]*.py"))


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(
                f"error: unknown benchmark {name!r}, there are: {', '.join(NAMES)}"
            )
        for result in importlib.import_module(f"tests.bench.{name}").measure():
            print(json.dumps({"bench": name, **result}), flush=True)


main()
