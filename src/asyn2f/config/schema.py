"""Every key of a config: its setting, and the checks that follow from it."""

import contextlib
import difflib
import itertools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from asyn2f import settings
from asyn2f.config import user_code
from asyn2f.config.arguments import of_signature
from asyn2f.config.dotted import Config as Config
from asyn2f.config.dotted import changed as changed
from asyn2f.config.dotted import flatten as flatten
from asyn2f.config.dotted import nested as nested
from asyn2f.config.references import is_reference, label_of
from asyn2f.config.renamed import new_name, new_value
from asyn2f.config.run import RunSettings as RunSettings
from asyn2f.config.run import StrategyChoice as StrategyChoice
from asyn2f.config.task import TaskSettings
from asyn2f.errors import ConfigError
from asyn2f.kernels.codecs import Coding
from asyn2f.kernels.guards import Guards
from asyn2f.privacy import Privacy
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.settings import Setting
from asyn2f.sim.settings import SimSettings
from asyn2f.store.base import StoreSettings
from asyn2f.strategies import BUILDERS
from asyn2f.timing import Stop, Timing
from asyn2f.training.settings import Training

T = TypeVar("T")


SECTIONS: dict[str, tuple[type, ...]] = {
    "": (RunSettings,),
    "task": (TaskSettings,),
    "training": (Training,),
    "strategy": (StrategyChoice,),
    "timing": (Timing,),
    "stop": (Stop,),
    "guards": (Guards,),
    "wire": (Coding,),
    "privacy": (Privacy,),
    "runtime": (RuntimeSettings, StoreSettings),
    "sim": (SimSettings,),
}
"""The dataclasses whose settings are the keys of each section; "" is the root."""


def all_settings(config: Config | None = None) -> dict[str, Setting]:
    """The setting of every key, by dotted key, those at the root first. Made anew each
    time, as a config file may add a strategy.

    Args:
      config: of whose references the arguments are keys as well.

    Raises:
      ConfigError: a reference of the config names no function: see
        `user_code.settings_in`.
    """
    root: dict[str, Setting] = {}
    rest: dict[str, Setting] = {}
    for section, kinds in SECTIONS.items():
        of_section = [settings.settings_of(kind).items() for kind in kinds]
        for name, each in itertools.chain(*of_section):
            keys = root if each.at_root or not section else rest
            keys[name if keys is root else f"{section}.{name}"] = each
        if section == "strategy":
            rest |= _of_strategies()
    return root | rest | (user_code.settings_in(config) if config else {})


def _of_strategies() -> dict[str, Setting]:
    """What the builders take. They check the ranges themselves."""
    found = {}
    for name, builder in BUILDERS.items():
        try:
            taken = of_signature(builder)
        except TypeError as error:
            raise TypeError(f"strategy {name}: {error}") from None
        for key, each in taken.items():
            if each.options is None:
                each = replace(each, holds=lambda _: True)
            found[f"strategy.{name}.{key}"] = each
    return found


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
    """The name of the strategy, without folders, and the parameters of its builder."""
    name = section(config, StrategyChoice).name
    if is_reference(name):
        return label_of(name), dict(config["strategy"].get("args", {}))
    return name, dict(config["strategy"].get(name, {}))


def plain(config: Any) -> dict[str, Any]:
    """The config as nested dicts of Python's own values: a ConfigDict, numbers and
    arrays of numpy, ranges and paths are converted, and an int to float where a float
    is expected; arguments that are not given have their defaults. Nothing is checked.

    Raises:
      ConfigError: not a config.

    >>> plain({"seed": np.int64(3), "worker_speeds": range(1, 3), "stop": {}})
    {'seed': 3, 'worker_speeds': (1, 2), 'stop': {}}
    """
    found = converted(config)
    return found | user_code.completed(found, strict=False)


def converted(config: Any) -> dict[str, Any]:
    """As `plain`, without the arguments that are not given, and without importing what
    the config names."""
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
    config = user_code.completed(config)
    found = all_settings(config)
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
    flat = flatten(user_code.located(config))
    for key, each in all_settings(config).items():
        if each.is_path and key in flat and each.is_path(flat[key]):
            flat[key] = os.path.abspath(os.path.expanduser(flat[key]))
    return nested(flat)


def check_key(key: str, config: Config | None = None) -> None:
    """Raises ConfigError unless there is such a dotted key, in general or in a config;
    names its new name, or the nearest key there is."""
    _check_key(key, all_settings(config))


def _check_key(key: str, found: Mapping[str, Setting]) -> None:
    if key in found:
        return
    if text := new_name(key):
        raise ConfigError(text)
    for reference, prefix in user_code.ARGUMENTS.items():
        if key.startswith(prefix) and not any(x.startswith(prefix) for x in found):
            raise ConfigError(
                f"unknown key config.{key}: config.{reference} names no function that "
                f"has arguments; set it, for example to mypackage.mine:make_it"
            )
    near = difflib.get_close_matches(key, found, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown key config.{key}{hint} (docs/config.md has them all)")


def _near_option(value: Any, each: Setting) -> str:
    if not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value, map(str, each.options or ()), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_known(flat: Mapping[str, Any]) -> None:
    """Checks values by dotted key, each on its own.

    Raises:
      ConfigError: an unknown key, or a value that is not allowed.
    """
    found = all_settings(nested(flat))
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
    for key in all_settings(config):
        # A config may be older than a strategy.
        is_newer = key.startswith("strategy.") and key not in user_code.ARGUMENTS
        if key not in flat and not is_newer and not user_code.is_argument(key):
            raise ConfigError(
                f"config.{key} is missing: begin with asyn2f.default_config()"
            )


def _check_value(key: str, value: Any, each: Setting) -> None:
    if problem := each.problem_of(value):
        hint = new_value(key, value) + user_code.optax_hint(key, value)
        hint = hint or _near_option(value, each)
        raise ConfigError(f"config.{key}: {problem}{hint}")
