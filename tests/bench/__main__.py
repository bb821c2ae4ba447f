"""`python -m tests.bench [NAME ...]`: all benchmarks, or those named.

Each figure is a line of JSON when it is there; figures that are held against a limit
come once more as a table in the end, and replace the last ones in results.json.
"""

import datetime
import importlib
import json
import sys
from pathlib import Path

from tests.bench.figures import Figure, as_json, keep, table

HERE = Path(__file__).parent
NAMES = sorted({path.stem for path in HERE.glob("[a-z]*.py")} - {"figures"})


def main() -> None:
    date = datetime.date.today().isoformat()
    found: list[Figure] = []
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(f"{__doc__}\nBenchmarks: {', '.join(NAMES)}")
        return
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(
                f"error: unknown benchmark {name!r}, there are: {', '.join(NAMES)}"
            )
        own: list[Figure] = []
        for result in importlib.import_module(f"tests.bench.{name}").measure():
            said = result
            if isinstance(result, Figure):
                own.append(result)
                said = as_json(result)
            print(json.dumps({"bench": name, **said}), flush=True)
        if own:
            keep(name, own, date)
        found += own
    if found:
        print(table(found))


main()
