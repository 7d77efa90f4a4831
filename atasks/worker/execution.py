"""Serving one call: decode its arguments, run the function, encode how it ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from functools import partial
from types import CoroutineType
from typing import Any

from atasks import forks, wire
from atasks.codecs.checked import over_limit
from atasks.codecs.culprits import brief
from atasks.current import serving
from atasks.definitions import BaseTask
from atasks.errors import DecodeError
from atasks.wire import AT_MOST_ONCE, Reply, Status, describe
from atasks.worker.held_call import HeldCall, Reason
from atasks.worker.outcome import Inside, decode_arguments, raised, returned

__all__ = [
    "cancelled_reply",
    "ended_by_request",
    "execute",
    "pass_on",
    "status",
]

logger = logging.getLogger("atasks.worker")


async def execute(run: HeldCall) -> None:
    """Serve the call, and tell its worker that it has ended, with the reply; None where there is nobody to reply
    to, or another worker will.

    Never raises: whatever the function, the codec or a cancellation does becomes a reply.
    """
    serving.set(run)
    reply: Reply | None = None
    try:
        if run.permit is None or await run.may_begin():
            run.started = time.perf_counter()
            if run.atask is not None and run.atask.has_policies:
                reply = await _serve_by_policies(run, run.atask)
            else:  # as `_serve`, without a coroutine of its own: each call that waits would keep it
                result = await _begin(run)
                if type(result) is Reply:
                    reply = result
                else:
                    try:
                        result = await result
                    except asyncio.CancelledError:
                        raise
                    except BaseException as error:
                        reply = await _raised(run, error)
                    else:
                        worker = run.worker
                        reply = await returned(run.call, worker.router.codec, worker.id, result, worker.transport)
            size, limit = len(reply.payload), run.worker.transport.max_payload
            if size > limit:
                reply = _too_large(run, size, limit)
            else:
                reply.run_us = int((time.perf_counter() - run.started) * 1e6)
                if run.ever_parked:
                    reply.parked = True
                    # Of tokens and places there are fewer than slots, as a rule.
                    if run.worker.transport.measures_work and run.tokens is None and run.place is None:
                        reply.work_us = int(run.worked() * 1e6) + 1
    except asyncio.CancelledError:
        reply = cancelled_reply(run)
    except BaseException as error:
        if _thrown_away(run, error):
            raise
        _log("%s could not be served: report the traceback", run, error)
        message = f"the worker failed to serve {describe(run.call)} ({brief(error)}): its log says more"
        reply = status(run, Status.FAILED, message)
    if run.journal is not None:
        run.journal.ended(reply)
    run.worker.ended(run, reply)


async def _serve_by_policies(run: HeldCall, task: BaseTask[..., Any]) -> Reply:
    """Serve a call of an atask that has a limit, or tries. Callers make the tries of calls, and workers those of
    events: their calls have their own id as the key."""
    serve = _serve
    if task.limit is not None:
        from atasks.worker.limited import limited

        serve = partial(limited, serve=_serve, arguments=_arguments, refuse=_refused)
    retry = task.task_options.retry
    if retry is not None and run.call.key == run.call.id:
        from atasks.worker.tried import tried

        return await tried(run, retry, serve)
    return await serve(run)


async def _serve(run: HeldCall) -> Reply:
    """Serve the call, for a policy."""
    result = await _begin(run)
    if type(result) is Reply:
        return result
    try:
        result = await result
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return await _raised(run, error)
    return await returned(run.call, run.worker.router.codec, run.worker.id, result, run.worker.transport)


async def _begin(run: HeldCall) -> Any:
    """Call the function. Returns the reply if the call has ended; else the object that is to be awaited for what
    the function returns."""
    call, worker, task = run.call, run.worker, run.atask
    assert task is not None, "the worker looked"
    executor, around, codec = task.executor, task._space.around_runs, worker.router.codec
    size = len(call.payload) + sum(map(len, call.context.values())) if call.context else len(call.payload)
    if size > worker.transport.max_payload:
        message = f"the arguments of {call.task} have {size} bytes, over this worker's limit of "
        return status(
            run, Status.DECODE_ERROR, f"{message}{worker.transport.max_payload}: pass a reference instead"
        )
    if call.credit or task.streams:
        refusal = _not_a_stream(run, task)
        if refusal is not None:
            return refusal
    if executor == "process":
        return await worker.pools.in_process(run, task)
    try:
        args, kwargs = await decode_arguments(call, codec, task.local)
    except DecodeError as error:
        return status(run, Status.DECODE_ERROR, str(error))
    try:
        if around is not None:
            result = await around.run(call, task, run.queue, args, kwargs, partial(_body, run, task))
        elif executor is None:
            result = task.local(*args, **kwargs)
        else:
            result = await worker.pools.in_thread(run, task.local, args, kwargs)
        if call.credit:
            args = kwargs = None  # the function has them, for as long as it likes
            from atasks.worker.producing import produce

            reply = await produce(run, codec, result)
            if reply is not None:
                return reply
            result = None
        elif type(result) is CoroutineType or inspect.isawaitable(result):
            return result
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return await _raised(run, error)
    finally:
        args = kwargs = None
    return await returned(call, codec, worker.id, result, worker.transport)


async def _raised(run: HeldCall, error: BaseException) -> Reply:
    """Tell those whom it concerns that the function has raised. Returns its reply; raises the error if there is
    nobody any more to whom it could be told."""
    if _thrown_away(run, error):
        raise error
    if run.journal is not None:
        run.journal.raised(error)
    if run.reason in (Reason.WITHDRAWN, Reason.TIMED_OUT) and not run.call.orphan:  # else it is logged anyway
        _log("%s raised after it was cancelled, so its caller may not get the exception", run, error)
    worker = run.worker
    return await raised(run.call, worker.router.codec, worker.id, error, worker.transport.max_payload)


def _too_large(run: HeldCall, size: int, limit: int) -> Reply:
    """The reply of a function whose result has more bytes than a message may have."""
    what = f"the result of {run.call.task} has"
    return status(run, Status.TOO_LARGE, over_limit(what, size, limit, "return a reference"))


def _log(message: str, run: HeldCall, error: BaseException) -> None:
    """Log the exception of a call, with its traceback unless a method of its class raises."""
    try:
        logger.error(message, describe(run.call), exc_info=error)
    except BaseException:  # the call has to end all the same
        logger.error(message, describe(run.call))


async def _body(run: HeldCall, task: BaseTask[..., Any], inside: Inside, /, *args: Any, **kwargs: Any) -> Any:
    """Call the function of the atask, for the middlewares around it."""
    if task.executor is not None:
        return await run.worker.pools.in_thread(run, inside(task.local), args, kwargs)
    result = task.local(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


async def _arguments(run: HeldCall) -> tuple[Any, Any]:
    assert run.atask is not None, "the worker looked"
    return await decode_arguments(run.call, run.worker.router.codec, run.atask.local)


async def _refused(run: HeldCall, error: Exception) -> Reply:
    """The reply to a call that is not served, for this reason."""
    if isinstance(error, DecodeError):
        return status(run, Status.DECODE_ERROR, str(error))
    worker = run.worker
    return await raised(run.call, worker.router.codec, worker.id, error, worker.transport.max_payload)


def _not_a_stream(run: HeldCall, task: BaseTask[..., Any]) -> Reply | None:
    """The reply where one side takes the atask for a stream, and the other one does not."""
    name = run.call.task
    if not task.streams:
        message = f"{name} is not a stream at this worker: await it, or start both sides with the same code"
    elif not run.call.credit:
        message = f"{name} is a stream at this worker: iterate over it, or start both sides with the same code"
    elif "streams" not in run.worker.transport.supports:
        message = f"{type(run.worker.transport).__name__}, by which {name} was called, moves no streams"
    else:
        return None
    return status(run, Status.FAILED, message)


async def pass_on(run: HeldCall) -> Reply | None:
    """Have another worker run a call whose atask is not known here, or return what its caller is told."""
    try:
        changed = await run.deliveries[0].pass_on(run.call)
    except asyncio.CancelledError:
        return cancelled_reply(run)
    if changed is None:
        return status(run, Status.UNKNOWN_TASK, run.worker.served.unknown(run.call.task))
    run.call = changed
    run.reason = Reason.PASSED_ON
    return None


def cancelled_reply(run: HeldCall) -> Reply | None:
    """The reply of a run that was cancelled, by why it was."""
    task = describe(run.call)
    if run.reason is None and run.worker.is_torn_down:
        run.reason = Reason.DRAINED  # the program ends: nobody has cancelled this call
        run.worker.accepting = False  # given back, the call would begin anew here, in an event loop that is ending
    match run.reason:
        case Reason.ENDED:
            return ended_by_request(run)
        case Reason.TIMED_OUT:
            return status(run, Status.TIMED_OUT, f"{task} was cancelled at its deadline")
        case None:
            return status(run, Status.CANCELLED, f"{task} was cancelled at the worker")
        case Reason.DRAINED if run.call.delivery == AT_MOST_ONCE:
            return status(run, Status.WORKER_LOST, f"{task} was cut off by its worker's shutdown")
        case _:
            return None


def ended_by_request(run: HeldCall) -> Reply:
    """The reply of a run that somebody ended who does not await it."""
    return status(run, Status.CANCELLED, f"{describe(run.call)} was cancelled by request, as `atasks cancel` does")


def status(run: HeldCall, value: int, message: str) -> Reply:
    """A reply with neither a value nor an exception."""
    attempts = run.call.attempt if value == Status.WORKER_LOST else 0
    worker, ran = run.worker.id, run.ran
    awaits = run.awaited if value in (Status.WORKER_LOST, Status.TIMED_OUT) else None
    reply = wire.ended(run.call.id, value, message, worker, attempts, last_worker=worker, ran=ran, awaits=awaits)
    if ran is not None:
        reply.run_us = int(ran * 1e6)
    return reply


def _thrown_away(run: HeldCall, error: BaseException) -> bool:
    """Return True if the event loop is gone and the garbage collector closes this coroutine."""
    if run.worker.is_forked:
        forks.leave(error)
    return issubclass(type(error), GeneratorExit) and not run.loop.is_running()
