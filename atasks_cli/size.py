"""Sizes in bytes on the command line."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["Size", "shown_size"]

MAX_SIZE = 2**60
"""An exbibyte: more is a mistake."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class Size(click.ParamType[int]):
    """A number of bytes: `500M`, `1.5G`, `65536`. K, M and G are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", str(value).strip(), re.IGNORECASE)
        size = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
        if not 1 <= size <= MAX_SIZE:
            self.fail(
                f"{str(value)[:40]!r} is no size: give bytes, or a number with K, M or G, like 500M", param, ctx
            )
        return int(size)


def shown_size(size: int) -> str:
    """For people to read: in the largest unit of which it has at least one, with up to one decimal."""
    unit = max((unit for unit in UNITS if UNITS[unit] <= size), key=UNITS.__getitem__, default="")
    return f"{size / UNITS[unit]:.1f}".removesuffix(".0") + unit
