"""What a config may say: every key, its kind and its range."""

import contextlib
import difflib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np

from asyn2f import strategies
from asyn2f.errors import ConfigError
from asyn2f.kernels.codecs import UpdateCoding, VersionCoding
from asyn2f.kernels.guards import GuardMode
from asyn2f.protocol.settings import PublishWhen
from asyn2f.sim.execute import Executor
from asyn2f.strategies import BUILDERS
from asyn2f.tasks.classification import Augment, ClassWeights
from asyn2f.tasks.data import DATASETS
from asyn2f.tasks.models import (
    ConvImpl,
)
from asyn2f.tasks.tfds import is_folder
from asyn2f.training.trainer import Schedule

Config = Mapping[str, Any]
"""A config as plain nested dicts, whole: every key of `configs/default.py`."""


class _Rule(NamedTuple):
    kind: type
    allowed: str
    holds: Callable[[Any], bool]
    item: type = object  # of a list


def _number(kind: type, low: float, high: float = math.inf, open_low=False) -> _Rule:
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]"
    return _Rule(
        kind,
        bounds,
        lambda x: (x > low if open_low else x >= low) and x <= high and x < math.inf,
    )


def _one_of(options) -> _Rule:
    options = list(options)
    return _Rule(str, "one of " + ", ".join(options), lambda x: x in options)


def _each(rule: _Rule) -> _Rule:
    """A list, not empty, whose items obey the rule."""

    def holds(items):
        return len(items) > 0 and all(
            _fits(rule.kind, x) and rule.holds(x) for x in items
        )

    return _Rule(tuple, f"a list, each {rule.allowed}", holds, rule.kind)


def _is_profiles(name: str) -> bool:
    return name == "drawn" or name.endswith((".csv", ".jsonl"))


_ANY_BOOL = _Rule(bool, "True or False", lambda x: True)
_COUNT = _number(int, 1)
_NATURAL = _number(int, 0)
_SECONDS = _number(float, 0)
_PARTITIONS = (
    "iid",
    "sizes",
    "normal",
    "overlapping",
    "class_shares",
    "dirichlet",
    "shards",
    "file",
)
_MODELS = ("mlp", "cnn", "small_cnn", "resnet18", "resnet20", "resnet34", "ember")


_RULES: dict[str, _Rule] = {
    "seed": _Rule(int, "0 to 2**64 - 1", lambda x: 0 <= x < 2**64),
    "workers": _COUNT,
    "min_workers": _NATURAL,
    "task.dataset": _Rule(
        str,
        f"one of {', '.join(DATASETS)}; or the folder of a data set that "
        "tensorflow-datasets has prepared, with a / in it",
        lambda x: x in DATASETS or is_folder(x),
    ),
    "task.data_dir": _Rule(str, "a folder, or empty", lambda x: True),
    "task.model": _one_of(_MODELS),
    "task.hidden": _each(_COUNT),
    "task.channels": _each(_COUNT),
    "task.batch_norm": _ANY_BOOL,
    "task.conv_impl": _one_of(get_args(ConvImpl)),
    "task.partition": _one_of(_PARTITIONS),
    "task.sizes": _each(_NATURAL),
    "task.alpha": _number(float, 0, open_low=True),
    "task.shards_per_worker": _COUNT,
    "task.size_spread": _SECONDS,
    "task.class_shares": _each(_number(float, 0)),
    "task.indices": _Rule(str, "a file .json, or empty", lambda x: True),
    "task.normalise": _ANY_BOOL,
    "task.augment": _one_of(get_args(Augment)),
    "task.class_weights": _one_of(get_args(ClassWeights)),
    "task.dtype": _one_of(["float32", "bfloat16"]),
    "task.quality": _each(_number(float, 0, 1, open_low=True)),
    "training.batch_size": _COUNT,
    "training.learning_rate": _number(float, 0, open_low=True),
    "training.momentum": _Rule(float, "[0, 1)", lambda x: 0 <= x < 1),
    "training.weight_decay": _SECONDS,
    "training.schedule": _one_of(get_args(Schedule)),
    "training.learning_rate_min": _SECONDS,
    "training.schedule_length": _COUNT,
    "training.schedule_epochs": _NATURAL,
    "training.momentum_at_merge": _one_of(["keep", "reset"]),
    "timing.min_updates": _NATURAL,
    "timing.epochs_per_push": _COUNT,
    "timing.push_min_accuracy": _number(float, 0, 1),
    "timing.push_after_epochs": _NATURAL,
    "timing.deadline_s": _SECONDS,
    "stop.max_versions": _NATURAL,
    "stop.max_time_s": _SECONDS,
    "stop.target_accuracy": _number(float, 0, 1),
    "guards.mode": _one_of(get_args(GuardMode)),
    "guards.max_norm_ratio": _number(float, 1),
    "guards.min_loss_ratio": _number(float, 1),
    "guards.max_share": _number(float, 0, 1, open_low=True),
    "wire.updates": _one_of(get_args(UpdateCoding)),
    "wire.delta": _ANY_BOOL,
    "wire.topk_share": _number(float, 0, 0.5, open_low=True),
    "wire.versions": _one_of(get_args(VersionCoding)),
    "runtime.address": _Rule(str, "tcp://host:port", lambda x: True),
    "runtime.keys_dir": _Rule(str, "a folder, or empty", lambda x: True),
    "runtime.publish": _one_of(get_args(PublishWhen)),
    "runtime.keep_last": _COUNT,
    "runtime.keep_younger_than_s": _SECONDS,
    "runtime.write_ahead": _ANY_BOOL,
    "runtime.heartbeat_interval_s": _number(float, 0, open_low=True),
    "runtime.heartbeat_timeout_s": _number(float, 0, open_low=True),
    "runtime.server_timeout_s": _number(float, 0, open_low=True),
    "runtime.join_timeout_s": _number(float, 0, open_low=True),
    "runtime.max_updates_per_s": _SECONDS,
    "runtime.zstd": _ANY_BOOL,
    "runtime.shared_memory": _ANY_BOOL,
    "worker_speeds": _each(_number(float, 0)),
    "runtime.pin_cpus": _ANY_BOOL,
    "runtime.idle_priority": _ANY_BOOL,
    "sim.profiles": _Rule(str, "drawn, or a file .csv or .jsonl", _is_profiles),
    "sim.step_s": _each(_SECONDS),
    "sim.step_spread": _number(float, 1),
    "sim.jitter": _number(float, 0, 10),
    "sim.upload_s": _SECONDS,
    "sim.download_s": _SECONDS,
    "sim.upload_mbps": _SECONDS,
    "sim.download_mbps": _SECONDS,
    "sim.link_spread": _number(float, 1),
    "sim.join_window_s": _SECONDS,
    "sim.mean_session_s": _SECONDS,
    "sim.outage_every_s": _Rule(
        float,
        "0, for never, or at least 0.001",
        lambda x: x == 0 or 1e-3 <= x < math.inf,
    ),
    "sim.outage_s": _SECONDS,
    "sim.aggregate_s": _SECONDS,
    "sim.evaluate_every": _NATURAL,
    "sim.executor": _one_of(get_args(Executor)),
    "sim.lanes": _NATURAL,
}


def _rules() -> dict[str, _Rule]:
    """All rules, with those of what the builders take: its kind, as its range is the
    builder's business. Made anew each time, as there may be a new builder."""
    rules = dict(_RULES)
    for name in BUILDERS:
        for key, (kind, _) in strategies.parameters(name).items():
            if get_origin(kind) is Literal:
                rule = _one_of(get_args(kind))
            else:
                rule = _Rule(kind, f"any {kind.__name__}", lambda x: True)
            rules[f"strategy.{name}.{key}"] = rule
    rules["strategy.name"] = _one_of(BUILDERS)
    return rules


_IN_WORDS = {int: "a whole number", float: "a number", str: "a text"}


def _fits(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (list, tuple) if kind is tuple else kind)


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


def plain(config: Any) -> dict[str, Any]:
    """The config as nested dicts of Python's own values: a ConfigDict, numbers and
    arrays of numpy, ranges and paths are taken as what they mean, and an int as a float
    where that is the kind. Nothing is checked.

    Raises:
      ConfigError: no config.

    >>> plain({"seed": np.int64(3), "worker_speeds": range(1, 3), "stop": {}})
    {'seed': 3, 'worker_speeds': (1, 2), 'stop': {}}
    """
    found = _plain(config.to_dict() if hasattr(config, "to_dict") else config)
    if not isinstance(found, dict):
        raise ConfigError(
            f"config: found {type(config).__name__}, allowed: a ConfigDict or nested "
            "dicts, as configs/default.py makes them"
        )
    _make_floats(found, "", _rules())
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__array__"):  # numpy's numbers and arrays, and those of JAX
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple | range):
        return tuple(_plain(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _make_floats(config: dict[str, Any], prefix: str, rules: dict[str, _Rule]) -> None:
    for key, value in config.items():
        if isinstance(value, dict):
            _make_floats(value, f"{prefix}{key}.", rules)
        elif type(value) is int and rules.get(prefix + key, _ANY_BOOL).kind is float:
            with contextlib.suppress(OverflowError):  # then it is out of range
                config[key] = float(value)


def canonical(config: Config) -> dict[str, Any]:
    """Dotted keys to values as JSON has them, a float wherever one is allowed: what is
    equal is written alike.

    >>> canonical({"seed": 1, "training": {"momentum": 0}, "worker_speeds": (2, 0.5)})
    {'seed': 1, 'training.momentum': 0.0, 'worker_speeds': [2.0, 0.5]}
    """
    rules = _rules()
    return {k: _canonical(rules[k], value) for k, value in flatten(config).items()}


def _canonical(rule: _Rule, value: Any) -> Any:
    if rule.kind is float:
        return float(value)
    if rule.kind is tuple:
        return [float(x) if rule.item is float else x for x in value]
    return value


def check_key(key: str) -> None:
    """Nothing, if there is such a dotted key.

    Raises:
      ConfigError: there is none; names the nearest that there is.
    """
    _find(key, _rules())


def _find(key: str, rules: Mapping[str, _Rule]) -> None:
    if key not in rules:
        near = difflib.get_close_matches(key, rules, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"unknown key config.{key}{hint} (configs/default.py has them all)"
        )


def check_values(config: Config) -> None:
    """Nothing, if every key is there, known, and in range.

    Raises:
      ConfigError: otherwise.
    """
    flat, rules = flatten(config), _rules()
    for key in flat:
        _find(key, rules)
    for key, rule in rules.items():
        if key not in flat:
            if key.startswith("strategy.") and key != "strategy.name":
                continue  # of a strategy that this config is older than
            raise ConfigError(f"config.{key} is missing: begin with configs/default.py")
        value, allowed = flat[key], rule.allowed
        if not _fits(rule.kind, value):
            if rule.kind in _IN_WORDS and rule.kind is not type(value):
                allowed = f"{_IN_WORDS[rule.kind]}, {allowed}"
            raise ConfigError(f"config.{key}: found {value!r}, allowed: {allowed}")
        if not rule.holds(value):
            raise ConfigError(f"config.{key}: found {value!r}, allowed: {allowed}")
