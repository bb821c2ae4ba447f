"""A page that needs nothing else: figures with headings, and what is around them."""

import base64
import functools
import gzip
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
import plotly.io
import plotly.offline

import asyn2f
from asyn2f.report import page, theme

_SCRIPTS = ("legends.js", "timeline.js", "page.js")


class Section(NamedTuple):
    """A figure with a heading and one sentence on how to read it."""

    name: str
    title: str
    how_to_read: str
    figure: go.Figure | None
    without: str  # what to say where there is no figure
    above: str = ""  # HTML between sentence and figure
    half: bool = False  # half as wide as the page
    least_px: int = 0  # of the figure's width; where there is less, it scrolls


def to_page(
    title: str, *, head: str, sections: Sequence[Section], tail: str = ""
) -> str:
    """The page as HTML.

    Args:
      title: plain text.
      head: HTML above the sections.
      sections: one below the other.
      tail: HTML of sections below them.
    """
    drawn = {s.name: s.figure for s in sections if s.figure is not None}
    body = "\n".join([*map(_section, sections), tail])
    return page.FRAME.substitute(
        title=escape(title),
        style=theme.css() + page.STYLE,
        body=f'{head}<div class="sections">{body}</div>{_foot()}',
        library=_packed_once(plotly.offline.get_plotlyjs()),
        figures=_packed(_as_json(drawn)),
        script=_script(),
    )


def _section(section: Section) -> str:
    inner = f'<div id="{section.name}"></div>'
    if section.least_px:
        inner = (
            f'<div id="{section.name}" style="min-width:{section.least_px}px"></div>'
        )
        inner = f'<div class="scroll">{inner}</div>'
    inner = f'<div class="legend" id="{section.name}-legend"></div>{inner}'
    save = f'<button class="save" data-of="{section.name}">save</button>'
    if section.figure is None:
        inner, save = f'<p class="empty">{escape(section.without)}</p>', ""
    return (
        f'<section class="{"half" if section.half else "whole"}">'
        f"{save}<h2>{escape(section.title)}</h2><p>{escape(section.how_to_read)}</p>"
        f"{section.above}{inner}</section>"
    )


def _foot() -> str:
    return f"<footer>Written by asyn2f {escape(asyn2f.__version__)}.</footer>"


def _script() -> str:
    parts = (Path(__file__).with_name(name) for name in _SCRIPTS)
    texts = (part.read_text(encoding="utf-8") for part in parts)
    return "\n".join(['"use strict";', *texts])


def _packed(text: str) -> str:
    """A text at two fifths of its size: gzip in base64, for DecompressionStream."""
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
