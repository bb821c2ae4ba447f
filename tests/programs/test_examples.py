"""Every example learns, and its page shows its command."""

import re
import sys
from pathlib import Path

import pytest

import asyn2f

ROOT = Path(__file__).parents[2]
FOLDERS = [path for path in sorted((ROOT / "examples").iterdir()) if path.is_dir()]
PAGE = (ROOT / "docs" / "examples.md").read_text("utf-8")
WORKERS = {"hospitals": 4, "private_silos": 3}
DATA = {"private_silos": "silos/{worker}.npz"}
SHARE = {
    "kept_statistics": ("!**/BatchNorm_*/**",),
    "personal_heads": ("params/body_*/**",),
}

each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


@each
def test_an_example_is_short_and_has_a_section_of_its_page(folder):
    lines = [len(path.read_text("utf-8").splitlines()) for path in folder.glob("*.py")]
    assert 0 < sum(lines) <= 80
    assert f"examples/{folder.name}/{folder.name}.py:make_task" in PAGE
    assert re.search(rf"^## .*`{folder.name}`$", PAGE, re.M)


@each
def test_an_example_learns(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for script in folder.glob("make_*.py"):
        monkeypatch.setattr(sys, "argv", [str(script)])
        exec(script.read_text("utf-8"), {"__name__": "__main__"})
    config = asyn2f.default_config(
        workers=WORKERS.get(folder.name, 5),
        task__factory=f"{folder}/{folder.name}.py:make_task",
        training__learning_rate=0.05,
        share=SHARE.get(folder.name, ()),
        stop__max_versions=5,
    )
    run = asyn2f.simulate(config, data=DATA.get(folder.name))
    metric = run.experiment.task.metric
    before, after = (run.scores[node][metric.name] for node in (0, 5))
    assert metric.is_better(after, than=before)
