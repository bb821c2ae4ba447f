"""The config of a run, to be changed by flags: see `asyn2f.config.of_run`."""

from asyn2f.config.of_run import get_config as get_config
