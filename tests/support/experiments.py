"""Small experiments for tests."""

from typing import Any

from asyn2f.config import build
from asyn2f.config.default import get_config
from asyn2f.training.experiment import Experiment


def config_with(**changes: Any) -> dict[str, Any]:
    """The default config as plain dicts, with dotted keys changed (`_` for `.`).

    >>> config_with(task__alpha=0.1)["task"]["alpha"]
    0.1
    """
    config = get_config()
    config.runtime.heartbeat_interval_s = 0.2
    config.runtime.heartbeat_timeout_s = 1.0
    config.runtime.join_timeout_s = 20.0
    for key, value in changes.items():
        *groups, name = key.split("__")
        section = config
        for group in groups:
            section = section[group]
        section[name] = value
    return dict(config.to_dict())


def experiment_with(**changes: Any) -> Experiment:
    return build.build_experiment(config_with(**changes))
