"""Waiting inside an atask without a slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from atasks.current import serving_here

if TYPE_CHECKING:
    from atasks.worker.held_call import HeldCall

__all__ = ["Parked"]


class Parked:
    """A block in which the call that is being served here holds no slot, as while it awaits another call.

    At the end of the block it waits for a slot again; `give_up` is called if it is cancelled over that. Outside of
    a call the block does nothing. Raises TooManyParked at the worker's bound.
    """

    __slots__ = ("_give_up", "_run")

    def __init__(self, give_up: Callable[[], None] | None = None) -> None:
        self._give_up = give_up
        self._run: HeldCall | None = None

    async def __aenter__(self) -> None:
        self._run = serving_here()
        if self._run is not None:
            self._run.park()

    async def __aexit__(self, *error: object) -> None:
        if self._run is not None:
            await self._run.unpark(self._give_up)
