"""From a config to an experiment: the only reader of config.

Below this module a misspelt key or a value out of range cannot exist.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from asyn2f.config.schema import (
    Config,
    canonical,
    check_values,
    flatten,
)
from asyn2f.errors import AddressError, ConfigError, DataError
from asyn2f.kernels.codecs import Coding, check_coding
from asyn2f.kernels.guards import Guards
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.sim.profiles import Profiles, draw_profiles, read_profiles
from asyn2f.strategies import BUILDERS, Strategy, parameters
from asyn2f.strategies._asyn2f import ROBUST
from asyn2f.tasks import models, partition
from asyn2f.tasks.base import Task
from asyn2f.tasks.classification import classification
from asyn2f.tasks.data import read_dataset
from asyn2f.tasks.tfds import (
    is_folder,
)
from asyn2f.timing import Stop
from asyn2f.training.agreement import flags, terms_of
from asyn2f.training.experiment import Experiment, make_experiment
from asyn2f.training.trainer import Training
from asyn2f.transport.addresses import (
    parse_address,
)


def check(config: Config) -> None:
    """Checks that every key is present, known and in range, and that they fit together.

    Raises:
      ConfigError: otherwise.
    """
    check_values(config)
    flat = flatten(config)
    build_strategy(config)
    workers = flat["workers"]
    if flat["min_workers"] > workers:
        raise ConfigError(
            f"config.min_workers: found {flat['min_workers']}, allowed: at most "
            f"config.workers, which is {workers}"
        )
    by_sizes = flat["task.partition"] in ("sizes", "overlapping", "class_shares")
    if by_sizes and len(flat["task.sizes"]) != workers:
        raise ConfigError(
            f"config.task.sizes: found {len(flat['task.sizes'])} sizes, allowed: one "
            f"for each of the {workers} workers"
        )
    _check_kind(config["task"])
    _check_rates(config["training"])
    try:
        check_coding(Coding(**config["wire"]))
    except ValueError as error:
        raise ConfigError(f"config.wire.{error}") from None
    if not any(config["stop"].values()):
        raise ConfigError(
            "config.stop: found nothing that ends the run; set max_versions, "
            "max_time_s or target_accuracy"
        )
    interval_s = flat["runtime.heartbeat_interval_s"]
    if flat["runtime.heartbeat_timeout_s"] <= interval_s:
        raise ConfigError(
            "config.runtime.heartbeat_timeout_s: found "
            f"{flat['runtime.heartbeat_timeout_s']}, allowed: above "
            f"heartbeat_interval_s, which is {interval_s}"
        )
    try:
        parse_address(flat["runtime.address"])
    except AddressError as error:
        raise ConfigError(f"config.runtime.{error}") from None


def _check_rates(training: Config) -> None:
    """Checks that the schedule's floor and length fit its learning rate."""
    floor, rate = training["learning_rate_min"], training["learning_rate"]
    schedule, epochs = training["schedule"], training["schedule_epochs"]
    if schedule != "fixed" and floor > rate:
        raise ConfigError(
            f"config.training.learning_rate_min: found {floor:g}, allowed: at most "
            f"training.learning_rate, which is {rate:g}, where the schedule is "
            f"{schedule}: lower it too, or take training.schedule=fixed"
        )
    if schedule != "cosine" and epochs:
        raise ConfigError(
            f"config.training.schedule_epochs: found {epochs}, allowed: 0 where the "
            f"schedule is {schedule}; only cosine counts a worker's own epochs"
        )


def _check_kind(task: Config) -> None:
    """Checks that network, augmentation and normalisation suit the data."""
    is_ember = task["dataset"] == "ember"
    if (task["model"] == "ember") != is_ember:
        allowed = "ember" if is_ember else "any but ember"
        raise ConfigError(
            f"config.task.model: found {task['model']!r}, but the data set is "
            f"{task['dataset']}; allowed: {allowed}"
        )
    if is_ember and (task["augment"] != "none" or task["normalise"]):
        raise ConfigError(
            "config.task: augment and normalise are for images; EMBER's features are "
            "in bins: leave them out"
        )


def build_task(config: Config) -> Task:
    """The task: data read and cut, no array on any device yet.

    Raises:
      ConfigError: the data are not there, or cannot be cut as asked.
    """
    task = config["task"]
    try:
        dataset = read_dataset(task["dataset"], task["data_dir"])
    except DataError as error:
        raise ConfigError(f"config.task.dataset: {error}") from None
    shards = _shards(config, dataset.train["label"])
    qualities = [
        task["quality"][k % len(task["quality"])] for k in range(config["workers"])
    ]
    name = f"{task['dataset']}-{task['model']}"
    return classification(
        name,
        _model(task, dataset.num_classes),
        dataset,
        shards,
        qualities,
        normalise=task["normalise"],
        augment=task["augment"],
        class_weights=task["class_weights"],
    )


def _shards(config: Config, labels: np.ndarray) -> partition.Shards:
    task, workers = config["task"], config["workers"]
    rng = np.random.default_rng(config["seed"])
    sizes, alpha = task["sizes"], task["alpha"]
    ways: dict[str, Callable[[], partition.Shards]] = {
        "iid": lambda: partition.iid(labels, workers, rng),
        "sizes": lambda: partition.by_sizes(labels, sizes, rng),
        "normal": lambda: partition.normal_sizes(
            labels, workers, task["size_spread"], rng
        ),
        "overlapping": lambda: partition.overlapping(labels, sizes, rng),
        "class_shares": lambda: partition.by_class_shares(
            labels, sizes, task["class_shares"], rng
        ),
        "dirichlet": lambda: partition.dirichlet(labels, workers, alpha, rng),
        "shards": lambda: partition.by_label_shards(
            labels, workers, task["shards_per_worker"], rng
        ),
        "file": lambda: partition.from_file(labels, workers, Path(task["indices"])),
    }
    try:
        return ways[task["partition"]]()
    except ValueError as error:
        raise ConfigError(f"config.task: {error}") from None


def _model(task: Config, num_classes: int) -> Any:
    hidden, channels = tuple(task["hidden"]), tuple(task["channels"])
    impl, dtype = task["conv_impl"], jnp.dtype(task["dtype"])
    residual = {
        "resnet18": models.resnet18,
        "resnet20": models.resnet20,
        "resnet34": models.resnet34,
    }
    match task["model"]:
        case "mlp":
            return models.MLP(hidden, num_classes, dtype)
        case "cnn":
            norm = task["batch_norm"]
            return models.CNN(channels, num_classes, norm, impl, dtype)
        case "small_cnn":
            return models.SmallCNN(channels, hidden, num_classes, impl, dtype)
        case "ember":
            return models.EmberNet(num_classes, dtype)
        case name:
            return residual[name](num_classes, conv_impl=impl, dtype=dtype)


def build_strategy(config: Config) -> Strategy:
    """The strategy, its timing completed by the experiment's settings.

    Raises:
      ConfigError: a parameter of the strategy is out of range.
    """
    name = config["strategy"]["name"]
    chosen, guards = dict(config["strategy"][name]), build_guards(config)
    if guards.mode == "enforce" and "max_share" in chosen:
        # Only ever lowered, and left as it is where it is out of range.
        chosen["max_share"] = min(chosen["max_share"], guards.max_share)
    try:
        strategy = _built(name, **chosen)
    except ValueError as error:
        raise ConfigError(f"config.strategy.{name}.{error}") from None
    settings = dict(config["timing"])
    usual = strategy.timing.min_updates
    if strategy.timing.replaces:  # each worker has one pending update at most
        usual = min(usual, config["workers"])
    settings["min_updates"] = settings["min_updates"] or usual
    if strategy.timing.push_below_mean and settings["push_min_accuracy"]:
        raise ConfigError(
            f"config.timing.push_min_accuracy: found {settings['push_min_accuracy']}, "
            f"but {name} has a rule of its own for pushes; leave it at 0"
        )
    min_workers = config["min_workers"] or config["workers"]
    timing = replace(strategy.timing, min_workers=min_workers, **settings)
    return strategy._replace(timing=timing)


@lru_cache(maxsize=64, typed=True)
def _built(name: str, **chosen: Any) -> Strategy:
    """The same functions each time, so that experiments share what is compiled."""
    return BUILDERS[name](**chosen)


def build_guards(config: Config) -> Guards:
    """The guards; a strategy that has no coefficients to cap is left without a cap."""
    settings, name = dict(config["guards"]), config["strategy"]["name"]
    is_robust = config["strategy"][name].get("aggregate") in ROBUST
    if is_robust or "max_share" not in parameters(name):
        settings["max_share"] = 1.0
    return Guards(**settings)


def build_experiment(config: Config) -> Experiment:
    """Everything that the numbers depend on.

    Raises:
      ConfigError: see `check` and `build_task`.
    """
    check(config)
    return make_experiment(
        build_task(config),
        build_strategy(config),
        Training(**config["training"]),
        Stop(**config["stop"]),
        config["seed"],
        build_guards(config),
        Coding(**config["wire"]),
    )


def check_agrees(config: Config, experiment: Experiment) -> None:
    """Compares what a config and an experiment both hold.

    Raises:
      ConfigError: names the first key in which they differ.
    """
    timing, guards = experiment.strategy.timing, experiment.guards
    wanted: dict[str, Any] = {
        "seed": experiment.seed,
        "workers": experiment.workers,
        "guards.mode": guards.mode,
    }
    parts = {
        "training": experiment.training,
        "stop": experiment.stop,
        "wire": experiment.coding,
        "timing": timing,
    }
    if guards.mode != "off":
        parts["guards"] = guards
    for section, part in parts.items():
        for key in config[section]:
            wanted[f"{section}.{key}"] = getattr(part, key)
    if config["min_workers"]:  # 0 = all of them, here and below the usual number
        wanted["min_workers"] = timing.min_workers
    if not config["timing"]["min_updates"]:
        del wanted["timing.min_updates"]
    if guards.mode != "off" and guards.max_share == 1.0:  # there is nothing to cap
        del wanted["guards.max_share"]
    flat = flatten(config)
    for key, value in wanted.items():
        if flat[key] != value:
            raise ConfigError(
                f"config.{key}: found {flat[key]!r}, but the experiment was made with "
                f"{value!r}; change one of them"
            )


def build_runtime(config: Config) -> RuntimeSettings:
    """How the run is carried out."""
    settings = dict(config["runtime"])
    return RuntimeSettings(worker_speeds=tuple(config["worker_speeds"]), **settings)


def build_profiles(config: Config) -> Profiles:
    """How fast and how far away the simulated workers are.

    Raises:
      ConfigError: the file of profiles cannot be used.
    """
    settings, workers = dict(config["sim"]), config["workers"]
    if settings["profiles"] != "drawn":
        try:
            return read_profiles(Path(settings["profiles"]), workers)
        except ValueError as error:
            raise ConfigError(f"config.sim.profiles: {error}") from None
    speeds, steps = config["worker_speeds"], settings.pop("step_s")
    # What is not said here is as in the runtime, where a speed of 0 is no limit.
    step_s = [
        steps[k % len(steps)] or 1.0 / (speeds[k % len(speeds)] or 100.0)
        for k in range(workers)
    ]
    drawn = inspect.signature(draw_profiles).parameters
    rest = {key: value for key, value in settings.items() if key in drawn}
    rng = np.random.default_rng([config["seed"], 1])  # another than the partition's
    return draw_profiles(workers, rng, step_s=step_s, **rest)


_CARRYING_OUT = ("runtime", "sim", "worker_speeds", "min_workers")
_MAY_DIFFER = (*_CARRYING_OUT, "stop")


def changed_keys(stored: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """What a config says otherwise than a stored one: by key, the value there and the
    value here. How a run is carried out is left out."""
    others = _of_no_number(config)
    before, now = (json.loads(json.dumps(flatten(c))) for c in (stored, config))
    return {
        key: (before.get(key), value)
        for key, value in now.items()
        if before.get(key) != value
        and key.split(".")[0] not in _CARRYING_OUT
        and not key.startswith(others)
    }


def _of_no_number(config: Config) -> tuple[str, ...]:
    """Beginnings of the keys that no number depends on: of files, what is in them
    counts, and not where they are; see `agreement.data_digest`."""
    chosen = config["strategy"]["name"]
    others = [f"strategy.{name}." for name in BUILDERS if name != chosen]
    places = ["task.data_dir", "task.indices"]
    if is_folder(config["task"]["dataset"]):
        places.append("task.dataset")
    return (*places, *others)


def check_same_experiment(stored: Config, config: Config) -> None:
    """Nothing, if a run of the one config can go on under the other.

    Raises:
      ConfigError: names the first key that differs and may not.
    """
    for key, (before, now) in changed_keys(stored, config).items():
        if key.split(".")[0] not in _MAY_DIFFER:
            raise ConfigError(
                f"config.{key}: found {now!r}, but the run was begun with "
                f"{before!r}; only {', '.join(_MAY_DIFFER)} may change"
            )


def experiment_settings(config: Config) -> dict[str, Any]:
    """The settings that numbers depend on, by dotted key: a whole number for what may
    be a fraction is that fraction. How a run is carried out, and when it stops, is
    left out.
    """
    others = _of_no_number(config)
    return {
        key: value
        for key, value in canonical(config).items()
        if key.split(".")[0] not in _MAY_DIFFER and not key.startswith(others)
    }


def experiment_digest(config: Config) -> str:
    """Names the settings that numbers depend on."""
    text = json.dumps(experiment_settings(config), sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def terms(config: Config) -> tuple[str, ...]:
    """What a process must have in common with the others of its run, as lines: see
    `agreement.terms_of`; of the data there is `agreement.data_digest`."""
    return terms_of(experiment_settings(config) | flags())
