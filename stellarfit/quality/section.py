"""A part of the page: sentences, a picture with words for those who do not see it, tables; as HTML.

All text is escaped here, so that no name in a catalogue can become markup.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH = 5.2
"""Of a picture [inches], so that its letters can be read on a phone."""
_DPI = 200  # sharp on paper, and on a screen of twice the usual pixels


class Table(NamedTuple):
    """A caption, the names of the columns, and rows of text, of which the first heads its row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    """Columns that hold words and not numbers, besides the first."""


class Picture(NamedTuple):
    """A PNG, with what it shows in words."""

    png: bytes
    alt: str


class Section(NamedTuple):
    """A titled part of the page: sentences, pictures, tables."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def draw(figure: Any, alt: str, dpi: int = _DPI) -> Picture:
    """A matplotlib figure as a picture of the page, with words for it, at some dots an inch."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return Picture(file.getvalue(), alt)


def anchor(section: Section) -> str:
    """The section's name in links."""
    words = "".join(c if c.isalnum() else " " for c in section.title.lower()).split()
    return "-".join(words)


def section_html(section: Section) -> str:
    """The section as HTML."""
    name = anchor(section)
    lines = [f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{escape(section.title)}</h2>']
    lines += [f"<p>{escape(text)}</p>" for text in section.text]
    lines += [_picture_html(picture) for picture in section.pictures]
    lines += [_table_html(table) for table in section.tables]
    return "\n".join([*lines, "</section>"])


def _picture_html(picture: Picture) -> str:
    width, height = (int.from_bytes(picture.png[i : i + 4], "big") for i in (16, 20))
    source = "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" '
        f'alt="{escape(picture.alt)}"></figure>'
    )


def _table_html(table: Table) -> str:
    words = [' class="words"' if i in table.words else "" for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{word}>{escape(text)}</th>'
        for text, word in zip(table.columns, words, strict=True)
    )
    body = "\n".join(f"<tr>{_cells(row, words)}</tr>" for row in table.rows)
    # A wide table scrolls by itself, also by keyboard, so that the page never scrolls sideways.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">\n'
        f"<table>\n<caption>{escape(table.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cells(row: Sequence[str], words: Sequence[str]) -> str:
    others = (
        f"<td{word}>{escape(text)}</td>" for text, word in zip(row[1:], words[1:], strict=True)
    )
    return "".join([f'<th scope="row">{escape(row[0])}</th>', *others])
