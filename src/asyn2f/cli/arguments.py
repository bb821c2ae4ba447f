"""The command line before its flags are parsed: which config it names, which keys that
has, and how the values of these are read."""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from asyn2f import rundir
from asyn2f.cli.main import COMMANDS
from asyn2f.config import config_file, schema, user_code
from asyn2f.config.default import load_config, with_references

# Those that need no agreement with processes on other machines.
_HAVE_DEFAULT_CONFIG = ("run", "simulate", "compare", "quality", "check-strategy")
_DEFAULT_CONFIG = "digits"
# Flags that decide which other keys there are.
NAMING = ("config.code_path", *(f"config.{key}" for key in user_code.ARGUMENTS))


def given_of(name: str, argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without --config, and those that decide on the config, by name."""
    rest: list[str] = []
    given: dict[str, str] = {}
    arguments = iter(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
    for argument in arguments:
        key, has_value, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and key == "config":
            given[key] = value if has_value else next(arguments, "")
            continue
        rest.append(argument)
        if argument.startswith("-"):
            if key in ("run", "workdir", *NAMING) and not has_value:
                rest.append(next(arguments, ""))
                value = rest[-1]
            given[key] = value
        elif COMMANDS[name].argument and len(rest) > 1:
            rest.pop()
            given[f"config.{COMMANDS[name].argument}"] = argument
    return rest, given


def config_of(name: str, given: dict[str, str]) -> Any:
    """The config to start from, with the keys that the other flags name; None if it is
    not known."""
    config = _config_named(name, given)
    changes = {
        key.removeprefix("config."): given[key] for key in NAMING if key in given
    }
    known = None
    if config is not None:
        folder = config_file.folder() if "config" in given else None
        config = known = with_references(config, changes, folder)
    for key in given:
        if key.startswith("config."):
            schema.check_key(key.removeprefix("config."), known)
    return config


def _config_named(name: str, given: dict[str, str]) -> Any:
    """The config that the flags name, as it is."""
    if "config" in given:
        return config_file.load(given["config"])
    made = given.get("run") if name == "replay" else None
    if "resume" in given and given["resume"] not in ("false", "False", "0"):
        made = given.get("workdir")
    if made is not None:
        exists = (Path(made) / rundir.CONFIG).exists()
        return load_config(made) if exists else None
    if name not in _HAVE_DEFAULT_CONFIG:
        return None
    # The experiment `digits` is made for its own task.
    chosen = "default" if given.get("config.task.factory") else _DEFAULT_CONFIG
    if not COMMANDS[name].argument:
        print(f"note: no --config, taking {chosen}", file=sys.stderr, flush=True)
    return config_file.load(chosen)


class FloatOrNone(flags.FloatParser):
    """For keys that may be None; what other keys hold is checked afterwards."""

    def convert(self, argument: str | float) -> Any:
        if argument == "None":
            return None
        try:
            return super().convert(argument)
        except ValueError:
            raise ValueError(f"found {argument!r}, allowed: a number") from None


class Integer(flags.IntegerParser):
    """For integers; says what is allowed."""

    def convert(self, argument: int | str) -> int:
        try:
            return super().convert(argument)
        except ValueError:
            raise ValueError(f"found {argument!r}, allowed: an integer") from None
