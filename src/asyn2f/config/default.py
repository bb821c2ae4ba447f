"""The default config, whole and with changes, and the config of a run.

A config file begins with `from asyn2f.config.default import get_config as default` and
contains only its differences. docs/config.md has every key.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from asyn2f import rundir
from asyn2f.config import schema, user_code

# Values are checked when all are there, by names and ranges.
_Section = partial(ConfigDict, type_safe=False)


def get_config() -> ConfigDict:
    """The defaults of all keys: Asyn2F on handwritten digits, five equal workers."""
    defaults = {key: each.default for key, each in schema.all_settings().items()}
    return _config(defaults)


def default_config(
    changes: Mapping[str, Any] | None = None, /, **dotted: Any
) -> ConfigDict:
    """The default config, changed.

    Args:
      changes: values by dotted key, `{"runtime.publish": "before_save"}`.
      **dotted: likewise, with `__` for the dot: `task__dataset="mnist"`.

    Returns:
      A config for `asyn2f.simulate`, whose values can be read and changed by attribute.
      How values fit together is checked when the config is used.

    Raises:
      ConfigError: an unknown key, or a value that is not allowed.

    >>> config = default_config({"training.momentum": 0.8}, workers=3, task__alpha=0.1)
    >>> config.training.momentum, config.workers, config.task.alpha
    (0.8, 3, 0.1)
    >>> default_config(task__alpa=0.1)
    Traceback (most recent call last):
    asyn2f.errors.ConfigError: unknown key config.task.alpa; did you mean task.alpha? \
(docs/config.md has them all)
    """
    flat = {**changes} if changes else {}
    flat |= {key.replace("__", "."): value for key, value in dotted.items()}
    flat = schema.flatten(schema.plain(schema.nested(flat)))
    schema.check_known(flat)
    config = schema.nested(schema.flatten(get_config()) | flat)
    return _config(schema.flatten(user_code.completed(config)))


def for_flags(config: ConfigDict) -> ConfigDict:
    """A copy in which keys that may be None, and are, have the type of their values, as
    flags require.

    >>> for_flags(get_config()).stop.get_type("target")
    <class 'float'>
    """
    flat = schema.flatten(schema.plain(config))
    for key, each in schema.all_settings(schema.nested(flat)).items():
        if each.optional and flat.get(key, each) is None:
            flat[key] = placeholder(each.kind)
    return ConfigDict(schema.nested(flat))


def load_config(run: Path | str) -> ConfigDict:
    """The config of a run, on top of the defaults for keys that it does not know.

    Args:
      run: the folder of a real or simulated run.

    Raises:
      RunDirError: the folder holds no run.
      ConfigError: the run was made by a version of asyn2f with other keys.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = Path(folder, "config.json").write_text('{"seed": 7, "task": {"alpha": 1}}')
    >>> config = load_config(folder)
    >>> config.seed, config.task.alpha, config.workers
    (7, 1.0, 5)
    """
    stored = rundir.read_json(rundir.as_folder(run) / rundir.CONFIG)
    flat = schema.flatten(schema.converted(stored))
    for key in flat:
        if not user_code.is_argument(key):  # its function may be missing here
            schema.check_key(key)
    return _config(schema.flatten(get_config()) | flat)


def with_references(
    config: ConfigDict, changes: Mapping[str, Any], folder: Path | None = None
) -> ConfigDict:
    """The config with other user-defined functions, and all of their arguments as keys.

    Args:
      config: whole.
      changes: references by dotted key; arguments of those that they replace go.
      folder: where modules are looked for as well: that of the config file.

    Raises:
      ConfigError: see `user_code.found_in`.
    """
    found = schema.converted(config)
    for key, value in changes.items():
        if key in user_code.ARGUMENTS and schema.flatten(found).get(key) != value:
            found = user_code.without_arguments(found, key)
        found = schema.changed(found, {key: value})
    if not changes and not user_code.references_in(found):
        return config
    if folder is not None and not found.get(user_code.CODE_PATH):
        found = schema.changed(found, {user_code.CODE_PATH: str(folder)})
    return _config(schema.flatten(user_code.completed(found)))


def _config(flat: Mapping[str, Any]) -> ConfigDict:
    config = schema.nested(flat)
    for prefix in user_code.ARGUMENTS.values():
        section, name, _ = prefix.split(".")
        config[section].setdefault(name, {})  # so that arguments can be assigned
    return _Section(config)
