"""`python -O`, which containers set, leaves asserts out; nothing else is missing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyn2f.serialization import params_sha256
from tests.support.executions import order_and_result
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
FILES = [
    p for name in ("src", "launch", "configs") for p in (ROOT / name).rglob("*.py")
]
HAS_EFFECTS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


@pytest.mark.parametrize(
    "path", sorted(FILES), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_assert_has_an_effect(path):
    """Nor calls anything at all: of a call nobody can see what it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            found = [x for x in ast.walk(node.test) if isinstance(x, HAS_EFFECTS)]
            assert not found, f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Name):
            assert node.id not in ("__debug__", "AssertionError"), f"{node.lineno}"


def test_a_run_without_asserts_has_the_same_order_and_the_same_bits():
    code = "from tests.contracts.test_optimised import told\nprint(__debug__, *told())"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", *told()]


def told() -> list[str]:
    """Of a small run: events, and the digest of its last version."""
    _, order, result = order_and_result()
    return [str(len(order.kind)), params_sha256(result.state.model.params)]
