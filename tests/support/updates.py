"""The scalars of updates, as tests make them up."""

from typing import Any

from asyn2f.types import UpdateInfo


def update_info(
    base: int = 0, start: int | None = None, step: int = 1, **changes: float
) -> UpdateInfo[int, float]:
    """Scalars that a server accepts of a worker with ten examples."""
    floats = {"num_examples": 10.0, "loss": 0.5, "quality": 1.0, "metric": 0.0}
    floats |= changes
    return UpdateInfo(base, base if start is None else start, step, **floats)


def replaced(record: Any, **changes: Any) -> Any:
    """A record with other fields; those of its `info` are given like its own."""
    own = {name: changes[name] for name in changes if name in record._fields}
    inner = {name: changes[name] for name in changes if name not in own}
    if inner:
        own["info"] = record.info._replace(**inner)
    return record._replace(**own)
