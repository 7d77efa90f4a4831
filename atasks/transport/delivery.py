"""`Delivery`: the handle by which a worker answers a call through the transport that delivered it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from atasks.wire import Call, End, Item, Reply, Report

if TYPE_CHECKING:
    from atasks.options import Executor

__all__ = ["Delivery"]


class Delivery(Protocol):
    """One delivery of a request. The transport acknowledges it after whichever of these is called, once."""

    @property
    def queue(self) -> str:
        """The work queue that it came from; empty: the transport does not know."""
        ...

    def reply(self, reply: Reply | End) -> None:
        """Send the reply; an `End` if items of a stream were sent, or could have been."""

    def send(self, envelope: Item | End | Report) -> None:
        """Send this to the caller, now or a little later, in the order of these calls and before the reply. It is
        no reason to acknowledge anything."""

    def drop(self) -> None:
        """Nobody awaits the call: no reply."""

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        """Return the call, as it is given here, to the queue for another worker; `executor`: to where such calls
        wait that lack a place."""

    async def pass_on(self, call: Call) -> Call | None:
        """The worker does not know the atask: the call as it should be given back for a worker that may know it,
        or None if there is no such worker. May wait a little, so that the same worker does not get it at once."""
