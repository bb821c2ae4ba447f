"""The pages about user code: their code and commands run as they are shown."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import asyn2f
from asyn2f.strategies.requirements import require_same
from tests.programs.test_docs import blocks, printed_by
from tests.programs.test_user_code_run import program
from tests.support.programs import ROOT
from tests.unit.test_references import import_state as import_state

pytestmark = pytest.mark.processes


OWN_CODE, STORED_MODELS = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("your_own_code", "stored_models")
)
MINE, NOTEBOOK, PASSED = blocks("python", OWN_CODE)
(COMMANDS,) = blocks("sh", OWN_CODE)
REFUSED, _ = blocks("text", OWN_CODE)
(STORED,), (PRINTED,) = (blocks(kind, STORED_MODELS) for kind in ("python", "text"))


def test_the_pages_run(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    commands = [shlex.split(x) for x in COMMANDS.replace("\\\n", " ").splitlines()]
    shims = {"run": "local"}
    for _, name, *flags in commands:
        if name == "run":  # other tests keep all cores busy
            flags.append("--config.runtime.idle_priority=False")
        code, out, err = program(tmp_path, shims.get(name, name), *flags)
        assert code == 0, out + err
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    notebook, passed, stored = (
        printed_by(lambda code=code: exec(code, {}))
        for code in (NOTEBOOK, PASSED, STORED)
    )
    assert re.search(r"by asyn2f, 5 workers: 40 versions .* error best", notebook)
    assert passed == "error (3,)\n"
    assert stored == PRINTED
    loaded = [asyn2f.load_params("runs/mine", version) for version in ("newest", 40)]
    require_same(loaded[0], loaded[1], "one version")
    with pytest.raises(
        asyn2f.StoreError, match=r"version 99 is not in .*those there are"
    ):
        asyn2f.load_params("runs/mine", 99)
    with pytest.raises(asyn2f.StoreError, match=r"allowed: a number, best, newest"):
        asyn2f.load_params("runs/mine", "last")
    with pytest.raises(asyn2f.StoreError, match=r"params/v: found none, expected"):
        asyn2f.load_params(
            "runs/mine", like={"params": {"v": loaded[0]["params"]["b"]}}
        )
    with pytest.raises(asyn2f.RunDirError):
        asyn2f.load_params("runs")
    sys.modules.pop("mine", None)
    wrong = MINE.replace(
        "return jnp.mean(errors(params, batch)),", "return errors(params, batch),"
    )
    Path("mine.py").write_text(wrong, encoding="utf-8")
    with pytest.raises(asyn2f.ConfigError) as caught:
        asyn2f.simulate(asyn2f.default_config(task__factory="mine:make_task"))
    assert f"error: {caught.value}\n" == REFUSED
