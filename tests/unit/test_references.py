"""User-defined functions that a config names: found, imported, digested, called."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest

from asyn2f import Range
from asyn2f.config import references
from asyn2f.config.arguments import as_arguments, of_signature
from asyn2f.config.sources import sources_of
from asyn2f.errors import ConfigError
from tests.support.user_code import write_package


@pytest.fixture(autouse=True)
def import_state(monkeypatch, tmp_path):
    """Modules and paths that a test imports from are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if not name.startswith(("asyn2f", "jax")):
            del sys.modules[name]


def digest(folder: Path, reference: str = "mypackage.mine:make_task") -> str:
    return references.find(reference, str(folder)).digest


# ------------------------------------------------------------- finding


def test_a_function_in_a_package_is_found_where_code_path_says(tmp_path):
    write_package(tmp_path / "a")
    found = references.find("mypackage.mine:make_task", str(tmp_path / "a"))
    assert found.function.__name__ == "make_task"
    assert (found.label, found.module) == ("mypackage.mine:make_task", "mypackage.mine")
    assert found.folder == tmp_path / "a"
    assert found.reference == "mypackage.mine:make_task"
    again = references.find("mypackage.mine:make_task", str(tmp_path / "a"))
    assert again.function is found.function


def test_a_function_is_found_in_a_file_and_in_the_working_directory(tmp_path):
    Path("own dir").mkdir()
    Path("own dir", "3-mine.py").write_text("def f(): return 7\n")
    Path("mine.py").write_text("def f(): return 8\n")
    in_file = references.find("own dir/3-mine.py:f")
    assert in_file.function() == 7
    assert in_file.reference == f"{tmp_path}/own dir/3-mine.py:f"
    assert (in_file.label, in_file.folder) == ("3-mine:f", None)
    assert references.find("mine:f").function() == 8
    assert references.find("mine:f").folder == tmp_path
    assert references.find("3-mine.py:f", str(tmp_path / "own dir")).function() == 7


def test_a_folder_without_init_is_a_package_too(tmp_path):
    Path("loose").mkdir()
    Path("loose", "mine.py").write_text("def f(): return 9\n")
    assert references.resolve("loose.mine:f")() == 9


def test_an_installed_function_needs_no_folder():
    found = references.find("optax:sgd")
    assert found.folder is None
    assert {name.partition(".")[0] for name in found.sources.files} == {"optax"}


def test_a_module_in_code_path_comes_before_an_installed_one(tmp_path):
    Path("zipp.py").write_text("def f(): return 'mine'\n")
    sys.modules.pop("zipp", None)
    assert references.resolve("zipp:f", str(tmp_path))() == "mine"


def test_a_module_that_is_imported_from_elsewhere_is_not_taken_for_ones_own(tmp_path):
    Path("textwrap.py").write_text("def f(): return 1\n")
    with pytest.raises(ConfigError, match=r"the module textwrap of .* hides .*rename"):
        references.resolve("textwrap:f", str(tmp_path))


BAD = {
    "form": ("mine", {}, "found 'mine', allowed: MODULE:FUNCTION"),
    "no module": ("nowhere:f", {}, r"no module nowhere in .*config\.code_path"),
    "no submodule": ("optax.nowhere:f", {}, "no module optax.nowhere in .*optax"),
    "no file": ("nowhere.py:f", {}, "nowhere.py, which does not exist in"),
    "folder": ("./here/:f", {"here/x.py": ""}, "here.*which is a folder"),
    "typo": (
        "mine:make_tsk",
        {"mine.py": "def make_task(): pass\n"},
        "no make_tsk in .*mine.py; did you mean make_task",
    ),
    "other": ("mine:f", {"mine.py": "def g(): pass\n"}, "it has g$"),
    "empty": ("mine:f", {"mine.py": "x = 1\n"}, "no function at all"),
    "import": (
        "mine:f",
        {"mine.py": "import json\nimport no_such\n"},
        "mine cannot be imported: mine.py, line 2: ModuleNotFoundError.*no_such",
    ),
    "syntax": ("mine:f", {"mine.py": "def f(:\n"}, "mine.py, line 1: SyntaxError"),
    "exit": ("mine:f", {"mine.py": "raise SystemExit(3)\n"}, "SystemExit: 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_names_no_function_is_one_line(name):
    reference, files, words = BAD[name]
    for path, text in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        references.find(reference, key="config.task.factory")
    assert str(caught.value).startswith("config.task.factory: ")
    assert "\n" not in str(caught.value)


def test_an_edited_module_is_imported_anew(tmp_path):
    write_package(tmp_path)
    first = references.find("mypackage.mine:make_task", str(tmp_path))
    inner = tmp_path / "mypackage" / "inner.py"
    inner.write_text("def rows(*_): return 'edited'\n")
    os.utime(inner, (1, 1))
    second = references.find("mypackage.mine:make_task", str(tmp_path))
    assert second.function is not first.function
    assert second.function.__globals__["rows"]() == "edited"
    assert second.digest != first.digest


def test_two_functions_of_a_package_are_of_one_import(tmp_path):
    write_package(tmp_path)
    for name in ("inner:rows", "mine:agreement", "mine:make_task"):
        references.find(f"mypackage.{name}", str(tmp_path))
    found = [
        references.resolve(f"mypackage.{name}", str(tmp_path))
        for name in ("mine:agreement", "mine:make_task")
    ]
    assert found[0].__globals__ is found[1].__globals__
    rows = references.resolve("mypackage.inner:rows", str(tmp_path))
    assert found[0].__globals__["rows"] is rows


# ------------------------------------------------------------- digests


def test_a_digest_covers_what_a_module_imports_from_its_package_and_folder(tmp_path):
    write_package(tmp_path)
    (tmp_path / "unused.py").write_text("x = 1\n")
    found = sources_of("mypackage.mine", tmp_path / "mypackage" / "mine.py")
    names = {"mypackage", "mypackage.mine", "mypackage.inner", "beside"}
    assert found.files.keys() == names


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import p.a", {"p.a"}),
        ("import p.a as b, json", {"p.a"}),
        ("from p import a", {"p.a"}),
        ("from . import a", {"p.a"}),
        ("from .a import x", {"p.a"}),
        ("from .q import *", {"p.q"}),
        ("from .q.r import x", {"p.q", "p.q.r"}),
        ("from ..top import x", {"top"}),
        ("def f():\n    from .a import x", {"p.a"}),
        ("import top", {"top"}),
        ("import numpy, os.path", set()),
        ("from .nothing import x", set()),
    ],
)
def test_imports_are_followed(tmp_path, line, names):
    for path in ("top.py", "p/__init__.py", "p/a.py", "p/q/__init__.py", "p/q/r.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "p" / "mine.py").write_text(line + "\n")
    found = sources_of("p.mine", tmp_path / "p" / "mine.py")
    assert found.files.keys() == {"p", "p.mine"} | names


def test_a_digest_does_not_depend_on_the_folder_or_the_ends_of_lines(tmp_path):
    write_package(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    mine = tmp_path / "b" / "c" / "mypackage" / "mine.py"
    mine.write_bytes(mine.read_bytes().replace(b"\n", b"\r\n"))
    assert digest(tmp_path / "a") == digest(tmp_path / "b" / "c")


@pytest.mark.parametrize("file", ["mypackage/inner.py", "beside.py"])
def test_a_digest_changes_with_every_file(tmp_path, file):
    write_package(tmp_path)
    before = digest(tmp_path)
    with open(tmp_path / file, "a") as text:
        text.write("# edited\n")
    assert digest(tmp_path) != before


# ------------------------------------------------------------- arguments


def documented(
    *,
    width: Annotated[int, Range(at_least=1)] = 8,
    rate: float = 1,
    kind: Literal["a", "b"] = "a",
    order: Literal[1, 2] = 2,
    sizes: tuple[int, ...] = (3, 4),
    file: Path = Path("x.csv"),
    plain=True,
    seed: int = 0,
):
    """Makes.

    Args:
      width: of a layer.
      rate, kind: both, over
        two lines.
    """


def test_arguments_are_settings_of_the_signature():
    found = of_signature(documented, ("seed",))
    words = {name: (each.default, each.in_words()) for name, each in found.items()}
    assert words == {
        "width": (8, "at least 1"),
        "rate": (1.0, "a number"),
        "kind": ("a", "one of a, b"),
        "order": (2, "one of 1, 2"),
        "sizes": ((3, 4), "a list, each an integer"),
        "file": ("x.csv", "a string"),
        "plain": (True, "True or False"),
    }
    assert type(found["rate"].default) is float
    assert found["kind"].doc == "both, over two lines"
    assert found["file"].is_path("x.csv")
    assert found["width"].problem_of(0) == "found 0, allowed: at least 1"
    assert found["order"].problem_of(3)
    given = as_arguments(found, {"sizes": [5], "file": "y"})
    assert (given["sizes"], given["file"], given["width"]) == ((5,), Path("y"), 8)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, "argument x has no default"),
        (lambda *x: x, "arguments that have a name"),
        (lambda **x: x, "arguments that have a name"),
        (lambda x=None: x, "argument x: found annotation .*NoneType"),
        (lambda x={}: x, "found annotation .*dict.*allowed: float, int"),
    ],
)
def test_an_argument_that_cannot_be_a_key_is_refused(function, words):
    with pytest.raises(TypeError, match=words):
        of_signature(function)


def test_arguments_of_a_library_are_those_that_can_be_keys():
    found = of_signature(references.resolve("optax:adamw"), strict=False)
    assert found["b1"].default == 0.9
    assert "learning_rate" not in found
    assert "mask" not in found
