"""The arguments of a function as settings of a config."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from asyn2f.settings import Range as Range
from asyn2f.settings import Setting, of_annotation

_ALLOWED = (
    "float, int, bool, str, Path, tuple[int, ...] (or of float or str), Literal[...], "
    "Annotated[..., asyn2f.Range(...)] of these, and ... | None"
)


def of_signature(
    function: Callable[..., Any], filled: Collection[str] = (), *, strict: bool = True
) -> dict[str, Setting]:
    """The arguments of a function as settings, documented by its docstring.

    Args:
      function: each argument has a default, and an annotation or a default whose type
        is one.
      filled: names of arguments that are no settings, as the caller fills them in.
      strict: otherwise an argument of another type has that of its default, and is left
        out if there is none: for functions of libraries.

    Raises:
      TypeError: an argument has no default, or is of a type that no config has.

    >>> def make(*, width: Annotated[int, Range(at_least=1)] = 8, rate=0.5): ...
    >>> [(name, each.in_words()) for name, each in of_signature(make).items()]
    [('width', 'at least 1'), ('rate', 'a number')]
    """
    return dict(_of_signature(function, tuple(filled), strict))


@functools.lru_cache(maxsize=256)
def _of_signature(
    function: Callable[..., Any], filled: tuple[str, ...], strict: bool
) -> dict[str, Setting]:
    try:
        signature = inspect.signature(function, eval_str=strict)
    except (NameError, AttributeError) as error:
        raise TypeError(f"an annotation cannot be evaluated: {error}") from None
    docs, found = argument_docs(function), {}
    for name, parameter in signature.parameters.items():
        if name in filled:
            continue
        default, kind = parameter.default, parameter.annotation
        if kind is parameter.empty or (not strict and not _is_kind(kind)):
            kind = _kind_of(default)
        problem = _problem_of(parameter, kind)
        if problem and strict:
            raise TypeError(problem)
        if not problem:
            each = of_annotation(kind, default=None, doc=docs.get(name, ""))
            if each.kind is float and default is not None:
                default = float(default)
            if each.kind is str and isinstance(default, Path):
                default = str(default) if default.parts else ""
            found[name] = dataclasses.replace(each, default=default)
    return found


def _problem_of(parameter: inspect.Parameter, kind: Any) -> str:
    """Why an argument of this type is no setting; "" if it is one."""
    if parameter.kind not in (
        parameter.KEYWORD_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
    ):
        return f"argument {parameter}: allowed are arguments that have a name"
    if parameter.default is parameter.empty:
        return f"argument {parameter.name} has no default; each needs one"
    if not _is_kind(kind):
        return (
            f"argument {parameter.name}: found annotation {kind!r} and default "
            f"{parameter.default!r:.60}, allowed: {_ALLOWED}"
        )
    return ""


def _kind_of(default: Any) -> Any:
    """The annotation that a default stands for."""
    if isinstance(default, Path):
        return Path
    if isinstance(default, tuple) and len({type(item) for item in default}) == 1:
        return tuple[type(default[0]), ...]  # type: ignore[misc]
    return type(default)


def _is_kind(kind: Any) -> bool:
    origin, items = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_kind(items[0])
    if type(None) in items and len(items) == 2:
        return all(_is_kind(item) for item in items if item is not type(None))
    if origin is Literal:
        return len({type(item) for item in items}) == 1
    if origin is tuple:
        return len(items) == 2 and items[0] in (int, float, str) and items[1] is ...
    return kind in (float, int, bool, str, Path)


def argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """What the section `Args:` of a docstring says of each argument."""
    lines = inspect.getdoc(function) or ""
    _, _, section = lines.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)|\n\n", section)[0]
    entries = re.split(r"^ {2}(?=\w)", section, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for entry in entries:
        names, _, text = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), text.rstrip("."))
    return found


def as_arguments(settings: dict[str, Setting], values: dict[str, Any]) -> dict:
    """The arguments for a call, of the values in a config: lists become tuples, and
    paths `Path`."""

    def converted(each: Setting, value: Any) -> Any:
        if each.item is Path and each.kind is str and value is not None:
            return Path(value)
        return tuple(value) if each.kind is tuple and value is not None else value

    return {
        name: converted(each, values.get(name, each.default))
        for name, each in settings.items()
    }
