"""The identity of an experiment: the settings that its numbers depend on."""

import hashlib
import json
from typing import Any

from asyn2f.config import user_code
from asyn2f.config.references import label_of
from asyn2f.config.schema import Config, canonical, flatten, section, strategy_of
from asyn2f.config.task import TaskSettings, of_built_in
from asyn2f.config.training import OF_SGD
from asyn2f.errors import ConfigError
from asyn2f.strategies import BUILDERS
from asyn2f.tasks.tfds import is_folder
from asyn2f.training.agreement import flags, terms_of

_CARRYING_OUT = ("runtime", "sim", "worker_speeds", "min_workers", user_code.CODE_PATH)
_MAY_DIFFER = (*_CARRYING_OUT, "stop")
# Keys that decide the order of a simulation's events, and those of them that do not.
_SCHEDULES = ("sim.", "worker_speeds", "min_workers")
_EXECUTES = ("sim.executor", "sim.lanes", "sim.evaluate_every")


def changed_keys(stored: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """The differences of a config from a stored one: by key, the value there and the
    value here. How a run is carried out is left out."""
    others = _without_effect(config)
    before, now = (
        json.loads(json.dumps(flatten(c) | _labels(c))) for c in (stored, config)
    )
    return {
        key: (before.get(key), value)
        for key, value in now.items()
        if before.get(key) != value
        and key.split(".")[0] not in _CARRYING_OUT
        and not key.startswith(others)
    }


def _labels(config: Config) -> dict[str, str]:
    """The references in a config without folders, by key."""
    return {key: label_of(x) for key, x in user_code.references_in(config).items()}


def _without_effect(config: Config) -> tuple[str, ...]:
    """Prefixes of the keys that no number depends on: of files, the content counts and
    not the path; see `agreement.data_digest`."""
    chosen, _ = strategy_of(config)
    others = [f"strategy.{name}." for name in BUILDERS if name != chosen]
    others += ["task.data_dir", "task.indices", "privacy.max_examples"]
    others += [
        key for key, each in user_code.settings_in(config).items() if each.is_path
    ]
    task = section(config, TaskSettings)
    if is_folder(task.dataset):
        others.append("task.dataset")
    if task.factory:
        others += of_built_in()
    if user_code.INSIDE in user_code.references_in(config):
        others += [f"training.{name}" for name in OF_SGD]
    return tuple(others)


def check_same_experiment(stored: Config, config: Config) -> None:
    """Checks that a run of the one config can be resumed under the other.

    Raises:
      ConfigError: names the first key that differs and may not.
    """
    for key, (before, now) in changed_keys(stored, config).items():
        if key.split(".")[0] not in _MAY_DIFFER:
            raise ConfigError(
                f"config.{key}: found {now!r}, but the run was started with "
                f"{before!r}; only {', '.join(_MAY_DIFFER)} may change"
            )


def check_same_schedule(stored: Config, config: Config) -> None:
    """Checks that a finished simulation can be continued under another config.

    Raises:
      ConfigError: names the first key that differs and orders its events.
    """
    now = canonical(config)
    for key, before in canonical(stored).items():
        if key.startswith(_SCHEDULES) and key not in _EXECUTES and now[key] != before:
            raise ConfigError(
                f"config.{key}: found {now[key]!r}, but the simulation has finished "
                f"with {before!r}; to continue, change only stop"
            )


def experiment_settings(config: Config) -> dict[str, Any]:
    """The settings that numbers depend on, by dotted key, as JSON has them; not those
    of how a run is carried out, and when it stops."""
    others = _without_effect(config)
    found = {
        key: value
        for key, value in canonical(config).items()
        if key.split(".")[0] not in _MAY_DIFFER and not key.startswith(others)
    }
    code = {
        f"sources of {x}": digest for x, digest in user_code.digests(config).items()
    }
    return found | _labels(config) | code


def experiment_digest(config: Config) -> str:
    """Identifies the settings that numbers depend on."""
    text = json.dumps(experiment_settings(config), sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def terms(config: Config) -> tuple[str, ...]:
    """What a process must have in common with the others of its run, as lines: see
    `agreement.terms_of`; of the data there is `agreement.data_digest`."""
    return terms_of(experiment_settings(config) | flags())
