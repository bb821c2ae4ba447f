"""References: user-defined functions that a config names.

`mypackage.mine:make_task` is a function in a module, installed or in one of the folders
of `config.code_path`; `path/mine.py:make_task` one in a file. A run's config keeps the
folders, so that every process of it, and a replay from anywhere, finds the same code;
the experiment's identity keeps `label` and digest of the sources instead of a path.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from asyn2f.config.sources import Sources, file_of, is_installed, sources_of
from asyn2f.errors import ConfigError, in_one_line

_EXAMPLES = "mypackage.mine:make_task or path/mine.py:make_task"


class Found(NamedTuple):
    """A function that a reference names.

    Attributes:
      label: the reference without folders, `mine:make_task`.
      module: the module's part of the label.
      function: what it names.
      reference: the reference that finds it from every working directory.
      folder: of `code_path` that it needs for that; None = it needs none.
      sources: the files that it depends on.
      digest: of these.
    """

    label: str
    module: str
    function: Callable[..., Any]
    reference: str
    folder: Path | None
    sources: Sources
    digest: str


def is_reference(value: Any) -> bool:
    """Whether a value has the form of a reference.

    >>> is_reference("mine:make_task"), is_reference("fedavg"), is_reference("mine:")
    (True, False, False)
    """
    module, _, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return bool(module) and name.isidentifier()


def label_of(reference: str) -> str:
    """The reference without folders: equal for equal code wherever it lies.

    >>> label_of("/home/me/mine.py:make_task"), label_of("mypackage.mine:make_task")
    ('mine:make_task', 'mypackage.mine:make_task')
    """
    module, _, name = reference.rpartition(":")
    return f"{_name_of(module)}:{name}"


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module


def _name_of(module: str) -> str:
    return Path(module).stem.replace(".", "_") if _is_file(module) else module


def resolve(
    reference: str, code_path: str = "", key: str = "reference"
) -> Callable[..., Any]:
    """The function that a reference names, see `find`."""
    return find(reference, code_path, key).function


def find(reference: str, code_path: str = "", key: str = "reference") -> Found:
    """Imports the module that a reference names; again, if its sources were edited.

    Args:
      reference: MODULE:FUNCTION or FILE.py:FUNCTION.
      code_path: folders in which to look, separated as in PYTHONPATH; the working
        directory and Python's own path follow.
      key: where the reference is from, for messages.

    Raises:
      ConfigError: there is no such module or function, or the module fails.
    """
    if not is_reference(reference):
        raise ConfigError(
            f"{key}: found {reference!r}, allowed: MODULE:FUNCTION, for example "
            f"{_EXAMPLES}"
        )
    here = [Path.cwd()] if os.path.exists(".") else []
    place: tuple[str | Path, ...] = (reference, code_path, *here)
    known = _found.get(place)
    if known is not None and known[0] == known[1].sources.stamp():
        return known[1]
    folders = [Path(os.path.abspath(x)) for x in code_path.split(os.pathsep) if x]
    found = _import(reference, folders, here, key)
    _found[place] = found.sources.stamp(), found
    return found


_found: dict[tuple[str | Path, ...], tuple[Any, Found]] = {}
_imported: set[str] = set()  # top modules that were imported here
_stamps: dict[Path, Any] = {}  # of the files that were imported, see `sources.stamp`


def _import(reference: str, folders: list[Path], here: list[Path], key: str) -> Found:
    module, _, name = reference.rpartition(":")
    file, folder = _locate(module, [*folders, *here], key)
    label = _name_of(module)
    sources = sources_of(label, file, folders)
    loaded = _load(module, file, [folder, *folders], sources, key)
    function = getattr(loaded, name, None)
    if function is None:
        names = [x for x, y in vars(loaded).items() if callable(y) and x[0] != "_"]
        near = difflib.get_close_matches(name, names, n=1)
        own = [x for x in names if getattr(loaded, x).__module__ == loaded.__name__]
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own[:9])}"
        if not names:
            hint = "it has no function at all"
        raise ConfigError(f"{key}: found {reference}, no {name} in {file}; {hint}")
    is_file, needs_none = _is_file(module), is_installed(folder)
    return Found(
        label=f"{label}:{name}",
        module=label,
        function=function,
        reference=f"{file}:{name}" if is_file else reference,
        folder=None if is_file or needs_none else folder,
        sources=sources,
        digest=sources.digest(),
    )


# ---------------------------------------------------------------- looking


def _locate(module: str, folders: list[Path], key: str) -> tuple[Path, Path]:
    """The file of a module, and the folder from which it is imported."""
    where = ", ".join(dict.fromkeys(map(str, folders)))
    if _is_file(module):
        own = Path(os.path.expanduser(module))
        for path in [own] if own.is_absolute() else [x / own for x in folders]:
            if path.is_file():
                return path, path.parent
        found = "is a folder" if own.is_dir() else f"does not exist in {where}"
        raise ConfigError(
            f"{key}: found {module}, which {found}; allowed: a file of Python, or a "
            f"module, for example {_EXAMPLES}"
        )
    parts = module.split(".")
    for folder in folders:
        if file := file_of(folder, parts):
            return file, folder
    where += " nor on Python's path"
    if origin := _origin(parts[0]):
        folder = origin.parents[int(origin.name == "__init__.py")]
        if file := file_of(folder, parts):
            return file, folder
        where = str(origin.parent if len(parts) > 1 else origin)
    raise ConfigError(
        f"{key}: found no module {module} in {where}; set config.code_path to the "
        "folder that holds it, or give the path of a file, path/mine.py:make_task"
    )


def _origin(top: str) -> Path | None:
    """The file of a top module that is installed."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    return Path(os.path.abspath(spec.origin))


# ---------------------------------------------------------------- importing


def _load(
    module: str, file: Path, folders: list[Path], sources: Sources, key: str
) -> ModuleType:
    """Imports a module, and again if its sources have changed since."""
    name = module
    if _is_file(module):  # files of one name may lie in several folders
        at = hashlib.sha256(str(file).encode()).hexdigest()[:8]
        name = f"_asyn2f_{_name_of(module)}_{at}"
    top = name.partition(".")[0]
    stamps = dict(zip(sources.files.values(), sources.stamp(), strict=True))
    is_edited = any(_stamps.get(path, now) != now for path, now in stamps.items())
    is_elsewhere = top in sys.modules and not _lies_in(sys.modules[top], folders[0])
    if is_elsewhere and top not in _imported:
        other = getattr(sys.modules[top], "__file__", "the interpreter")
        raise ConfigError(
            f"{key}: the module {top} of {other} is imported already, and hides "
            f"{file}; rename the latter"
        )
    if is_edited or is_elsewhere:
        _forget(sources)
    _stamps.update(stamps)
    if top not in sys.modules:
        _imported.add(top)
    computes = _computes()
    try:
        with _on_path(folders):
            if _is_file(module):
                found = _executed(name, file)
            else:
                found = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        _forget(sources)
        raise ConfigError(
            f"{key}: {module} cannot be imported: {in_one_line(error)}"
        ) from error
    if _computes() and not computes:
        raise ConfigError(
            f"{key}: {module} computes with JAX while it is imported, before threads "
            "and devices are set; make its arrays inside of functions, or with NumPy"
        )
    return found


def _lies_in(module: ModuleType, folder: Path) -> bool:
    places = [*getattr(module, "__path__", []), getattr(module, "__file__", None)]
    return any(folder in Path(os.path.abspath(x)).parents for x in places if x)


@contextlib.contextmanager
def _on_path(folders: list[Path]) -> Iterator[None]:
    """Puts folders before Python's path, as that of a script is, and afterwards last: a
    module imported later by some library is not taken from there."""
    names, before = [*dict.fromkeys(map(str, folders))], [*sys.path]
    sys.path[:0] = names
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [*before, *(name for name in names if name not in before)]


def _executed(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.machinery.SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    return found


def _forget(sources: Sources) -> None:
    """Forgets the modules of these sources, and those of their names elsewhere, so that
    they are imported anew."""
    files = {os.path.abspath(path) for path in sources.files.values()}
    tops = {name.partition(".")[0] for name in sources.files}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        is_own = name.partition(".")[0] in tops & _imported
        if is_own or (file is not None and os.path.abspath(file) in files):
            del sys.modules[name]
    _imported.difference_update(tops)
    for path in sources.files.values():
        _stamps.pop(path, None)


def _computes() -> bool:
    """Whether JAX has initialised its backends, in this process."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(getattr(bridge, "_backends", None))
