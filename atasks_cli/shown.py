"""Output of the commands that look at a fleet: tables in a terminal, plain text in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import click
import msgspec

__all__ = ["age", "clean", "escaped", "harmless", "in_terminal", "short", "show_json", "show_table"]

SHORT_ID = 12
"""Characters of an id in a terminal; any unique beginning of an id names the call."""
SPACE = 2
"""Between two columns."""
NARROW = SHORT_ID
"""A column is made no narrower: then a row becomes lines."""
PADDED = 100
"""A cell in a pipe is made no wider: else one odd name would make every row as long as it is."""


def in_terminal() -> bool:
    """Tell whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def show_json(value: Any) -> None:
    """One JSON document, in one line."""
    click.echo(harmless(msgspec.json.encode(value)))


def harmless(document: bytes) -> str:
    """A JSON document in one line, with numbers in the place of letters that a terminal would obey."""
    text = document.decode()
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under the names of their columns; in a terminal that is too narrow for them, each as lines of words."""
    cleaned = [[clean(cell) for cell in row] for row in rows]
    widths = [max(_cells(row[index]) for row in (columns, *cleaned)) for index in range(len(columns))]
    if in_terminal():
        import shutil  # for a terminal only

        room = shutil.get_terminal_size().columns
        _fold(widths, room)
        if sum(widths) + SPACE * (len(widths) - 1) > room:
            _show_lines(columns, cleaned, room)
            return
        if _show_rich(columns, cleaned, widths, room):
            return
    widths = [min(width, PADDED) for width in widths]
    for row in (columns, *cleaned):
        padded = (cell + " " * (width - _cells(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _fold(widths: list[int], room: int) -> None:
    """Make the widest columns narrower where there is no room; the others stay whole."""
    while sum(widths) + SPACE * (len(widths) - 1) > room and max(widths) > NARROW:
        widths[widths.index(max(widths))] -= 1


def _show_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> None:
    """Show what the first two columns have of a row in a line, and below it the other ones, each with its name."""
    for row in rows:
        click.echo("  ".join(filter(None, row[:2])))
        line = ""
        for column, cell in zip(columns[2:], row[2:], strict=True):
            word = f"{column.lower()} {cell}"
            if cell and line and _cells(f"{line}, {word}") > room - SPACE:
                click.echo(f"  {line}")
                line = ""
            if cell:
                line = f"{line}, {word}" if line else word
        if line:
            click.echo(f"  {line}")


def _show_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], room: int) -> bool:
    """Show the table by rich. Returns False if rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=room, highlight=False).print(table)
    return True


def _cells(text: str) -> int:
    """The columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        (unicodedata.east_asian_width(letter) in "WF") + (not unicodedata.combining(letter)) for letter in text
    )


def clean(text: str) -> str:
    """Text that comes from elsewhere, without what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def escaped(content: bytes) -> str:
    """Bytes as text that no terminal obeys, in one line: what is not printable is escaped, as Python does it."""
    text = content.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def short(call_id: str) -> str:
    """An id, cut in a terminal."""
    return call_id[:SHORT_ID] if in_terminal() else call_id


def age(seconds: float | None) -> str:
    """A time, with its two largest units at most."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"
