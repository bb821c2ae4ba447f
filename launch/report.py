"""Writes the report of a run, finished or not, as one page of HTML.

    python -m launch.report --run=runs/digits

The page is report.html in the folder of the run.
"""

from asyn2f.report.html import write_report
from launch import program

program.takes("run")


def main() -> int:
    folder = program.run_folder()
    try:
        print(write_report(folder))
    except ValueError as error:
        program.fail(str(error))
    except OSError as error:
        program.fail(f"cannot write the report: {error}")
    return 0


if __name__ == "__main__":
    program.run(main)
