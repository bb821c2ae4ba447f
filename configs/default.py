"""The defaults: see `asyn2f.config.default`."""

from asyn2f.config.default import get_config as get_config
