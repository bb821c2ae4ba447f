"""The keys of a config for people: docs/config.md, and the help of the programs."""

import inspect
import textwrap
from typing import Any, NamedTuple

from asyn2f.config import schema, user_code
from asyn2f.settings import Setting
from asyn2f.strategies import BUILDERS

_HEAD = """# Config keys

<!-- Made by `python -m asyn2f.config.reference > docs/config.md`. -->

Every key is a flag of the programs (`--config.training.momentum=0.8`) and an argument
of `asyn2f.default_config` (`training__momentum=0.8`). The parameters that a run makes
depend on `seed`, `workers`, `share` and the sections `task`, `training`, `strategy`,
`timing`, `guards`, `privacy` and `wire`; the other keys say when a run ends and how it
is carried out.

`task.factory` and `strategy.name` may name a function of your own,
`mypackage.mine:make` or `path/mine.py:make`. Its arguments are then the keys
`task.args.*` and `strategy.args.*`, with the types, ranges and defaults of its
signature, see [your_own_code.md](your_own_code.md#arguments) and
[your_own_strategy.md](your_own_strategy.md). The keys `task.dataset` to
`task.class_weights` are arguments of the built-in task alone.
"""


class Section(NamedTuple):
    """Keys that are listed together."""

    title: str
    doc: str
    settings: dict[str, Setting]  # by dotted key


def sections(config: schema.Config | None = None) -> list[Section]:
    """All keys: those at the root, then section by section, each strategy by itself,
    and the arguments of the functions that a config names."""
    kinds: dict[str, Any] = {name: each[0] for name, each in schema.SECTIONS.items()}
    kinds |= {f"strategy.{name}": builder for name, builder in BUILDERS.items()}
    for key, function in user_code.found_in(config or {}).items():
        kinds[user_code.ARGUMENTS[key].rstrip(".")] = function.function
    found = {name: Section(name, _doc(kind), {}) for name, kind in kinds.items()}
    for key, each in schema.all_settings(config).items():
        found[key.rpartition(".")[0]].settings[key] = each
    order = sorted(found, key=lambda name: [*schema.SECTIONS].index(name.split(".")[0]))
    return [found[name] for name in order]


def _doc(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def page() -> str:
    """The reference page, in Markdown."""
    lines = [_HEAD]
    for title, doc, settings in sections():
        lines += [f"## {title or 'At the root'}", "", doc, ""]
        if settings:
            head = "| key | default | unit | allowed | meaning |"
            lines += [head, "|---|---|---|---|---|"]
        for key, each in settings.items():
            cells = [f"`{key}`", f"`{value_text(each.default)}`", each.unit]
            row = " | ".join([*cells, each.in_words(), each.doc])
            lines.append(f"| {row} |".replace("  ", " "))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def flags_help(config: schema.Config | None = None) -> str:
    """The flags `--config.KEY` with default, meaning and range, for `--helpfull`."""
    lines = []
    for _, doc, settings in sections(config):
        lines += ["", doc] if settings else []
        for key, each in settings.items():
            lines.append(f"  --config.{key}={value_text(each.default)}")
            unit = f" [{each.unit}]" if each.unit else ""
            text = "; ".join(filter(None, [f"{each.doc}{unit}", each.in_words()]))
            lines += textwrap.wrap(
                text, 80, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines)


def value_text(value: Any) -> str:
    """A value as it stands on a command line.

    >>> value_text(0.1), value_text((16, 32)), value_text("")
    ('0.1', '(16,32)', "''")
    """
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return f"({','.join(map(str, value))}{comma})"
    return str(value) if value != "" else "''"


if __name__ == "__main__":
    print(page(), end="")
