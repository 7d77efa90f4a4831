"""A caller's word on copies of its calls: which of them may start, and where a last attempt may begin."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atasks.transport.backends.amqp.caller.overdue import heard_of
from atasks.wire import AT_MOST_ONCE, VERSION, Claim, Grant

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.caller.control import ControlMessages
    from atasks.transport.backends.amqp.session import Session

__all__ = ["Grants"]


class Grants:
    """Answers workers that ask whether they may start a call of this caller."""

    def __init__(self, session: Session, control: ControlMessages) -> None:
        self._session = session
        self._control = control

    def claimed(self, claim: Claim) -> None:
        """A worker asks whether it may start a copy of a call: say so to one copy for each attempt, as long as the
        call is awaited, and let one worker begin the last one. What is known of a beginning is forgotten only by
        the word of its own worker, which comes with the copy that it gave back: claims may be late."""
        pending = self._session.pendings.get(claim.id)
        granted, begun, over = False, None, True
        if pending is not None and not pending.future.done():
            over = False
            if pending.copies is None:
                pending.copies = {}
            if pending.call.delivery == AT_MOST_ONCE:  # each copy starts at one worker, and not again
                granted = pending.copies.setdefault(claim.copy, claim.worker) == claim.worker
            else:
                granted = pending.copies.setdefault(claim.attempt, claim.copy) == claim.copy
            begun = pending.begun
            if granted and begun is not None and _is_over(begun, claim):
                begun = None
            if granted and claim.begins:
                granted = begun is None or begun[0] == claim.worker  # else it is at two workers
                if granted:
                    begun = claim.worker, max(claim.run, 0 if begun is None else begun[1])
            if granted:
                pending.begun = begun
                pending.call.attempt = max(pending.call.attempt, claim.attempt)
                heard_of(pending)
        mine = begun is not None and begun[0] == claim.worker
        run = begun[1] if begun is not None and mine else 0
        now_ms = int(time.time() * 1000)
        has_begun = granted and begun is not None
        grant = Grant(VERSION, claim.id, claim.copy, granted, has_begun, run, now_ms, over)
        self._control.answer(grant, claim.worker, pending.key if pending is not None else None)


def _is_over(begun: tuple[str, int], claim: Claim) -> bool:
    """Return True if a beginning is over, because its worker gave the call back that is claimed."""
    worker, run = begun
    if not run:  # of an older version, which does not say so: it was given back if nobody has had it since
        return not claim.again and worker != claim.worker
    giver, _, number = claim.over.rpartition(":")
    return giver == worker and number.isdecimal() and int(number) >= run
