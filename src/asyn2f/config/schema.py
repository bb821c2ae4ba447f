"""Every key of a config: its setting, and the checks that follow from it."""

import contextlib
import difflib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from asyn2f import settings, strategies
from asyn2f.config.renamed import new_name, new_value
from asyn2f.config.task import TaskSettings
from asyn2f.errors import ConfigError
from asyn2f.kernels.codecs import Coding
from asyn2f.kernels.guards import Guards
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.settings import Setting, setting
from asyn2f.sim.settings import SimSettings
from asyn2f.store.base import StoreSettings
from asyn2f.strategies import BUILDERS
from asyn2f.timing import Stop, Timing
from asyn2f.training.settings import Training

Config = Mapping[str, Any]
"""A config as plain nested dicts, whole: every key of `asyn2f.config.default`."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The whole experiment."""

    seed: int = setting(
        0,
        "of everything that is drawn: split, initial model, batches",
        allowed="0 to 2**64 - 1",
        holds=lambda x: 0 <= x < 2**64,
    )
    workers: int = setting(
        5, "one for each shard of the data", unit="workers", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class StrategyChoice:
    """The method. Settings of other methods than the chosen one have no effect."""

    name: str = setting("asyn2f", "the method", options=BUILDERS)


SECTIONS: dict[str, tuple[type, ...]] = {
    "": (RunSettings,),
    "task": (TaskSettings,),
    "training": (Training,),
    "strategy": (StrategyChoice,),
    "timing": (Timing,),
    "stop": (Stop,),
    "guards": (Guards,),
    "wire": (Coding,),
    "runtime": (RuntimeSettings, StoreSettings),
    "sim": (SimSettings,),
}
"""The dataclasses whose settings are the keys of each section; "" is the root."""


def all_settings() -> dict[str, Setting]:
    """The setting of every key, by dotted key, those at the root first. Made anew each
    time, as a config file may add a strategy."""
    root: dict[str, Setting] = {}
    rest: dict[str, Setting] = {}
    for section, kinds in SECTIONS.items():
        of_section = [settings.settings_of(kind).items() for kind in kinds]
        for name, each in itertools.chain(*of_section):
            keys = root if each.at_root or not section else rest
            keys[name if keys is root else f"{section}.{name}"] = each
        if section == "strategy":
            rest |= _of_strategies()
    return root | rest


def _of_strategies() -> dict[str, Setting]:
    """What the builders take. They check the ranges themselves."""
    return {
        f"strategy.{name}.{key}": settings.of_annotation(
            kind, default=default, holds=lambda _: True, doc=docs.get(key, "")
        )
        for name in BUILDERS
        for docs in [strategies.documentation(name)]
        for key, (kind, default) in strategies.parameters(name).items()
    }


def section(config: Config, kind: type[T]) -> T:
    """The settings of one dataclass, as a config has them.

    >>> from asyn2f.config.default import get_config
    >>> section(get_config(), Stop).max_versions
    150
    """
    return kind(**values_of(config, kind))


def values_of(config: Config, kind: type) -> dict[str, Any]:
    """As `section`, by name: for a dataclass that has further fields."""
    of_section = _section_of(kind)
    found = {}
    for name, each in settings.settings_of(kind).items():
        is_at_root = each.at_root or not of_section
        value = (config if is_at_root else config[of_section])[name]
        found[name] = tuple(value) if each.kind is tuple else value
    return found


def keyed(part: Any) -> dict[str, Any]:
    """The inverse of `section`: the values of a dataclass by dotted key.

    >>> keyed(Stop(max_versions=3))["stop.max_versions"]
    3
    """
    kind: Any = type(part)
    prefix = _section_of(kind)
    return {
        name if each.at_root or not prefix else f"{prefix}.{name}": getattr(part, name)
        for name, each in settings.settings_of(kind).items()
    }


def _section_of(kind: type) -> str:
    return next(name for name, kinds in SECTIONS.items() if kind in kinds)


def strategy_of(config: Config) -> tuple[str, dict[str, Any]]:
    """The name of the strategy, and the parameters of its builder."""
    name = section(config, StrategyChoice).name
    return name, dict(config["strategy"].get(name, {}))


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


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`.

    >>> nested({"a": 1, "b.c": 2})
    {'a': 1, 'b': {'c': 2}}
    """
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split(".")
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


def plain(config: Any) -> dict[str, Any]:
    """The config as nested dicts of Python's own values: a ConfigDict, numbers and
    arrays of numpy, ranges and paths are converted, and an int to float where a float
    is expected. Nothing is checked.

    Raises:
      ConfigError: not a config.

    >>> plain({"seed": np.int64(3), "worker_speeds": range(1, 3), "stop": {}})
    {'seed': 3, 'worker_speeds': (1, 2), 'stop': {}}
    """
    found = _plain(config.to_dict() if hasattr(config, "to_dict") else config)
    if not isinstance(found, dict):
        raise ConfigError(
            f"config: found {type(config).__name__}, allowed: a ConfigDict or nested "
            "dicts, as asyn2f.default_config() returns"
        )
    _make_floats(found, "", all_settings())
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__array__"):  # numpy's numbers and arrays, and those of JAX
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple | range):
        return tuple(_plain(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _make_floats(config: dict[str, Any], prefix: str, found: Mapping) -> None:
    for key, value in config.items():
        each = found.get(prefix + key)
        if isinstance(value, dict):
            _make_floats(value, f"{prefix}{key}.", found)
        elif each and each.kind is float and type(value) is int:
            with contextlib.suppress(OverflowError):  # then it is out of range
                config[key] = float(value)


def canonical(config: Config) -> dict[str, Any]:
    """Dotted keys to values as JSON has them, a float wherever one is allowed: equal
    configs have equal text.

    >>> canonical({"seed": 1, "training": {"momentum": 0}, "worker_speeds": (2, 0.5)})
    {'seed': 1, 'training.momentum': 0.0, 'worker_speeds': [2.0, 0.5]}
    """
    found = all_settings()
    return {k: _canonical(found[k], value) for k, value in flatten(config).items()}


def _canonical(each: Setting, value: Any) -> Any:
    if value is None:
        return None
    if each.kind is float:
        return float(value)
    if each.kind is tuple:
        return [float(x) if each.item is float else x for x in value]
    return value


def with_absolute_paths(config: Config) -> Config:
    """The config with absolute paths: a run is replayed and resumed from other working
    directories than the one it was started in."""
    flat = flatten(config)
    for key, each in all_settings().items():
        if each.is_path and key in flat and each.is_path(flat[key]):
            flat[key] = os.path.abspath(os.path.expanduser(flat[key]))
    return nested(flat)


def check_key(key: str) -> None:
    """Raises ConfigError unless there is such a dotted key; names its new name, or the
    nearest key there is."""
    _check_key(key, all_settings())


def _check_key(key: str, found: Mapping[str, Setting]) -> None:
    if key in found:
        return
    if text := new_name(key):
        raise ConfigError(text)
    near = difflib.get_close_matches(key, found, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown key config.{key}{hint} (docs/config.md has them all)")


def check_known(flat: Mapping[str, Any]) -> None:
    """Checks values by dotted key, each on its own.

    Raises:
      ConfigError: an unknown key, or a value that is not allowed.
    """
    found = all_settings()
    for key, value in flat.items():
        _check_key(key, found)
        _check_value(key, value, found[key])


def check_values(config: Config) -> None:
    """Checks that every key is present, known, and in range.

    Raises:
      ConfigError: one is not.
    """
    flat = flatten(config)
    check_known(flat)
    for key in all_settings():
        is_newer = key.startswith("strategy.") and key != "strategy.name"
        if key not in flat and not is_newer:  # a config may be older than a strategy
            raise ConfigError(
                f"config.{key} is missing: begin with asyn2f.default_config()"
            )


def _check_value(key: str, value: Any, each: Setting) -> None:
    if problem := each.problem_of(value):
        raise ConfigError(f"config.{key}: {problem}{new_value(key, value)}")
