"""What a property of a strategy requires of values, and of the compiler."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from asyn2f.errors import ContractError


def require(condition: Any, problem: str) -> None:
    """Raises ContractError unless the condition holds."""
    if not condition:
        raise ContractError(problem)


def require_same(one: Any, other: Any, problem: str, rtol: float = 0.0) -> None:
    """Raises ContractError unless two trees have the same numbers."""
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        x, y = (np.asarray(leaf).astype(np.float64) for leaf in (left, right))
        close = np.allclose(x, y, rtol=rtol, atol=rtol, equal_nan=True)
        require(x.shape == y.shape and close, f"{problem}: {x} and {y}")


def require_layout(found: Any, expected: Any, problem: str) -> None:
    """Raises ContractError unless two trees have one structure, shapes and dtypes."""
    here, there = (str(jax.tree.structure(tree)) for tree in (found, expected))
    require(here == there, f"{problem}: {here}, allowed: {there}")
    pairs, _ = jax.tree_util.tree_flatten_with_path(expected)
    for (path, wanted), leaf in zip(pairs, jax.tree.leaves(found), strict=True):
        texts = [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (leaf, wanted)]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        require(
            texts[0] == texts[1],
            f"{problem}: {name} is {texts[0]}, allowed: {texts[1]}",
        )


def require_finite(tree: Any, problem: str) -> None:
    """Raises ContractError if a number is not finite."""
    for leaf in jax.tree.leaves(tree):
        x = np.asarray(leaf).astype(np.float64)
        require(np.all(np.isfinite(x)), f"{problem}: {x}")


_PREFIX = "/jax/core/compile/"  # tracing, lowering and compiling, whatever their names
_events: list[str] = []


@functools.cache  # once, for good: not every version of JAX can remove a listener
def _listen() -> None:
    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(_PREFIX):
            _events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)


@contextlib.contextmanager
def nothing_compiles() -> Iterator[None]:
    """Raises ContractError if anything inside it is traced, lowered or compiled.

    It also compiles something of its own afterwards and insists on seeing that, so it
    cannot go blind when JAX renames its events.
    """
    _listen()
    before = len(_events)
    yield
    seen = _events[before:]
    jax.jit(lambda: 0)()
    require(len(_events) > before + len(seen), "JAX no longer reports compilations")
    require(not seen, f"compiled: {seen}")
