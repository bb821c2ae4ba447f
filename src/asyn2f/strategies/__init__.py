"""The methods: one file each, one builder each, all of them records of functions."""

from asyn2f.strategies.asyn2f import asyn2f
from asyn2f.strategies.base import Strategy
from asyn2f.strategies.fedavg import fedavg

BUILDERS = {"asyn2f": asyn2f, "fedavg": fedavg}
"""Every strategy by the name a config gives it."""

__all__ = ["BUILDERS", "Strategy", "asyn2f", "fedavg"]
