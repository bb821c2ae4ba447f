"""The check that a second call compiles nothing."""

from asyn2f.strategies.requirements import nothing_compiles as nothing_compiles
