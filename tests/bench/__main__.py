"""`python -m tests.bench [NAME ...]`: all benchmarks, or those named.

Each figure is a line of JSON when it is there; figures that are held against a limit
come once more as a table in the end. With `--keep` they replace the last ones in
results.json, which is under version control.
"""

import argparse
import datetime
import importlib
import json
from pathlib import Path

from tests.bench.figures import Figure, as_json, keep, table

HERE = Path(__file__).parent
NAMES = sorted({path.stem for path in HERE.glob("[a-z]*.py")} - {"figures"})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures all benchmarks, or those named; each says in its "
        "docstring what and how.",
        epilog=f"Benchmarks: {', '.join(NAMES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--keep", action="store_true", help="replace the last figures in results.json"
    )
    asked = parser.parse_args()
    for name in asked.names:
        if name not in NAMES:
            parser.error(f"found {name!r}, there are: {', '.join(NAMES)}")
    date = datetime.date.today().isoformat()
    found: list[Figure] = []
    for name in asked.names or NAMES:
        own: list[Figure] = []
        for result in importlib.import_module(f"tests.bench.{name}").measure():
            said = result
            if isinstance(result, Figure):
                own.append(result)
                said = as_json(result)
            print(json.dumps({"bench": name, **said}), flush=True)
        if own and asked.keep:
            keep(name, own, date)
        found += own
    if found:
        print(table(found))


if __name__ == "__main__":
    main()
