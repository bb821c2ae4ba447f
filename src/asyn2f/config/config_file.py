"""Config files: Python files with a function `get_config`, in any folder."""

import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from asyn2f import errors
from asyn2f.config import schema

_MODULE = "config_file"  # the name of the file as a module
_LONGEST = 200  # characters of a message that are shown
PACKAGED = ("default", "digits", "of_run")  # modules of this package
_LIKE = "a config is a Python file like configs/digits.py, or default, or digits"


def load(spec: str) -> ConfigDict:
    """Loads the config that `FILE` or `FILE:ARGUMENT` names.

    Args:
      spec: FILE is a path, or one of `PACKAGED`; ARGUMENT is passed to `get_config`,
        which may return a ConfigDict or plain dicts.

    Raises:
      ConfigError: there is no such file, it cannot be executed, or it returns something
        else; names the line in the file.
    """
    path, argument = _split(spec)
    module = import_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise errors.ConfigError(
            f"--config: {path} has no function get_config; {_LIKE}"
        )
    arguments = [] if argument is None else [argument]
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        remedy = "remove the colon and what follows it"
        if argument is None:
            remedy = f"give its argument after a colon: {path.name}:ARGUMENT"
        given = "without an argument" if argument is None else f"with {argument!r}"
        raise errors.ConfigError(
            f"--config: get_config in {path} cannot be called {given}; {remedy}"
        ) from None
    try:
        found = get_config(*arguments)
    except (Exception, SystemExit) as error:
        raise errors.ConfigError(_located(path, error)) from error
    if not isinstance(found, Mapping | ConfigDict):
        remedy = "; end it with `return config`" if found is None else ""
        raise errors.ConfigError(
            f"--config: get_config in {path} returned {found!r:.60}, needed: a "
            f"ConfigDict or a dict{remedy}"
        )
    return ConfigDict(schema.plain(found))


def import_file(path: Path) -> ModuleType:
    """Imports a config file, which may add strategies and import its neighbours.

    Raises:
      ConfigError: see `load`.
    """
    is_packaged = path.parent == Path(__file__).parent
    if not is_packaged and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loader = importlib.machinery.SourceFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    module = sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise errors.ConfigError(_located(path, error)) from error
    return module


def folder() -> Path | None:
    """That of the config file that this process has imported, unless a packaged one."""
    path = imported()
    return path.parent if path and path.parent != Path(__file__).parent else None


def imported() -> Path | None:
    """The config file that this process has imported, or None."""
    module = sys.modules.get(_MODULE)
    return None if module is None else Path(str(module.__file__))


def _split(spec: str) -> tuple[Path, str | None]:
    """File and argument; the file's name may contain colons."""
    parts = spec.split(":")
    for count in range(1, len(parts) + 1):
        path = Path(os.path.expanduser(":".join(parts[:count])))
        if path.is_file():
            if path.suffix == ".json":
                raise errors.ConfigError(
                    f"--config: found {path}; {_LIKE}; that of a run is of_run:FOLDER"
                )
            rest = parts[count:]
            return path.absolute(), ":".join(rest) if rest else None
    if parts[0] in PACKAGED:
        rest = parts[1:]
        return Path(__file__).with_name(f"{parts[0]}.py"), ":".join(rest) or None
    path = Path(os.path.expanduser(parts[0]))
    problem = "is a folder" if path.is_dir() else "does not exist"
    raise errors.ConfigError(f"--config: {path} {problem}; {_LIKE}")


def _located(path: Path, error: BaseException) -> str:
    """The error in one line, with the line of the file where it was raised."""
    if isinstance(error, SyntaxError):
        message, line = error.msg, error.lineno
        path = Path(error.filename or path)
    else:
        first: object = error
        # A KeyError's argument, and the nested errors of ml_collections.
        while isinstance(first, BaseException) and first.args:
            first = first.args[0]
        text = first if isinstance(first, str) else str(error)
        message = " ".join(text.split())[:_LONGEST]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = lines[-1] if lines else None
    place = f"{path}, line {line}" if line else str(path)
    return f"--config: {place}: {type(error).__name__}: {message}"
