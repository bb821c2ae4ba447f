"""Writes the report of a run, finished or not, as one page of HTML.

python -m launch.report --workdir=runs/digits
"""

from pathlib import Path

from asyn2f.report.html import write_report
from launch import program


def main() -> int:
    folder = Path(program.required(program.WORKDIR))
    try:
        print(write_report(folder))
    except ValueError as error:
        program.fail(str(error))
    except OSError as error:
        program.fail(f"cannot write the report: {error}")
    return 0


if __name__ == "__main__":
    program.run(main)
