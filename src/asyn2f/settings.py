"""Settings as fields of frozen dataclasses: default, range and documentation, once.

    @dataclass(frozen=True, kw_only=True)
    class Training:
        momentum: float = setting(0.9, "of SGD (the paper's)", at_least=0, below=1)

The default config, the checks of a config, the help of its flags and docs/config.md are
derived from these fields, see `asyn2f.config`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from asyn2f.errors import ConfigError

T = TypeVar("T")
_SAME: Any = object()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of one setting.

    Attributes:
      kind: int, float, bool, str, or tuple; a list of JSON is a tuple here.
      item: of a tuple, what each of its items is; of a str, Path where a function takes
        it as a path.
      default: of the config.
      doc: what it means, in a sentence without a full stop.
      unit: of numbers.
      options: the allowed values; None = any in range.
      at_least, above, at_most, below: the range of a number, or of each in a tuple.
      allowed: the allowed values in words, where `holds` decides; beside `options`, the
        further ones.
      holds: whether a value of the right type is allowed; beside `options`, whether one
        outside of these is.
      at_root: whether its key is `name` instead of `section.name`.
      is_path: whether a value is the path of a file or folder.
      optional: whether a value may be None.
      may_be_empty: whether a tuple may be.
    """

    kind: type
    item: type = object
    default: Any
    doc: str = ""
    unit: str = ""
    options: Collection[str] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    allowed: str = ""
    holds: Callable[[Any], bool] | None = None
    at_root: bool = False
    is_path: Callable[[str], bool] | None = None
    optional: bool = False
    may_be_empty: bool = False

    def problem_of(self, value: Any) -> str:
        """What is wrong with a value, and what is allowed; "" if it is valid.

        >>> Setting(kind=float, default=0.5, above=0, at_most=1).problem_of(2)
        'found 2, allowed: (0, 1]'
        """
        if value is None and self.optional:
            return ""
        if not fits(self.kind, value):
            words = [_IN_WORDS.get(self.kind, ""), self.range_in_words()]
            words += ["or None"] if self.optional else []
            allowed = ", ".join(filter(None, words))
            if self.kind is tuple:
                allowed = self.in_words()
            return f"found {value!r}, allowed: {allowed}"
        if self.kind is tuple:
            is_valid = (len(value) > 0 or self.may_be_empty) and all(
                fits(self.item, each) and self._is_in_range(each) for each in value
            )
        else:
            is_valid = self._is_in_range(value)
        return "" if is_valid else f"found {value!r}, allowed: {self.in_words()}"

    def _is_in_range(self, value: Any) -> bool:
        if self.options is not None:
            is_other = self.holds is not None and self.holds(value)
            return value in self.options or is_other
        if self.holds is not None:
            return self.holds(value)
        if isinstance(value, str | bool):
            return True
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and abs(value) < math.inf
        )

    def in_words(self) -> str:
        """The allowed values in words.

        >>> Setting(kind=tuple, item=int, default=(1,), at_least=1).in_words()
        'a list, each at least 1'
        """
        if self.kind is tuple:
            each = self.range_in_words() or _IN_WORDS[self.item]
            return f"a list, each {each}" + "; or ()" * self.may_be_empty
        words = self.range_in_words() or _IN_WORDS[self.kind]
        return f"{words}, or None" if self.optional else words

    def range_in_words(self) -> str:
        """The range in words, without the type; "" = any value of the type."""
        if self.options is not None:
            one = "one of " + ", ".join(map(str, self.options))
            return f"{one}; or {self.allowed}" if self.allowed else one
        if self.allowed:
            return self.allowed
        low, high = _first(self.at_least, self.above), _first(self.at_most, self.below)
        is_open = self.above is not None
        if high is not None:
            first, last = "(" if is_open else "[", "]" if self.below is None else ")"
            return f"{first}{low:g}, {high:g}{last}"
        if low is None:
            return ""
        return f"above {low:g}" if is_open else f"at least {low:g}"


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


_IN_WORDS: dict[type, str] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    object: "anything",
}


def fits(kind: type, value: Any) -> bool:
    """Whether a value is of a type, as configs have them: an int is a float, too.

    >>> fits(float, 1), fits(int, True), fits(tuple, [1])
    (True, False, True)
    """
    if kind is bool or not isinstance(value, bool):
        types: Any = {float: int | float, tuple: list | tuple}.get(kind, kind)
        return isinstance(value, types)
    return False


def setting(default: T, doc: str, *, config: T = _SAME, **rest: Any) -> T:
    """A field of a dataclass of settings.

    Args:
      default: of the field.
      doc: see `Setting`.
      config: the default of the config, where it is another than that of the field. A
        `Stop()` never ends a run, for example, but the default experiment ends.
      **rest: further attributes of `Setting`; type and options follow from the field's
        annotation.
    """
    rest |= {"doc": doc, "default": default if config is _SAME else config}
    field: Any = dataclasses.field(default=default, metadata={"setting": rest})
    return field


@functools.cache
def settings_of(kind: type) -> dict[str, Setting]:
    """The settings of a dataclass by name; fields made otherwise are left out.

    >>> from asyn2f.timing import Stop
    >>> settings_of(Stop)["max_time_s"].in_words()
    'at least 0'
    """
    hints = get_type_hints(kind)
    return {
        field.name: of_annotation(hints[field.name], **field.metadata["setting"])
        for field in dataclasses.fields(kind)
        if "setting" in field.metadata
    }


def of_annotation(annotation: Any, **rest: Any) -> Setting:
    """A setting of the type in an annotation.

    >>> of_annotation(Literal["a", "b"], default="a").options
    ('a', 'b')
    >>> of_annotation(float | None, default=None).in_words()
    'a number, or None'
    """
    origin, items = get_origin(annotation), get_args(annotation)
    if type(None) in items:
        (inner,) = (item for item in items if item is not type(None))
        return of_annotation(inner, **rest, optional=True)
    if origin is Annotated:
        for each in items[1:]:
            if isinstance(each, Range):
                bounds = each._asdict().items()
                rest |= {name: bound for name, bound in bounds if bound is not None}
        return of_annotation(items[0], **rest)
    if origin is Literal:
        rest = {"options": items} | rest
        return Setting(kind=type(items[0]), **rest)
    if origin is tuple:
        return Setting(kind=tuple, item=items[0], **rest)
    if annotation is Path:
        return Setting(kind=str, item=Path, is_path=bool, **rest)
    return Setting(kind=annotation, **rest)


class Range(NamedTuple):
    """The range of an argument that is a number, or of each number in a tuple.

    def make_task(*, dropout: Annotated[float, Range(at_least=0, below=1)] = 0.1): ...
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None


def check(settings: Any) -> None:
    """Checks each setting of a dataclass on its own.

    Raises:
      ValueError: one is out of range; begins with its name.
    """
    kind: Any = type(settings)
    for name, each in settings_of(kind).items():
        if problem := each.problem_of(getattr(settings, name)):
            raise ValueError(f"{name}: {problem}")


def check_type(name: str, value: Any, kind: type, hint: str) -> None:
    """Checks the type of what a caller passes as an argument.

    Raises:
      ConfigError: another type; with the hint, or with the call of a function.

    >>> check_type("strategy", dict, Range, "Range() makes one")
    Traceback (most recent call last):
    asyn2f.errors.ConfigError: strategy: found the function dict, allowed: a Range; \
call it: strategy=dict(...)
    """
    if isinstance(value, kind):
        return
    found = f"{value!r:.60}"
    if callable(value):
        called = getattr(value, "__name__", type(value).__name__)
        found, hint = f"the function {called}", f"call it: {name}={called}(...)"
    elif hasattr(value, "_fields"):
        found = _with_article(type(value))
    raise ConfigError(f"{name}: found {found}, allowed: {_with_article(kind)}; {hint}")


def _with_article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
