"""Counts what JAX compiles: the checks that a second call compiles nothing."""

import contextlib
from collections.abc import Iterator

import jax
import jax.monitoring

_PREFIX = "/jax/core/compile/"  # tracing, lowering and compiling, whatever their names

_events: list[str] = []


def _note(event: str, duration_s: float, **_: object) -> None:
    if event.startswith(_PREFIX):
        _events.append(event)


# Once, for good: not every version of JAX can take a listener out again.
jax.monitoring.register_event_duration_secs_listener(_note)


@contextlib.contextmanager
def nothing_compiles() -> Iterator[None]:
    """Fails if anything inside it is traced, lowered or compiled.

    It also compiles something of its own afterwards and insists on seeing that, so it
    cannot go blind when JAX renames its events.
    """
    before = len(_events)
    yield
    seen = _events[before:]
    jax.jit(lambda: 0)()
    assert len(_events) > before + len(seen), "JAX no longer reports compilations"
    assert not seen, f"compiled: {seen}"
