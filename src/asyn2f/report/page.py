"""A self-contained HTML page: figures with headings, and what is around them."""

import base64
import functools
import gzip
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any, NamedTuple

import plotly.graph_objects as go
import plotly.io
import plotly.offline

import asyn2f
from asyn2f.report import theme

_BETWEEN_PX = 84  # an axis, its title and a gap


class Section(NamedTuple):
    """A figure with a heading and a sentence on how to read it."""

    name: str
    title: str
    how_to_read: str
    figure: go.Figure | None
    without: str  # shown if there is no figure
    above: str = ""  # HTML between the sentence and the figure
    half: bool = False  # half as wide as the page
    min_px: int = 0  # of the figure's width; it scrolls on narrower screens


def to_page(
    title: str, *, head: str, sections: Sequence[Section], tail: str = ""
) -> str:
    """The page as HTML.

    Args:
      title: plain text.
      head: HTML above the sections.
      sections: from top to bottom.
      tail: HTML of sections below them.
    """
    drawn = {s.name: s.figure for s in sections if s.figure is not None}
    body = "\n".join([*map(_section, sections), tail])
    foot = f"<footer>Written by asyn2f {escape(asyn2f.__version__)}.</footer>"
    return Template(_static("page.html")).substitute(
        title=escape(title),
        style=theme.css() + _static("report.css"),
        body=f'{head}<div class="sections">{body}</div>{foot}',
        library=_packed_once(plotly.offline.get_plotlyjs()),
        figures=_packed(_as_json(drawn)),
        script='"use strict";\n' + _static("legends.js") + _static("report.js"),
    )


def table(head: Sequence[str], rows: str, *, said: bool = False) -> str:
    """A table that scrolls where it is too wide.

    Args:
      head: titles of the columns.
      rows: HTML.
      said: whether the last column holds text.
    """
    titles = "".join(f"<th>{title}</th>" for title in head[: len(head) - said])
    titles += f'<th class="said">{head[-1]}</th>' if said else ""
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def share_bar(parts: Iterable[tuple[str, float]]) -> str:
    """A small bar of parts, each a CSS class or colour and its share of the whole."""
    inner = "".join(
        f'<i style="width:{100 * min(share, 1):.1f}%;background:{look}"></i>'
        if look.startswith("var(")
        else f'<i class="{look}" style="width:{100 * min(share, 1):.1f}%"></i>'
        for look, share in parts
    )
    return f'<span class="share">{inner}</span>'


def _section(section: Section) -> str:
    save = f'<button class="save" data-of="{section.name}">save</button>'
    inner = f'<div id="{section.name}"></div>'
    if section.min_px:
        inner = f'<div id="{section.name}" style="min-width:{section.min_px}px"></div>'
        inner = f'<div class="scroll">{inner}</div>'
    inner = f'<div class="legend" id="{section.name}-legend"></div>{inner}'
    if section.figure is None:
        inner, save = f'<p class="empty">{escape(section.without)}</p>', ""
    return (
        f'<section class="{"half" if section.half else "whole"}">'
        f"{save}<h2>{escape(section.title)}</h2><p>{escape(section.how_to_read)}</p>"
        f"{section.above}{inner}</section>"
    )


@functools.cache
def _static(name: str) -> str:
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


def _packed(text: str) -> str:
    """Compressed to two fifths: gzip in base64, for DecompressionStream."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


_packed_once = functools.lru_cache(maxsize=1)(_packed)


def _as_json(drawn: dict[str, go.Figure]) -> str:
    """Figures and themes as JSON."""
    for figure in drawn.values():
        figure.layout.template = None
    parts = ", ".join(
        f"{json.dumps(name)}: {plotly.io.to_json(figure, validate=False)}"
        for name, figure in drawn.items()
    )
    themes = {
        name: theme.template(dark=name == "dark").to_plotly_json()
        for name in ("light", "dark")
    }
    rest = json.dumps({"themes": themes, "dark": theme.DARK, "top": theme.TOP_PX})
    return f'{{"figures": {{{parts}}}, {rest[1:]}'


def stacked(count: int, height: int) -> dict[str, Any]:
    """Changes to a layout that stack its panels in a column.

    Args:
      count: panels, which have the axes x, x2, ... and y, y2, ...
      height: pixels of a panel with its axis.

    >>> stacked(2, 300)["xaxis2"]["domain"]
    [0.0, 1.0]
    """
    changes: dict[str, Any] = {"height": count * height}
    gap = _BETWEEN_PX / (count * height)
    each = (1 - (count - 1) * gap) / count
    for place in range(count):
        number = str(place + 1) if place else ""
        top = 1 - place * (each + gap)
        changes[f"xaxis{number}"] = {"domain": [0.0, 1.0]}
        changes[f"yaxis{number}"] = {
            "domain": [max(top - each, 0.0), top],
            "showticklabels": True,
        }
    return changes
