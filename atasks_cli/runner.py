"""Runs what was loaded: a worker until a signal, or every aiomain until it returns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import atasks
from atasks import forks
from atasks import modules as loader
from atasks.allocation import imports_that_stay, keep_freed_memory
from atasks.connection import import_ahead
from atasks.errors import AtasksError, TransportError
from atasks.namespaces import namespaces
from atasks.tracking import snapshot
from atasks.wire import counted
from atasks.worker.leaving import EXIT_SECONDS, leave_if_blocked, leave_within
from atasks_cli.aiomain import Aiomain, AiomainFailed, run_all
from atasks_cli.destination import destination
from atasks_cli.exits import CommandError, Exit, explain
from atasks_cli.messages import output_is_unread, say, show_traceback, shown_url
from atasks_cli.settings import Settings
from atasks_cli.signals import Signals

if TYPE_CHECKING:
    from atasks_cli.health import Note
    from atasks_cli.supervised import Supervised

__all__ = ["load_all", "probes", "run"]

logger = logging.getLogger("atasks.cli")

QUEUE_SECONDS = 5.0
"""Seconds between two looks at the lengths of queues, for metrics."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def load_all(targets: Iterable[str], settings: Settings) -> list[ModuleType]:
    """Import every target, and see that they leave something to do in this mode. Raises a CommandError."""
    modules: list[ModuleType] = []
    with imports_that_stay():
        import_ahead(settings.transport, serves=settings.mode != "client")
    for target in targets:
        try:
            module = loader.load(target)
        except AtasksError as error:
            raise explain(error) from error
        if module not in modules:
            modules.append(module)
    runs = any(hasattr(module, "aiomain") for module in modules)
    names = " or ".join(module.__name__ for module in modules)
    if settings.mode != "server":
        if runs:
            return modules
        raise CommandError(
            Exit.USAGE,
            f"nothing to run: no aiomain() in {names}; define async def aiomain(), "
            "or serve its atasks with --mode server",
        )
    if not _atasks_in(settings.namespace):
        others = [name for name in namespaces.names() if _atasks_in(name)]
        if others:
            hint = f"those in it are in namespace {others[0]!r}: add --namespace {others[0]}"
        else:
            hint = "decorate a coroutine function with @atask"
        where = "" if settings.namespace == "default" else f" of namespace {settings.namespace!r}"
        problem = f"no atask{where} in {names}"
        if not runs:
            raise CommandError(Exit.USAGE, f"nothing to serve: {problem}; {hint}")
        say(f"warning: {problem}, so only aiomain() runs here: {hint}, or say --mode client")
    return modules


def _atasks_in(namespace: str) -> list[str]:
    registry = getattr(namespaces.get(namespace), "registry", None)
    return registry.names() if registry is not None else []


def probes(address: tuple[str, int] | None) -> contextlib.AbstractContextManager[Any]:
    """Return the block in which probes are answered at this address; None: nowhere."""
    if address is None:
        return contextlib.nullcontext()
    from atasks_cli.probes import serve_probes  # whose server few programs need

    return serve_probes(address)


def run(
    settings: Settings,
    aiomains: Sequence[Aiomain],
    loop_factory: LoopFactory | None = None,
    supervised: Supervised | None = None,
) -> int:
    """Run it in an event loop of its own until it ends or a signal or a supervisor ends it; the exit code.

    Raises a CommandError, whose cause is the library's error, for what the library raises.
    """
    ending = Ending()
    with (
        probes(settings.http if supervised is None else None),
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):  # which waits for threads when it is left
        try:
            code = runner.run(_run(settings, aiomains, supervised, ending))
        except CommandError as error:
            ending.leave(error.exit)
            raise
        ending.leave(code)
        return code


class Ending:
    """The time that this process may still take to end."""

    def __init__(self) -> None:
        self._until: float | None = None

    def within(self, grace: float) -> None:
        """Begin to end: threads of calls, and whatever blocks the event loop, have so many seconds. The first
        call counts."""
        if self._until is None:
            self._until = time.monotonic() + grace
            leave_if_blocked(asyncio.get_running_loop(), grace, Exit.OK)

    def leave(self, code: int) -> None:
        """End the process with this code after its drain, in time. Does nothing if it ends by itself, for want
        of work."""
        if self._until is not None:
            leave_within(max(0.0, self._until - time.monotonic()) + EXIT_SECONDS, code)


async def _run(
    settings: Settings, aiomains: Sequence[Aiomain], supervised: Supervised | None, ending: Ending
) -> int:
    task = asyncio.current_task()
    assert task is not None
    signals = Signals(task.cancel)
    if supervised is not None:
        supervised.tether.on_release(signals.end)
    try:
        if settings.mode == "server":
            return await _serve(settings, aiomains, signals, supervised, ending)
        await _call(settings, aiomains)
        return Exit.OK
    except asyncio.CancelledError:
        if signals.received is not None:
            if settings.mode == "loopback":
                ending.within(0)
            return 128 + signals.received
        if supervised is not None and supervised.tether.is_released:
            return Exit.OK
        raise
    except AiomainFailed as failure:
        return _report(failure, settings)
    except CommandError:
        raise
    except Exception as error:
        raise explain(error) from error


async def _call(settings: Settings, aiomains: Sequence[Aiomain]) -> None:
    """Run every aiomain against the workers, or in this process in loopback mode."""
    if settings.mode == "loopback":
        serving = atasks.serve(
            settings.url,
            namespace=settings.namespace,
            concurrency=settings.concurrency,
            threads=settings.threads,
            processes=settings.processes,
            grace=0,
        )
        async with serving:
            await run_all(aiomains)
    else:
        where, own = destination(settings)
        options = {**_process_options(settings), **own}
        async with atasks.connect(where, namespace=settings.namespace, **options) as transport:
            _reread_keys_on_hangup(transport)
            await run_all(aiomains)


def _reread_keys_on_hangup(transport: atasks.Transport) -> None:
    """Have SIGHUP read the file of keys again, if there is one."""
    seals = getattr(transport, "seals", None)
    if seals is not None:
        loop = asyncio.get_running_loop()
        forks.handle_signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(seals.keys.reread))


def _process_options(settings: Settings) -> dict[str, Any]:
    """The options of a connection that has worker processes of its own."""
    if settings.transport != "local":
        return {}
    options = {
        "workers": settings.workers,
        "modules": settings.targets,
        "concurrency": settings.concurrency,
        "threads": settings.threads,
        "processes": settings.processes,
    }
    return {name: value for name, value in options.items() if value is not None}


async def _serve(
    settings: Settings,
    aiomains: Sequence[Aiomain],
    signals: Signals,
    supervised: Supervised | None,
    ending: Ending,
) -> int:
    """Serve until a signal, the release by a supervisor, a lost connection, or an aiomain that raises."""
    from atasks_cli.notes import keep_notes

    place, options = destination(settings)
    if supervised is not None and settings.transport == "unix":
        options |= {"hub": False, "workers": 0}  # the hub is the supervisor's
    serving = atasks.serve(
        place,
        namespace=settings.namespace,
        queues=settings.queues or None,
        concurrency=settings.concurrency,
        threads=settings.threads,
        processes=settings.processes,
        grace=settings.grace,
        **options,
    )
    code: int = Exit.OK
    supervisor = None if supervised is None else os.getppid()
    queues: dict[str, int] = {}
    async with serving as worker, keep_notes(lambda: _note(worker, supervisor) | {"queues": queues}):
        stop = asyncio.Event()
        signals.first = stop.set
        _reread_keys_on_hangup(worker.transport)
        what = _what(settings, worker)
        if supervised is None:
            say(f"serving {what}; Ctrl-C to drain")
        else:
            supervised.ready(what)
        keep_freed_memory()  # which takes some milliseconds: calls need not wait for it to come
        lost = asyncio.create_task(worker.wait())
        stopped = asyncio.create_task(stop.wait())
        running = asyncio.create_task(run_all(aiomains))
        ends = {lost, stopped, running}
        watching = {asyncio.create_task(supervised.watch(worker))} if supervised is not None else set()
        if settings.http is not None:
            watching.add(asyncio.create_task(_measure(worker, settings.queues, queues)))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and running.exception() is None:  # the return of an aiomain ends nothing
                await asyncio.wait({lost, stopped}, return_when=asyncio.FIRST_COMPLETED)
            elif running.done():
                code = _report(running.exception(), settings)
            ending.within(0 if lost.done() else settings.grace)
            if not lost.done():
                (say if supervised is None else logger.info)(_draining(settings, worker))
                await worker.drain(settings.grace)
            await lost
        except TransportError as error:
            raise CommandError(Exit.LOST, f"{' '.join(str(error).split())}; start it again") from error
        finally:
            # Last, because running calls may use what an aiomain holds open.
            for task in ends | watching:
                task.cancel()
            await asyncio.wait(ends | watching)
    logger.info("worker %s has drained", worker.id)
    return code


def _report(failure: BaseException | None, settings: Settings) -> int:
    """Show what an aiomain raised, the exit code for it."""
    if not isinstance(failure, AiomainFailed):
        assert failure is not None
        raise failure
    error = failure.error
    if isinstance(error, BrokenPipeError) and output_is_unread():
        return Exit.UNREAD
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            return error.code
        if error.code is None:
            return Exit.OK
        say(str(error.code))
        return Exit.FAILED
    show_traceback(error, whole=settings.verbosity >= 2)
    say(f"error: aiomain() of {failure.module} raised {type(error).__name__}; its traceback is above")
    return Exit.FAILED


async def _measure(worker: atasks.Worker, served: list[str], lengths: dict[str, int]) -> None:
    """Keep up to date how many calls wait in the queues that are served, where the transport can tell."""
    while True:
        queues = served or worker.served.queues(worker.transport.queue)
        states = await worker.transport.queue_states(queues)
        lengths.update((queue, ready) for queue, (ready, _) in states.items())
        await asyncio.sleep(QUEUE_SECONDS)


def _note(worker: atasks.Worker, supervisor: int | None) -> Note:
    """The state of a server, for probes."""
    connected = worker.transport.is_connected
    counts = next((found for found in snapshot().workers if found.id == worker.id), None)
    return {
        "worker": worker.id,
        "namespace": worker.namespace,
        "supervisor": supervisor,
        "connected": connected,
        "consuming": connected and not worker.draining,
        "draining": worker.draining,
        "running": counts.running if counts is not None else 0,
        "parked": counts.parked if counts is not None else 0,
        "waiting": counts.waiting if counts is not None else 0,
        "slots": worker.concurrency,
        "lag": counts.loop_lag if counts is not None else 0.0,
    }


def _what(settings: Settings, worker: atasks.Worker) -> str:
    count = len(worker.tasks)
    queues = settings.queues or worker.served.queues(worker.transport.queue)
    where = f"queue{'s' * (len(queues) > 1)} {', '.join(map(repr, queues))}"
    place = shown_url(settings.url) if settings.url else settings.transport
    served = counted(count, "atask") if count else "no atask"
    return f"{served} on {where} of {place} with concurrency {settings.concurrency}"


def _draining(settings: Settings, worker: atasks.Worker) -> str:
    running = worker.held - worker.unstarted
    if not running:
        return "draining: no call is running"
    calls = "1 call is" if running == 1 else f"{running} calls are"
    return f"draining: {calls} running, for at most {settings.grace:g} s; Ctrl-C again to exit at once"
