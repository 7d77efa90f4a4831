"""Messages from a caller to workers besides requests: awaits that have ended, and items of streams that were
taken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from atasks import wire
from atasks.wire import VERSION, Cancel, Credit, Envelope, Grant, Item, Query

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["ControlMessages"]

IDS_AT_ONCE: Final = 1000


class ControlMessages:
    """Messages for the control exchange. Nobody need be there to receive them; one that gets lost does no harm.

    What is said in one turn of the event loop to the workers of one queue, or to one worker, is one message.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cancelled: dict[tuple[str, str | None], list[str]] = {}
        """Queue, and key of their seals -> the calls of this turn whose awaits have ended."""
        self._grants: dict[tuple[str, str | None], list[Envelope]] = {}
        """Worker, and key -> the answers of this turn to what it claims."""
        self._credits: dict[tuple[str, str | None], dict[str, Credit]] = {}
        """Worker, and key -> stream -> what it is to be told of it at the end of this turn."""

    def cancel(self, queue: str, call_id: str, key: str | None) -> None:
        """Tell the workers of the queue that the await of this call has ended."""
        if not self._cancelled:
            asyncio.get_running_loop().call_soon(self._send_cancels)
        self._cancelled.setdefault((queue, key), []).append(call_id)

    def ask(self, query: Query) -> None:
        """Put a question to all workers of the namespace, or to one."""
        session = self._session
        key = session.topology.worker_key(query.worker) if query.worker else session.topology.all_key
        session.outbox.put(session.control([query], key, reply_to=session.reply_queue))

    def refuse(self, question: Item) -> None:
        """Tell the worker that asks that nobody wants its stream any more."""
        key = self._session.topology.worker_key(question.worker)
        self._session.outbox.put(self._session.control([Cancel(VERSION, [question.id])], key))

    def answer(self, grant: Grant, worker: str, key: str | None) -> None:
        """Tell the worker whether the copy of a call that it has may start."""
        if not self._grants:
            asyncio.get_running_loop().call_soon(self._send_grants)
        self._grants.setdefault((worker, key), []).append(grant)

    def grant(self, credit: Credit, worker: str) -> None:
        """Tell the worker how much of its stream was taken."""
        if not self._credits:
            asyncio.get_running_loop().call_soon(self._send_credits)
        pending = self._session.pendings.get(credit.id)
        credits = self._credits.setdefault((worker, pending.key if pending is not None else None), {})
        earlier = credits.get(credit.id)
        if earlier is not None and credit.again is None:
            credit.again = earlier.again
        credits[credit.id] = credit

    def flush(self) -> None:
        """Hand over what was said in this turn."""
        self._send_cancels()
        self._send_credits()
        self._send_grants()

    def _send_grants(self) -> None:
        grants, self._grants = self._grants, {}
        for (worker, key), answers in grants.items():
            routing_key = self._session.topology.worker_key(worker)
            for start in range(0, len(answers), IDS_AT_ONCE):
                self._session.outbox.put(
                    self._session.control(answers[start : start + IDS_AT_ONCE], routing_key, key)
                )

    def _send_cancels(self) -> None:
        cancelled, self._cancelled = self._cancelled, {}
        for (queue, key), ids in cancelled.items():
            routing_key = self._session.topology.queue_key(queue)
            for cancel in wire.cancels(ids):
                self._session.outbox.put(self._session.control([cancel], routing_key, key))

    def _send_credits(self) -> None:
        credits, self._credits = self._credits, {}
        for (worker, key), latest in credits.items():
            routing_key = self._session.topology.worker_key(worker)
            message = self._session.control(
                list(latest.values()), routing_key, key, reply_to=self._session.reply_queue
            )
            self._session.outbox.put_now(message)
