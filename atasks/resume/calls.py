"""A call that another call makes which resumes: it is looked for in the journal, and made if it is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from atasks.caller.encoding import carried_context, encoded_arguments, new_call
from atasks.caller.tries import tried
from atasks.current import carried
from atasks.errors import Diverged
from atasks.resume.journal import Journal, journal_of
from atasks.resume.naming import again, content
from atasks.wire import Call, Reply

if TYPE_CHECKING:
    from atasks.definitions import BaseTask
    from atasks.options import TaskOptions
    from atasks.router import Router
    from atasks.transport.contract import Transport
    from atasks.worker.held_call import HeldCall

__all__ = ["made", "may_stream"]


async def made(
    router: Router,
    run: HeldCall,
    name: str,
    task: BaseTask[..., Any] | None,
    options: TaskOptions,
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> tuple[Reply, Call]:
    """The reply to a call that `run` makes, by an earlier run of it or by a worker now, and the call.

    Raises as `Router.send_request` does, and Diverged; ValueError if its key is that of another call.
    """
    transport, codec, journal = router._transport(run), router.codec, journal_of(run)
    payload = await encoded_arguments(name, task, codec, tuple(args), kwargs)
    call = new_call(name, payload, options, transport, codec, run)
    call.id = journal.names.of(str(name), options.key, content(args, kwargs, payload))
    if carried:
        call.context = await carried_context(call, codec, transport)
    run.park()
    run.last_awaited = call
    try:
        if options.retry is None:
            reply = await journal.request(transport, call, options)
        else:
            way = cast("Transport", _Way(journal, transport, call.id))
            reply = await tried(router, codec, way, call, options)
        run.answered(call, reply)
    finally:
        await run.unpark()
    return reply, call


class _Way:
    """The part of a transport that tries need, by way of a journal: each try is a step of its own."""

    def __init__(self, journal: Journal, transport: Transport, step: str) -> None:
        self._journal = journal
        self._transport = transport
        self._next = step
        self.usable = transport.usable
        self.pause = transport.pause

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        """Make the next try, or find it. Of the tries of earlier runs the last one counts: they have paused
        between them, and the one before may have ended without a result to keep."""
        self._number(call)
        while await self._journal.passed(call.id, self._next):
            call.key = call.key or call.id
            call.try_ += 1
            self._number(call)
        return await self._journal.request(self._transport, call, options)

    def _number(self, call: Call) -> None:
        """Give the call the id of its next try."""
        call.id, self._next = self._next, again(f"try {self._next}")


async def may_stream(run: HeldCall, name: str, options: TaskOptions, payload: bytes) -> None:
    """Note in the journal that a stream is read which cannot be replayed. Raises Diverged if an earlier run has
    read it: its items are gone."""
    if options.replayable:
        return
    journal = journal_of(run)
    step = journal.names.of(f"stream {name}", options.key, content((payload,), {}, payload))
    if await journal.begun(step, str(name)):
        raise Diverged(
            f"{run.call.task} reads stream {name} again, whose items an earlier run has taken: make the stream "
            "replayable=True, or read it in a call of its own that returns what is needed"
        )
