"""Writes the report of a run, finished or not, as one page of HTML.

    python -m launch.report --run=runs/digits

The page is report.html in the folder of the run.
"""

from asyn2f.cli import app
from asyn2f.report.run_page import write_report

app.takes("run")


def main() -> int:
    folder = app.run_folder()
    try:
        print(write_report(folder))
    except ValueError as error:
        app.fail(str(error))
    except OSError as error:
        app.fail(f"cannot write the report: {error}")
    return 0
