"""Times and other numbers on the command line."""

from __future__ import annotations

import math
import re
from typing import Any

import click

__all__ = ["Finite", "Seconds"]

UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Seconds(click.ParamType[float]):
    """A number of seconds: `60`, `60s`, `1.5m`, `2h`, `1d`, `200ms`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(ms|[smhd]?)", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{str(value)[:40]!r} is no time: give seconds, or as 200ms, 60s, 5m, 2h, 1d", param, ctx)
        return float(match[1]) * UNITS[match[2].lower()]


class Finite(click.FloatRange):
    """A number in a range. Comparisons let "nan" through, and nothing waits until infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number that can be used", param, ctx)
        return number
