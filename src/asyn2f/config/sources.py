"""The sources that a function depends on: its module, and what that imports from the
same top package or folder, found without executing anything."""

import ast
import functools
import hashlib
import site
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_OWN = "asyn2f"  # which has a digest of its own


class Sources(NamedTuple):
    """The files of a function's sources.

    Attributes:
      root: the folder that holds the top package, or the module.
      files: by dotted name of the module.
    """

    root: Path
    files: dict[str, Path]

    def digest(self) -> str:
        """A digest of names and contents, whatever folder the files lie in and however
        their lines end."""
        found = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            content = path.read_bytes().replace(b"\r\n", b"\n")
            found.update(f"{name} {hashlib.sha256(content).hexdigest()};".encode())
        return found.hexdigest()[:16]

    def stamp(self) -> tuple[tuple[int, int] | None, ...]:
        """Size and time of change of each file: the same until one is edited."""
        return tuple(map(_stamp, self.files.values()))


def sources_of(name: str, file: Path, others: Sequence[Path] = ()) -> Sources:
    """The sources of a module.

    Modules that other modules of the same top package or folder import count, wherever
    in them the import stands; what a name is computed for at run time does not. In a
    folder of installed packages only the top package counts.

    Args:
      name: its dotted name; without a dot, the name of its file is not used.
      file: of the module.
      others: folders whose modules count as well.
    """
    depth = name.count(".") + (file.name == "__init__.py")
    root = file.parents[depth]
    top = name.partition(".")[0] if is_installed(root) else None
    files: dict[str, Path] = {}
    missing = [(name, file), *_packages(root, name.split("."))]
    while missing:
        module, path = missing.pop()
        if module in files:
            continue
        files[module] = path
        for imported in _imports(path, module, _stamp(path)):
            parts = imported.split(".")
            if parts[0] == _OWN or (top is not None and parts[0] != top):
                continue
            for folder in (root, *others):
                missing += [(n, f) for n, f in _packages(folder, parts) if f != file]
    return Sources(root, files)


def _packages(root: Path, parts: list[str]) -> Iterator[tuple[str, Path]]:
    """The modules under `root` that importing a.b.c executes: a, a.b and a.b.c."""
    for count in range(1, len(parts) + 1):
        path = file_of(root, parts[:count])
        if path is not None:
            yield ".".join(parts[:count]), path


def file_of(root: Path, parts: list[str]) -> Path | None:
    """The file of a module, if it lies under `root`."""
    base = root.joinpath(*parts)
    for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if path.is_file():
            return path
    return None


@functools.cache
def _installed() -> frozenset[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [*map(sysconfig.get_path, names), *site.getsitepackages()]
    folders.append(site.getusersitepackages())
    return frozenset(Path(folder).resolve() for folder in folders)


def is_installed(root: Path) -> bool:
    """Whether a folder holds installed packages: every process finds them."""
    return root.resolve() in _installed()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=2048)
def _imports(path: Path, module: str, stamp: object) -> tuple[str, ...]:
    """The dotted names that a module may import. `from a import b` may import a.b."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # which importing it will report; or no Python
        return ()
    package = module.split(".")
    if path.name != "__init__.py":
        package.pop()
    return tuple(dict.fromkeys(_names(tree, package)))


def _names(tree: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            kept = max(len(package) + 1 - node.level, 0) if node.level else 0
            above = package[:kept]
            base = [*above, *(node.module or "").split(".")]
            base = [part for part in base if part]
            if base:
                yield ".".join(base)
            for alias in node.names:
                if alias.name != "*":
                    yield ".".join([*base, alias.name])
