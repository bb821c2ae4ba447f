"""Asyn2F on handwritten digits: see `asyn2f.config.digits`, or `--config=digits`."""

from asyn2f.config.digits import get_config as get_config
