"""When a schedule is due."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import count, dropwhile
from typing import Final, Literal

from atasks.errors import NotSupported

__all__ = ["Timing"]

DAY: Final = 24 * 3600.0
SHORTEST: Final = 0.1
LONGEST: Final = 10 * 365 * 24 * 3600.0
MAX_CRON: Final = 1000
"""Characters of a cron expression: each look at a schedule reads it, and all minutes of an hour take 169."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of a schedule, and what becomes of those that nobody could keep.

    `every`: seconds, from 0.1 on, or a cron expression of five fields. Ticks of a period are multiples of it since
    1970, so that all workers agree on them. `tz`: the time zone of a cron expression. A time of day that clocks
    skip is made up for right after it, and one that comes twice is one tick; expressions whose minutes or hours
    begin with `*` go on through both. `catch_up`: whether each tick that was missed is made later, the last 100 of
    them; else one is only made that is late by less than a minute. `overlap`: "skip" a tick while the call of the
    one before waits or runs, or "allow" both.

    Raises TypeError or ValueError for what makes no sense, and NotSupported for a cron expression where cronsim is
    not installed.
    """

    every: float | str
    tz: str = "UTC"
    catch_up: bool = False
    overlap: Literal["skip", "allow"] = "skip"

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, (int, float, str)):
            raise TypeError(f"every={self.every!r}: seconds, or a cron expression such as '*/5 * * * *'")
        if not isinstance(self.catch_up, bool):
            raise TypeError(f"catch_up is True or False, not {self.catch_up!r}")
        if self.overlap not in ("skip", "allow"):
            raise ValueError(f"overlap={self.overlap!r}: 'skip' or 'allow'")
        self._zone()
        if isinstance(self.every, str):
            if len(self.every) > MAX_CRON:
                raise ValueError(
                    f"every= is a cron expression of {len(self.every)} characters: at most {MAX_CRON}"
                )
            self._cron(0.0)
        elif not (SHORTEST <= self.every <= LONGEST):
            raise ValueError(f"every={self.every!r}: seconds, {SHORTEST} to {LONGEST:.0f}, or a cron expression")

    def after(self, moment: float) -> float | None:
        """The first tick later than this (seconds since 1970); None: there is none."""
        return next(self.ticks(moment), None)

    def ticks(self, moment: float) -> Iterator[float]:
        """The ticks later than this, in their order."""
        if isinstance(self.every, str):
            found = self._cron(moment)
        else:
            first = math.floor(moment / self.every) - 1  # the quotient is rounded, and may be one off
            found = (round(number * self.every, 6) for number in count(first))
        return dropwhile(lambda tick: tick <= moment, found)

    def _zone(self) -> tzinfo:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # which programs without schedules need not wait for

        try:
            return ZoneInfo(self.tz)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            raise ValueError(f"tz={self.tz!r} is no time zone that is known here, as 'Europe/Berlin' is") from None

    def _cron(self, moment: float) -> Iterator[float]:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise NotSupported(
                f"every={self.every!r} is a cron expression, which needs cronsim: pip install 'cronsim>=2.6', or "
                "give a number of seconds"
            ) from None
        assert isinstance(self.every, str)
        try:
            if len(self.every.split()) == 6:
                raise CronSimError("a sixth one would be for seconds")
            zone = self._zone()
            found: Iterator[datetime] = CronSim(self.every, datetime.fromtimestamp(moment, zone))
        except CronSimError as error:
            raise ValueError(
                f"every={self.every!r} is no cron expression ({error}): five fields, as in '*/5 * * * *'"
            ) from None
        if any(field.startswith("*") for field in self.every.split()[:2]):
            return self._through(moment, zone)
        return (tick.timestamp() for tick in found)

    def _through(self, begin: float, zone: tzinfo) -> Iterator[float]:
        """The ticks of an expression that goes on through changes of the clocks, between which clocks have a fixed
        distance to UTC. Over a change cronsim goes from hour to hour: where clocks change by half an hour, past
        half of the ticks of an hour."""
        from cronsim import CronSim

        assert isinstance(self.every, str)
        while True:
            offset = _offset(zone, begin)
            same = later = begin  # the offset is known to be the same until then
            for tick in CronSim(self.every, datetime.fromtimestamp(begin - 1, timezone(offset))):
                found = tick.timestamp()
                while same < found and _offset(zone, later := min(same + DAY, found)) == offset:
                    same = later
                if same < found:
                    break
                yield found
            else:
                return
            seconds = range(math.floor(same), math.ceil(later) + 1)
            begin = seconds[bisect_left(seconds, True, key=lambda second: _offset(zone, second) != offset)]


def _offset(zone: tzinfo, moment: float) -> timedelta:
    offset = datetime.fromtimestamp(moment, zone).utcoffset()
    assert offset is not None
    return offset
