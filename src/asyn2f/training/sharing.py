"""Which leaves of a model travel, and which stay with their worker.

Everything that is exchanged (versions, updates, their codings and templates) consists
of the *shared* part; the *kept* part is in the states of workers alone. Both are trees
of the model's structure, with None where a leaf belongs to the other one.
"""

import re
from typing import Any, NamedTuple

import jax

from asyn2f.errors import ShareError
from asyn2f.tasks.base import Init
from asyn2f.types import Params

PATTERN = (
    "names separated by /, where * is any characters of a name, ? one, and ** any "
    "number of names; behind a ! if they stay"
)
"""What a pattern is, in words."""
_MOST_SHOWN = 12


class Sharing(NamedTuple):
    """The partition of a model into a shared and a kept part."""

    mask: Any = None  # the model's tree of bool: whether a leaf travels; None = all do

    @property
    def is_whole(self) -> bool:
        """Whether everything travels."""
        return self.mask is None

    def shared(self, params: Params) -> Params:
        """The part of a model that travels: the model itself if everything does.

        >>> params = {"body": {"w": 1}, "head": {"w": 2}}
        >>> sharing_of(params, ("body/**",)).shared(params)
        {'body': {'w': 1}, 'head': {'w': None}}
        """
        return params if self.is_whole else self._part(params, True)

    def kept(self, params: Params) -> Params:
        """The part of a model that stays: () if everything travels.

        >>> params = {"body": {"w": 1}, "head": {"w": 2}}
        >>> sharing_of(params, ("body/**",)).kept(params)
        {'body': {'w': None}, 'head': {'w': 2}}
        """
        return () if self.is_whole else self._part(params, False)

    def whole(self, shared: Params, kept: Params) -> Params:
        """The model of both parts.

        >>> params = {"body": {"w": 1}, "head": {"w": 2}}
        >>> sharing = sharing_of(params, ("body/**",))
        >>> sharing.whole(sharing.shared(params), sharing.kept(params)) == params
        True
        """
        if self.is_whole:
            return shared
        parts = {True: shared, False: kept}
        leaves = {key: iter(jax.tree.leaves(part)) for key, part in parts.items()}
        return jax.tree.map(lambda travels: next(leaves[travels]), self.mask)

    def _part(self, params: Params, wanted: bool) -> Params:
        def choose(travels: bool, leaf: Any) -> Any:
            return leaf if travels == wanted else None

        return jax.tree.map(choose, self.mask, params)


EVERYTHING = Sharing()
NOTHING = ("!**",)
"""Patterns by which nothing travels: every worker learns for itself."""


def sharing_of(shapes: Params, patterns: tuple[str, ...]) -> Sharing:
    """The partition of models of these shapes.

    Args:
      shapes: of the whole model; values are not read.
      patterns: of the paths of the leaves that travel, as `params/body/Dense_0/kernel`.
        `*` is any characters of a name, `?` is one, `**` any number of names. What a
        pattern after `!` matches stays; if all are such, the rest travels. () =
        everything travels; `NOTHING` = nothing does.

    Raises:
      ShareError: a pattern is malformed or matches nothing, or no leaf travels; begins
        with `share`.

    >>> params = {"params": {"body": 1, "head": 2}, "batch_stats": {"mean": 3}}
    >>> sharing_of(params, ("params/**",)).mask
    {'batch_stats': {'mean': False}, 'params': {'body': True, 'head': True}}
    >>> sharing_of(params, ("**", "!params/head")).kept(params)
    {'batch_stats': {'mean': None}, 'params': {'body': None, 'head': 2}}
    >>> sharing_of(params, ("params/bodi",))
    Traceback (most recent call last):
    asyn2f.errors.ShareError: share: found 'params/bodi', which matches none of the \
model's 3 leaves: batch_stats/mean, params/body, params/head
    """
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ShareError(f"share: found {pattern!r}, allowed: {PATTERN}")
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    # Of patterns of what stays alone, the rest travels.
    mask = [all(pattern.startswith("!") for pattern in patterns)] * len(paths)
    for pattern in sorted(patterns, key=lambda pattern: pattern.startswith("!")):
        match = _expression(pattern.removeprefix("!")).fullmatch
        found = [match(f"/{path}") is not None for path in paths]
        if not any(found):
            raise ShareError(
                f"share: found {pattern!r}, which matches none of the model's "
                f"{len(paths)} leaves: {_in_words(paths)}"
            )
        travels = not pattern.startswith("!")
        mask = [travels if x else before for x, before in zip(found, mask, strict=True)]
    if all(mask):
        return EVERYTHING
    if not any(mask) and patterns != NOTHING:
        raise ShareError(
            f"share: found {patterns!r}, which shares nothing; the model's leaves: "
            f"{_in_words(paths)}"
        )
    return Sharing(jax.tree.unflatten(treedef, mask))


def check_share(init: Init, patterns: tuple[str, ...]) -> None:
    """Checks the patterns on the shapes of a model, without computing anything. Raises
    as `sharing_of`."""
    if patterns:
        sharing_of(jax.eval_shape(lambda: init(jax.random.key(0))), patterns)


def is_pattern(text: str) -> bool:
    """Whether it is well-formed.

    >>> [is_pattern(x) for x in ("params/**/kernel", "!params/head_?/*", "params/bo**")]
    [True, True, False]
    """
    names = text.removeprefix("!").split("/")
    wrong = set("[]{}!\\")
    return all(x == "**" or (x and "**" not in x and not wrong & {*x}) for x in names)


def _expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, for paths that begin with a slash."""
    text = ""
    for name in pattern.split("/"):
        if name == "**":
            text += "(?:/[^/]+)*"
        else:
            one = re.escape(name).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            text += f"/{one}"
    return re.compile(text)


def _in_words(paths: list[str]) -> str:
    shown = ", ".join(paths[:_MOST_SHOWN])
    rest = len(paths) - _MOST_SHOWN
    return shown + (f" and {rest} more" if rest > 0 else "")
