"""Nested dicts by dotted keys."""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
"""A config as plain nested dicts, whole: every key of `asyn2f.config.default`."""


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values.

    >>> flatten({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, "to_dict"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nested(flat: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The inverse of `flatten`; keys may have another separator than the dot.

    >>> nested({"a": 1, "b.c": 2})
    {'a': 1, 'b': {'c': 2}}
    """
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split(separator)
        inner = config
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return config


def changed(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config with dotted keys changed.

    >>> changed({"seed": 1, "task": {"alpha": 0.5}}, {"task.alpha": 0.1})
    {'seed': 1, 'task': {'alpha': 0.1}}
    """
    return nested(flatten(config) | {**changes})
