"""The config of a run that lies in a folder, to be changed by flags.

    python -m launch.simulate --config=configs/of_run.py:runs/demo \
        --workdir=runs/other --config.strategy.asyn2f.max_share=1.0
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from asyn2f.config.default import get_config as default


def get_config(folder: str) -> ConfigDict:
    """The config in `folder`, on top of the defaults for keys it does not know."""
    stored = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = default()
    _update(config, stored)
    return config


def _update(config: ConfigDict, stored: dict) -> None:
    for key, value in stored.items():
        if isinstance(value, dict):
            _update(config[key], value)
        else:  # JSON knows no tuples
            config[key] = tuple(value) if isinstance(value, list) else value
