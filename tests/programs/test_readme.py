"""README and docs are true: commands parse, links resolve, Python blocks run."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ml_collections import ConfigDict

from asyn2f.api.simulation import order_of_config
from asyn2f.cli.main import COMMANDS
from asyn2f.config import build, config_file, default, schema
from asyn2f.config.user_code import is_argument
from asyn2f.timing import Timing
from tests.contracts.test_layers import ARROWS
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *DOCS]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
README = TEXTS["README.md"]
# Fields of a strategy's timing that are no settings of a config.
OF_STRATEGIES = {f"timing.{field.name}" for field in dataclasses.fields(Timing)}
DECISIONS = (ROOT / "BUILD_NOTES.md").read_text("utf-8")


class Shown(NamedTuple):
    """A command that a page shows."""

    page: str
    words: list[str]


def blocks(text: str, kind: str) -> list[str]:
    """The contents of the fences of this kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.S | re.M)


def shown_in(page: str) -> list[Shown]:
    """The commands in indented blocks, fences and inline code of a page."""
    joined = TEXTS[page].replace("\\\n", " ")
    # Of a loop in the shell: a counter, and a list.
    joined = re.sub(r'"\$\w+"', "()", re.sub(r"\$\(\(.*?\)\)", "1", joined))
    fenced = "".join(blocks(joined, "sh")).replace("\n", "\n    ")
    starts = r"(?:asyn2f [a-z]|python -m |make )"
    text = f"{joined}\n    {fenced}"
    lines = re.findall(rf"^ {{4}}({starts}.*?)(?: {{4}}#.*)?$", text, re.M)
    lines += re.findall(rf"`({starts}[^`\n]*)`", joined)
    return [Shown(page, shlex.split(line)) for line in lines if "..." not in line]


SHOWN = [shown for page in TEXTS for shown in shown_in(page)]
OURS = [shown for shown in SHOWN if shown.words[0] == "asyn2f"]


def names(shown: Shown) -> str:
    return f"{Path(shown.page).stem}: {' '.join(shown.words)}"


def flags_of(words: list[str]) -> dict[str, str]:
    """The flags of a command, "" for those without a value."""
    return dict(word.removeprefix("--").partition("=")[::2] for word in words[2:])


def setting(key: str) -> object:
    """The default of a setting; KeyError where there is none."""
    # Those of the guides; see test_docs.py and test_user_code_docs.py.
    if key.startswith("strategy.agreement") or is_argument(key):
        return 0.0
    value: object = default.get_config()
    for part in key.split("."):
        assert isinstance(value, ConfigDict), key
        value = value[part]
    return value


def config_of(words: list[str]) -> ConfigDict:
    """The config that a command runs with."""
    flags = flags_of(words)
    config = config_file.load(flags.get("config", "digits").replace("DIR", "/tmp"))
    for name, value in flags.items():
        if name.startswith("config."):
            key = name.removeprefix("config.")
            kind = type(setting(key))
            found = value if kind is str else ast.literal_eval(value)
            if kind not in (str, type(None)) and not is_argument(key):
                found = kind(found)
            config = ConfigDict(schema.changed(config, {key: found}))
    return config


# ------------------------------------------------------------------ every page


def test_there_are_commands():
    assert {shown.words[1] for shown in OURS} == COMMANDS.keys()


@pytest.mark.parametrize("shown", OURS, ids=names)
def test_a_command_has_its_flags(shown):
    command = COMMANDS[shown.words[1]]
    for name, value in flags_of(shown.words).items():
        if name.startswith("config."):
            setting(name.removeprefix("config."))
        elif not command.argument or name == "config":
            assert name in command.flags.split()
        if name == "config" and ".py" in value:
            assert (ROOT / value.partition(":")[0]).is_file() or value[:4] == "mine"


@pytest.mark.parametrize(
    "shown",
    [s for s in OURS if s.words[1] in ("run", "simulate", "compare")],
    ids=names,
)
def test_the_config_of_a_command_is_valid(shown):
    text = " ".join(shown.words)
    # See test_docs.py, test_user_code_docs.py and test_optimizers_page.py.
    if "agreement" not in text and "mine" not in text:
        build.check(schema.plain(config_of(shown.words)))


@pytest.mark.parametrize(
    "shown", [s for s in SHOWN if s.words[0] != "asyn2f"], ids=names
)
def test_a_module_or_target_exists(shown):
    if shown.words[0] == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        targets = [word for word in shown.words[1:] if "=" not in word]
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    else:
        assert importlib.util.find_spec(shown.words[2].replace("launch.X", "launch"))


@pytest.mark.parametrize("page", TEXTS)
def test_settings_that_a_page_names_exist(page):
    sections = "|".join(
        k for k, v in default.get_config().items() if type(v) is not int
    )
    pattern = rf"`(?:--)?(?:config\.)?((?:{sections})\.[a-z0-9_.]*[a-z0-9_])[`= ]"
    for key in re.findall(pattern, TEXTS[page]):
        is_file = key.endswith((".py", ".md", ".json", ".jsonl", ".html"))
        is_module = (ROOT / f"src/asyn2f/{key.replace('.', '/')}.py").is_file()
        if not is_file and not is_module and key not in OF_STRATEGIES:
            setting(key)
    for key in re.findall(r"`(?:--)?config\.([a-z0-9_.]*[a-z0-9_])[`= ]", TEXTS[page]):
        if key not in ("json", "md"):
            setting(key)


@pytest.mark.parametrize("page", [*TEXTS, "BUILD_NOTES.md", "CHANGELOG.md"])
def test_files_that_a_page_names_exist(page):
    text = TEXTS.get(page) or (ROOT / page).read_text("utf-8")
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|json))`", text):
        folders = ["", "src/asyn2f/", "src/asyn2f/strategies/"]
        is_new = path.endswith(("_agreement.py", "agreement.json", "_NAME.py"))
        assert is_new or any((ROOT / folder / path).is_file() for folder in folders), (
            path
        )
    for folder in re.findall(r"`((?:tests|configs|docs|src)/[\w/]*[\w])/?`", text):
        assert (ROOT / folder).exists(), folder
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}


@pytest.mark.parametrize("page", [*TEXTS, "BUILD_NOTES.md", "CHANGELOG.md"])
def test_links_resolve(page):
    text = TEXTS.get(page) or (ROOT / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


def test_contributing_draws_the_arrows_of_the_layers():
    block = re.search(r"```text\n(.*?)```", TEXTS["CONTRIBUTING.md"], re.S)[1]
    lines = re.sub(r"\n +", " ", block).strip().splitlines()
    drawn = {k.strip(): v.split() for k, v in (line.split("->") for line in lines)}
    wanted = [f"{room:<13} -> {to}" for room, to in ARROWS.items() if to]
    told = f"write into CONTRIBUTING.md:\n{chr(10).join(wanted)}"
    assert drawn == {room: to.split() for room, to in ARROWS.items() if to}, told


def test_decisions_are_dated_and_have_reasons():
    """Sections between the head and the table of the audit."""
    body = DECISIONS.partition("## Accepted limitations")[0]
    for heading in re.findall(r"^### (.*)$", body, re.M):
        assert re.search(r"\(2026-\d\d-\d\d(, [^)]*)?\)$", heading), heading


# ------------------------------------------------------------------ the README


def test_the_readme_is_short_and_begins_with_python():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert lines.index("```python") < 40


MINE = blocks(README, "python")[0]


def test_the_first_example_prints_what_the_readme_shows():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(MINE, {"__name__": "__main__"})
    here, there = (x.splitlines() for x in (out.getvalue(), blocks(README, "text")[0]))
    assert len(MINE.splitlines()) <= 26
    for one, other in zip(here, there, strict=True):
        order, accuracy = one.rsplit(maxsplit=1)
        order_there, accuracy_there = other.rsplit(maxsplit=1)
        assert order == order_there
        # Its bits depend on the processor.
        assert float(accuracy) == pytest.approx(float(accuracy_there), abs=0.05)


def test_the_example_of_simulate_is_long_enough_to_learn_something():
    (words,) = [s.words for s in OURS if "--workdir=runs/simulated" in s.words]
    config = schema.plain(config_of(words))
    order = order_of_config(config, build.build_experiment(config))
    told = re.search(
        r"ends after ([\d.]+) of them, at version (\d+)",
        TEXTS["docs/simulation.md"].replace("\n", " "),
    )
    assert order.end_s - order.start_s == pytest.approx(float(told[1]), abs=0.05)
    assert int(order.version.max()) == int(told[2])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder in which the README's run has been made, with few versions."""
    folder = tmp_path_factory.mktemp("readme")
    (words,) = [s.words for s in OURS if s.page == "README.md" and s.words[1] == "run"]
    short = [re.sub(r"(max_versions)=\d+", r"\1=45", word) for word in words]
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    fast = ["--config.worker_speeds=0,", "--config.runtime.idle_priority=False"]
    check(folder, [*short, *fast])
    shutil.copytree(folder / "runs/first", folder / "copied")
    return folder


def check(folder: Path, words: list[str], code: int = 0) -> str:
    """Runs a command in a folder and returns its standard output."""
    found = subprocess.run(
        [sys.executable, "-c", "from asyn2f.cli.main import main; main()", *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert found.returncode == code, found.stderr
    return found.stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    "shown",
    [s for s in OURS if s.page == "README.md" and s.words[1] in ("replay", "verify")],
    ids=names,
)
def test_the_commands_after_the_run_work(run_folder, shown):
    assert check(run_folder, shown.words)


@pytest.mark.processes
def test_the_python_of_the_what_if_works(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    names: dict[str, object] = {}
    (block,) = blocks(TEXTS["docs/simulation.md"], "python")
    exec(block.replace("runs/demo", "runs/first"), names)
    assert int(names["again"].order.version.max()) == 45


@pytest.mark.processes
@pytest.mark.parametrize(
    "command",
    [
        "asyn2f report --run=runs/first",
        "asyn2f keys --folder=keys --workers=2",
        "asyn2f simulate --workdir=runs/s --config.stop.max_versions=2",
        "asyn2f compare --workdir=runs/c --strategies=fedavg --seeds=1 "
        "--config.stop.max_versions=2 --config.stop.max_time_s=5 --jobs=1",
        "asyn2f collect --run=runs/first --from=copied",
    ],
)
def test_other_commands_run(run_folder, command):
    check(run_folder, shlex.split(command))
