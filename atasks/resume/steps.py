"""Steps of a call that resumes which are no calls: local work, and pauses."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from atasks.checks import validate_number
from atasks.codecs.base import ends_here
from atasks.current import serving_here
from atasks.parking import Parked
from atasks.resume.journal import Journal, journal_here, journal_of
from atasks.resume.naming import content, name_of
from atasks.wire import VERSION, Call, Reply, Status
from atasks.worker.outcome import raised, returned

if TYPE_CHECKING:
    from atasks.worker.held_call import HeldCall

__all__ = ["once", "sleep"]

P = ParamSpec("P")
T = TypeVar("T")


@overload
async def once(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


@overload
async def once(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


async def once(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, and await what it returns if that can be awaited; in a call that resumes, once for all its
    runs: a later run is given the result, or the exception, of the first one that came to an end.

    For what may differ from run to run (the time, a random id) and for what is not to be done twice (a payment). A
    function of the same module and name with equal arguments is the same step; the second time that a run asks for
    it is a step of its own. What a `functools.partial` fills in counts as arguments, and so do text, bytes,
    integers and None that a local function uses of the function around it and does not set, or has as defaults. A
    lambda is named by its code too. The object of a method does not count: pass what differs as an argument.

    Outside of a call that resumes the function is just called.

    Args:
        function: The function, sync or async.
        *args: Its arguments, which the namespace's codec can encode.
        **kwargs: Its keyword arguments, likewise.

    Raises:
        EncodeError: The result cannot be encoded.
        Diverged: With `resume="strict"`, the run before did not do this.
        CallError: The result cannot be kept; or `PayloadTooLarge`, or `TransportError`. The step has been done
            then.
        Exception: The function raised it.

    Guarantees:
        A worker that dies while the function runs, or before its result is safe, leaves it to the next run, which
        calls it again: give services that know idempotency keys `current_call().key`.

    Example:
        ```python
        import random

        import atasks
        from atasks import atask

        @atask(resume=True)
        async def onboard(name: str) -> bool:
            code = await atasks.once(random.random)  # the same in every run of this call
            return 0 <= code < 1

        print(await onboard("ann"))  # True
        ```
    """
    journal = journal_here()
    if journal is None:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result
    router = journal.router
    name, filled = name_of(function)
    payload = await router.encode_arguments(name, args, kwargs)
    step = journal.names.of(f"once {name}", None, content(args, kwargs, payload) + filled)
    async with Parked():
        step, reply = await journal.find(step, name)
    call = Call(VERSION, step, name, b"", router.codec.name)
    if reply is not None:
        return await router.outcome(reply, call)
    limit, worker = journal.max_payload, journal.worker_id
    try:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
    except Exception as error:
        if ends_here(error):
            raise
        reply = await raised(call, router.codec, worker, error, limit)
        async with Parked():
            await journal.keep(reply)
        raise
    except BaseException:
        journal.spend(step)
        raise
    reply = await returned(call, router.codec, worker, result)
    if reply.status != Status.VALUE:
        journal.spend(step)
        await router.outcome(reply, call)  # it raises
    async with Parked():
        await journal.keep(reply)
    return result


async def sleep(seconds: float) -> None:
    """Wait for so many seconds. Inside an atask the call is parked meanwhile: it holds no slot of its worker, so
    other calls run. It goes on when the time has passed and there is a slot.

    In a call that resumes the end of the pause is on record: a later run waits for what is left of it, by the wall
    clock. In another atask a worker that drains gives a call that sleeps to another worker, where it begins anew.
    Outside an atask it is `asyncio.sleep`. Cancelling it ends it at once.

    Args:
        seconds: A number from 0 on.

    Raises:
        TooManyParked: At the worker's bound of waiting calls.
        ValueError: That is no number of seconds.
    """
    run = serving_here()
    if run is None:
        await asyncio.sleep(seconds)
        return
    validate_number("seconds", seconds)
    run.park()  # by hand, as what follows: many calls may sleep for long, and each object more costs each of them
    pause: _Pause | None = None
    try:
        if run.atask is not None and run.atask.resume:
            pause = await _left(run, journal_of(run), seconds)
        else:
            pause = _Pause(run, seconds)
        await pause
    finally:
        if pause is not None:
            pause.timer.cancel()
        await run.unpark()


class _Pause(asyncio.Future[None]):
    """A future that its timer ends by calling it, and needs nothing else for that."""

    __slots__ = ("timer",)

    def __init__(self, run: HeldCall, seconds: float) -> None:
        super().__init__(loop=run.loop)
        self.timer = run.loop.call_later(seconds, self, context=run.worker.no_context)

    def __call__(self) -> None:
        if not self.done():
            self.set_result(None)


async def _left(run: HeldCall, journal: Journal, seconds: float) -> _Pause:
    """Begin what is left of a pause, whose end is put into the journal if an earlier run has not."""
    step = journal.names.of("atasks.sleep", None, repr(float(seconds)).encode())
    step, reply = await journal.find(step, "atasks.sleep")
    if reply is None:
        until = time.time() + seconds
        await journal.keep(Reply(VERSION, step, Status.VALUE, repr(until).encode()))
    else:
        until = float(reply.payload)
    return _Pause(run, max(until - time.time(), 0.0))
