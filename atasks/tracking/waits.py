"""Which call waits for which: cycles of calls that wait for each other, and so for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from atasks.tracking.queries import CallInfo

__all__ = ["Wait", "cycles"]


class Wait(Struct):
    """A call that waits for another one."""

    call: str
    """The id of the call that waits."""
    awaits: str
    """The id of the call that it waits for."""
    limit: str = ""
    """The limit whose token that one holds; empty: it is awaited."""


def cycles(calls: Sequence[CallInfo]) -> list[list[Wait]]:
    """Return the cycles of calls none of which can go on: each awaits the next one, or waits for a token of a
    limit of which the next one holds one.

    A call that waits for a token can go on if anybody who holds one can, or if not all holders are known: programs
    hold tokens too. One that awaits several calls is taken to need all of them.
    """
    holders: dict[str, list[str]] = {}
    for call in calls:
        for limit in call.holds:
            holders.setdefault(limit, []).append(call.id)
    waits = {call.id: _for_tokens(call, holders) for call in calls}
    for call in calls:
        if call.parent in waits:
            waits[call.parent].append(Wait(call.parent, call.id))
    stuck = {name for name, found in waits.items() if found}
    while True:  # those go on that wait for one that does; what is left waits in circles, or for such
        free = {name for name in stuck if _goes_on(waits[name], stuck)}
        if not free:
            break
        stuck -= free
    return _circles({name: [wait for wait in waits[name] if wait.awaits in stuck] for name in stuck})


def _for_tokens(call: CallInfo, holders: Mapping[str, list[str]]) -> list[Wait]:
    found: list[Wait] = []
    for wanted in call.wants:
        holding = holders.get(wanted.limit, [])
        if 0 < wanted.at_once <= len(holding):
            found += [Wait(call.id, holder, wanted.limit) for holder in holding]
    return found


def _goes_on(waits: Sequence[Wait], stuck: set[str]) -> bool:
    if any(not wait.limit and wait.awaits in stuck for wait in waits):
        return False
    limits = {wait.limit for wait in waits if wait.limit}
    return not any(all(wait.awaits in stuck for wait in waits if wait.limit == limit) for limit in limits)


def _circles(waits: Mapping[str, Sequence[Wait]]) -> list[list[Wait]]:
    """Return one circle for each group of calls that wait for each other."""
    found: list[list[Wait]] = []
    done: set[str] = set()
    for first in sorted(waits):
        path: list[Wait] = []
        places: dict[str, int] = {}
        name = first
        while name not in done and name not in places and waits[name]:
            places[name] = len(path)
            path.append(waits[name][0])
            name = path[-1].awaits
        if name in places:
            found.append(path[places[name] :])
        done.update(places)
    return found
