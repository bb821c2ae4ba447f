"""The tables in README.md and docs/comparisons say what their own tests say."""

import re
from pathlib import Path

import pytest

from asyn2f.report import comparison
from asyn2f.report.comparison import Difference, Estimate, Row

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = ("digits_dirichlet", "digits_iid", "mnist_dirichlet", "mnist_iid")


def lines_of(text: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def published(name: str) -> tuple[dict[str, str], set[str]]:
    """Accuracy at equal time by method, as printed; and what is to be bold."""
    text = (ROOT / "docs" / "comparisons" / f"{name}.md").read_text(encoding="utf-8")
    printed, rows, found = {}, [], []
    nothing = dict.fromkeys(Row._fields, 0.0)
    for first, second, *rest in lines_of(text):
        if "±" in second:
            printed[first] = second
            mean, half = (float(x) / 100 for x in second.strip("*").split(" ± "))
            end = {"strategy": first, "at_time": Estimate(mean, half)}
            rows.append(Row(**(nothing | end)))
        elif re.fullmatch(r"[+-][\d.]+", rest[0]):
            found.append(Difference(first, second, float(rest[0]), float(rest[1])))
    assert len(rows) == 10
    assert len(found) == 45
    return printed, comparison.leaders(rows, found)


@pytest.mark.parametrize("name", COLUMNS)
def test_bold_is_what_the_paired_tests_say(name):
    printed, bold = published(name)
    shown = {method for method, cell in printed.items() if cell.startswith("**")}
    assert shown == bold


@pytest.mark.parametrize("name", COLUMNS)
def test_the_readme_repeats_the_whole_tables(name):
    printed, bold = published(name)
    column = 1 + COLUMNS.index(name)
    table = README.partition("| method | digits, Dirichlet |")[2].partition("\n\n")[0]
    rows = {line[0].lower(): line[column] for line in lines_of(table) if "±" in line[1]}
    assert rows.keys() == printed.keys()
    for method, cell in rows.items():
        assert cell.startswith("**") == (method in bold)
        shown = [float(x) for x in cell.strip("*").split(" ± ")]
        whole = [float(x) for x in printed[method].strip("*").split(" ± ")]
        assert shown == pytest.approx(whole, abs=0.051)
