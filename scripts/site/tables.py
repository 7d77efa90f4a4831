"""Tables of words, which a phone shows row by row: each cell below the one before, under its column's name."""

from __future__ import annotations

import html
import re

__all__ = ["stacked"]

TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
HEAD = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)
ROW = re.compile(r"<tr>(.*?)</tr>", re.DOTALL)
CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
WORDY = 40
"""A table stays as it is if no cell has more characters: its numbers are read by columns."""


def stacked(content: str) -> str:
    """The page with each table of words marked for site.css, and its cells labelled."""
    return TABLE.sub(_mark, content)


def _mark(match: re.Match[str]) -> str:
    table = match[1]
    if all(len(_text(cell)) <= WORDY for _, cell in CELL.findall(table)):
        return match[0]
    labels = [_text(name) for name in HEAD.findall(table)]

    def labelled(row: re.Match[str]) -> str:
        column = iter(labels)
        return CELL.sub(lambda cell: f"<td{cell[1]}{_label(next(column, ''))}>{cell[2]}</td>", row[0])

    return f"<table data-stacked>{ROW.sub(labelled, table)}</table>"


def _text(cell: str) -> str:
    return html.unescape(TAG.sub("", cell)).strip()


def _label(name: str) -> str:
    return f' data-label="{html.escape(name)}"' if name else ""
