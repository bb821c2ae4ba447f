"""The config of a run, as a config file: `--config=configs/of_run.py:runs/demo`."""

from asyn2f.config.default import load_config as get_config

__all__ = ["get_config"]
