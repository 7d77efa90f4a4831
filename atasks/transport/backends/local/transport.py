"""The local transport: the caller's side, and the life of the connection to the hub."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack

from msgspec import structs

from atasks import modules, wire
from atasks.errors import (
    AccessRefused,
    CallConnectionLost,
    ConnectFailed,
    InvalidURL,
    NotConnected,
    NoWorker,
    TransportError,
    WorkerLost,
    WorkersFailed,
)
from atasks.options import Executor, TaskOptions, WorkerOptions, validate_queue, validate_seconds
from atasks.transport.backends.local.backpressure import Backpressure
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.hub.socket_file import trusts
from atasks.transport.backends.local.link import Conversation, SocketLink
from atasks.transport.backends.local.lookout import Lookout
from atasks.transport.backends.local.messages import (
    PROTOCOL,
    Answer,
    Bye,
    Deliver,
    Found,
    Handed,
    Hello,
    Hold,
    Message,
    News,
    NoneServes,
    Pong,
    Refused,
    Request,
    Salvaged,
    There,
    Welcome,
    Where,
)
from atasks.transport.backends.local.records import LocalRecords
from atasks.transport.backends.local.serving import Serving
from atasks.transport.backends.local.url import checked_path, parse
from atasks.transport.backends.local.worker_processes import WorkerProcesses, check
from atasks.transport.call_transport import CallTransport, Pending
from atasks.transport.records.contract import DEFAULT_EXPIRES
from atasks.transport.records.store import DEFAULT_KEEP_BYTES, check_keep_bytes
from atasks.wire import AT_MOST_ONCE, Cancel, Credit, End, Reply

if TYPE_CHECKING:
    from atasks.worker.worker import Worker

__all__ = ["LocalTransport"]

logger = logging.getLogger("atasks.local")

BACKOFF: Final = (0.02, 1.0)
"""Seconds before the first and, at most, before any later attempt to reconnect."""
CLOSE_SECONDS: Final = 5.0
RESENT_MS: Final = 50
"""A call that has so much less than its whole time was sent before, or has waited for room."""
MAX_WORKERS: Final = 1000
"""Worker processes of one program."""


class LocalTransport(CallTransport):
    """Calls between processes of one user on one host, without a broker.

    One process has the hub, which listens on a Unix socket at `path`; the others connect to it. `hub` says whether
    this one has it; None: if it is given to `atasks.serve`. Without a `path` the socket is a private one, and the
    hub is here. `workers` is how many worker processes to start beside a hub that is here (None: as many as there
    are cores if the socket is private, else none); they import `modules` (None: those of the atasks that are
    registered when it connects), and serve with the options `serving` (concurrency, max_parked, threads, processes
    and grace, which is 0 unless given). `queue` is the work queue of atasks that name none. `timeout` is in
    seconds, for connecting, and for all worker processes to become ready. `keep_runs` is for how many seconds the
    results of a pipeline's run that is submitted here are kept when nobody uses them, in the hub's process, and
    `keep_bytes` how many bytes a hub that is here keeps of all runs.

    Guarantees: a caller whose hub is gone connects to the next one; what it awaits at least once is sent again,
    and what it awaits at most once ends in `CallConnectionLost`. A worker that is not in the hub's process ends
    with its hub.
    """

    supports = CallTransport.supports | {"streams"}

    def __init__(
        self,
        path: str | None = None,
        namespace: str = "default",
        *,
        hub: bool | None = None,
        queue: str = "default",
        workers: int | None = None,
        modules: Sequence[str] | None = None,
        timeout: float = 30.0,
        keep_runs: float = DEFAULT_EXPIRES,
        keep_bytes: int = DEFAULT_KEEP_BYTES,
        **serving: Unpack[WorkerOptions],
    ) -> None:
        self.path = None if path is None else checked_path(path)
        self.queue = validate_queue(queue)
        self.timeout = validate_seconds("timeout", timeout)
        if workers is None:
            workers = (os.cpu_count() or 1) if path is None else 0
        _check_workers(workers)
        if hub is False and (path is None or workers):
            raise ValueError("hub=False joins the hub of another process: it needs a path, and takes no workers")
        check(serving)
        self._keep_bytes = check_keep_bytes(keep_bytes)
        self._kept = LocalRecords(self, keep_runs)
        super().__init__(namespace)
        self.records = self._kept
        self.workers = workers
        self._serving = serving
        self._modules = modules
        self._hosts = hub if hub is not None else bool(path is None or workers)
        self._may_host = hub is None
        self._link: Conversation | None = None
        """To the hub; None while there is none."""
        self._welcome: asyncio.Future[None] | None = None
        self._host: Host | None = None
        self.crew: WorkerProcesses | None = None
        """The worker processes, if it has some."""
        self._crew_watch: asyncio.Task[None] | None = None
        self._private: str | None = None
        """The directory of a private socket."""
        self._service: Serving | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._gate = Backpressure()
        self._withdrawn: list[str] = []
        self._lookout = Lookout(self)
        self._last_attempts: set[str] = set()
        """Calls whose last permitted attempt has begun."""
        self._said_bye = False

    @classmethod
    def from_url(cls, url: str | Sequence[str], namespace: str, options: dict[str, Any]) -> LocalTransport:
        """`unix:///run/app.sock` or `local:`; `queue` and `workers` may stand in the query."""
        path, found = parse(url)
        try:
            return cls(path, namespace, **{**found, **options})
        except ValueError as error:
            if found and not isinstance(error, InvalidURL):
                raise InvalidURL(f"an option in the URL is wrong: {error}") from None
            raise

    # -- life

    def will_serve(self) -> None:
        if self._may_host:
            self._hosts = True

    async def connect(self) -> None:
        if self._link is not None or self._keeper is not None:
            raise TransportError("this transport is connected already")
        if self.workers and modules.is_importing():
            raise TransportError(modules.UNGUARDED)
        path = self.path
        if path is None:
            self._private = tempfile.mkdtemp(prefix="atasks-")  # its mode is 0700
            path = os.path.join(self._private, "hub.sock")
        try:
            if self._hosts:
                self._host = await Host.open(path, self._keep_bytes)
                self._attach(self._host.inner_link())
            else:
                await self._join(path)
            self._kept.attach(await self._greet())
            if self.workers:
                self.crew = WorkerProcesses(
                    self.workers, path, self.namespace, self._modules, self._serving, self.process_ended
                )
                await self.crew.start(self.timeout)
                self._crew_watch = asyncio.create_task(self._watch_crew(self.crew), name="atasks crew watch")
        except BaseException:
            await self._close(0)
            raise
        self._opened()

    async def disconnect(self) -> None:
        self._closed("the transport was disconnected")
        await self._close()

    def process_ended(self, pid: int) -> None:
        """Tell the hub, if it is here, that a process has ended: others may have the socket of a dead one open."""
        if self._host is not None:
            self._host.hub.process_ended(pid)

    def _closed(self, reason: str) -> None:
        super()._closed(reason)
        self._lookout.stop()
        self._kept.close(reason)
        if self._service is not None:
            self._service.expect_no_answers()

    async def _watch_crew(self, crew: WorkerProcesses) -> None:
        """End every await when worker processes die faster than they start: nobody will run what waits."""
        try:
            await crew.wait()
        except WorkersFailed as error:
            logger.error("no more worker processes are started: %s", error)
            self._closed(str(error))

    async def _close(self, patience: float = CLOSE_SECONDS) -> None:
        """Let go of everything; the hub gets so many seconds to read what it was sent."""
        background = [task for task in (self._keeper, self._crew_watch) if task is not None]
        self._keeper = self._crew_watch = None
        for task in background:
            task.cancel()
        if background:
            await asyncio.wait(background)
        try:
            if self.crew is not None:  # while there is a hub, to which they give back what they do not finish
                await self.crew.stop()
        finally:
            self.crew = None
            link, self._link = self._link, None
            host, self._host = self._host, None
            if host is not None:
                await host.close()
            if link is not None:
                await link.aclose(patience)
            if self._private is not None:
                shutil.rmtree(self._private, ignore_errors=True)
                self._private = None

    # -- the connection

    async def _join(self, path: str) -> None:
        """Connect to the hub of another process. Raises ConnectFailed, AccessRefused."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout):
                socket, link = await loop.create_unix_connection(SocketLink, path)
        except PermissionError as error:
            raise AccessRefused(f"the socket {path} belongs to another user: connect as that one") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ConnectFailed(
                f"nothing serves at {path}: start a server there (atasks run MODULE --mode server --url unix://{path})"
            ) from error
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(f"cannot connect to {path}: {str(error) or 'no answer in time'}") from error
        self._attach(link)
        if not trusts(socket.get_extra_info("socket")):
            raise AccessRefused(f"the hub at {path} is run by another user, who is not trusted: name another path")

    def _attach(self, link: Conversation) -> None:
        link.receive = self._receive
        link.unreadable = self._unreadable
        link.lost = self._lost
        link.freed = self._gate.open_link
        link.eager = isinstance(link, SocketLink)
        self._link = link
        self._said_bye = False
        self._gate.attach(link)

    async def _greet(self) -> Conversation:
        """Say Hello, and return the link. Raises ConnectFailed if that does not make us welcome."""
        assert self._link is not None, "it is attached"
        self._welcome = asyncio.get_running_loop().create_future()
        self._link.send(Hello(PROTOCOL, self.namespace, os.getpid()))
        try:
            async with asyncio.timeout(self.timeout):
                await self._welcome
            if self._link is None:
                raise ConnectFailed(f"the hub at {self.path} went away")
            return self._link
        except TimeoutError as error:
            raise ConnectFailed(f"the hub at {self.path} does not answer: is its process stopped?") from error
        finally:
            self._welcome = None

    def _lost(self, reason: str) -> None:
        """The hub is gone, or refused us."""
        link, self._link = self._link, None
        self._kept.detach()
        if self._welcome is not None:
            if not self._welcome.done():
                self._welcome.set_exception(ConnectFailed(f"the hub at {self.path} went away: {reason}"))
            return
        if self._refusal is not None:
            return  # it is being disconnected
        graceful = self._said_bye
        for pending in list(self._pending.values()):
            if pending.confirmed:
                self._hub_died_with(pending, graceful)
        self._last_attempts.clear()
        if self._service is not None:
            self._service.lost()
            self._service.worker.fail(TransportError(f"the hub at {self.path} is gone ({reason})"))
            self._closed(f"the hub at {self.path} is gone")
        else:
            logger.log(
                logging.INFO if graceful else logging.WARNING, "the hub at %s is gone: %s", self.path, reason
            )
            if isinstance(link, SocketLink):
                self._keeper = asyncio.create_task(self._reconnect(), name="atasks reconnect")
                self._keeper.add_done_callback(self._on_keeper_done)

    def _hub_died_with(self, pending: Pending, graceful: bool) -> None:
        """Whether a worker had begun with it cannot be known, unless the hub said that none had."""
        pending.confirmed = False
        call = pending.call
        if graceful and (pending.receiver is None or call.delivery != AT_MOST_ONCE):
            call.ran |= pending.receiver is not None  # its next run has to ask where to go on
            return
        last = call.attempt >= call.max_attempts
        if call.delivery == AT_MOST_ONCE:
            pending.fail(
                CallConnectionLost(
                    f"the hub is gone: whether {call.task} ran cannot be known, and it runs at most once"
                )
            )
        elif last and (call.attempt == 1 or call.id in self._last_attempts):
            message = f"task {call.task!r}, call {call.id}, will not run again: the process of its hub died"
            pending.fail(WorkerLost(message, call.attempt))
        elif not last:
            call.attempt += 1

    async def _reconnect(self) -> None:
        """Connect to the next hub, and send again what is awaited."""
        assert self.path is not None, "a hub with a private socket is in this process"
        pause, longest = BACKOFF
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # jitter: not every client at once
            pause = min(pause * 2, longest)
            try:
                await self._join(self.path)
                greeted = await self._greet()
            except TransportError as error:
                logger.debug("cannot reconnect yet: %s", error)
                link, self._link = self._link, None
                if link is not None:
                    await link.aclose(0)
            else:
                break
        logger.info("connected to the hub at %s again", self.path)
        self._keeper = None
        self._kept.attach(greeted)
        for pending in list(self._pending.values()):
            if not pending.future.done():
                self._post(pending)

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        """It ended without a connection: say so loudly, and end every await."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            logger.critical("the connection is not restored any more", exc_info=error)
            self._closed(f"the transport failed ({type(error).__name__})")

    # -- calls

    def _room(self) -> asyncio.Future[None] | None:
        return self.room()

    def room(self) -> asyncio.Future[None] | None:
        """What to await before asking again whether more may be sent; None: it may."""
        return self._gate.room()

    def _post(self, pending: Pending) -> None:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        if pending.confirmed or pending.future.done():
            return  # it was sent after a reconnect, while it waited for room
        options, link = pending.options, self._link
        wait = options.on_no_worker != "error"
        if link is None or self._welcome is not None:
            if not wait:
                raise NoWorker(
                    f"the hub at {self.path} is gone, and nothing serves queue {self.queue_of(pending.options)!r}"
                )
            return  # it is sent after the reconnect
        pending.confirmed = True
        call = pending.call
        if self._lookout.idle:
            self._lookout.start()
        if pending.deadline is not None and call.timeout_ms is not None:  # sent again, it has less time
            left = max(round((pending.deadline - asyncio.get_running_loop().time()) * 1000), 0)
            if call.timeout_ms - left > RESENT_MS:
                call = structs.replace(call, timeout_ms=left)
        link.send(Request(self.queue_of(options), call, options.priority, wait), len(call.payload))

    def queue_of(self, options: TaskOptions) -> str:
        """The work queue of calls with these options."""
        return options.queue or self.queue

    def _locate(self, pending: Pending) -> None:
        self._lookout.locate(pending)

    def pendings(self) -> list[Pending]:
        """The calls that are awaited."""
        return list(self._pending.values())

    def pending(self, call_id: str) -> Pending | None:
        """The awaited call of that id."""
        return self._pending.get(call_id)

    def ask(self, ids: list[str]) -> None:
        """Ask the hub where these calls are."""
        if self._link is not None:
            self._link.send(Where(ids))

    def _withdraw(self, pending: Pending) -> None:
        if pending.confirmed:
            if not self._withdrawn:
                asyncio.get_running_loop().call_soon(self._send_cancels)
            self._withdrawn.append(pending.call.id)

    def _send_cancels(self) -> None:
        withdrawn, self._withdrawn = self._withdrawn, []
        if self._link is not None:
            for cancel in wire.cancels(withdrawn):
                self._link.send(cancel)

    def _grant(self, credit: Credit, worker: str) -> None:
        if self._link is not None:
            self._link.send(credit)

    # -- what arrives

    def _receive(self, messages: list[Message]) -> None:
        service = self._service
        for message in messages:
            if type(message) is Reply:
                self._resolve(message)
            elif type(message) is Deliver:
                if service is not None:
                    service.deliver(message)
            elif type(message) is wire.Item or type(message) is End:
                self._take_in(message)
            else:
                self._control(message)
        if service is not None:
            service.link.speak()  # calls that resume take slots, later in this turn

    def _control(self, message: Message) -> None:
        match message:
            case Cancel() | Credit() | Pong():
                if self._service is not None:
                    self._service.told(message)
            case NoneServes():
                pending = self._pending.get(message.id)
                if pending is not None:
                    pending.fail(NoWorker(_no_worker(self.queue_of(pending.options))))
            case Answer() | Found():
                self._kept.answered(message)
            case News():
                self._kept.news(message)
            case There():
                self._lookout.found(message)
            case Handed():
                self._last_attempts.add(message.id)
            case Hold():
                self._gate.hold(message.on)
            case Bye():
                self._said_bye = True
            case Welcome() | Refused():
                self._greeted(message)

    def _greeted(self, message: Welcome | Refused) -> None:
        """The answer to our Hello."""
        if self._welcome is None or self._welcome.done():
            return
        if isinstance(message, Welcome):
            self._welcome.set_result(None)
        else:
            self._welcome.set_exception(ConnectFailed(message.reason))

    def _unreadable(self, salvaged: Salvaged) -> None:
        logger.error("a message of the hub makes no sense, and is dropped: %s", salvaged.bad[0][1])
        self._receive(salvaged.messages)

    # -- serving

    async def serve(self, worker: Worker, queues: Sequence[str] | None = None) -> None:
        service = self._service
        if service is None:
            if self._link is None:
                raise NotConnected(self._refusal or "the connection is lost just now: try again")
            names = worker.queues(self.queue) if queues is None else [validate_queue(queue) for queue in queues]
            service = self._service = Serving(worker, names, self._link)
            self._link.eager = False  # a reply is followed by what it says of slots
        elif service.worker is not worker:
            raise TransportError("this transport serves a worker already: use one transport for each worker")
        service.start()
        await service.others()  # when this returns, the hub knows

    async def stop_serving(self, worker: Worker) -> None:
        if self._service is not None:
            await self._service.stop()

    async def has_other_workers(self, worker: Worker) -> bool:
        return self._service is not None and await self._service.others()

    async def flush(self) -> None:
        if self._service is not None:
            await self._service.others()  # the answer means that the hub has what was sent before

    def slots_changed(self, worker: Worker) -> None:
        if self._service is not None:
            self._service.link.speak()

    def overfull(self, worker: Worker) -> None:
        if self._service is not None:
            self._service.overfull()

    def lacks_place(self, worker: Worker, executor: Executor) -> None:
        if self._service is not None:
            self._service.lacks_place(executor)


def _check_workers(workers: Any) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers is a number of processes, not {workers!r}")
    if not 0 <= workers <= MAX_WORKERS:
        raise ValueError(f"workers={workers if abs(workers) < 10**12 else '…'}: 0 to {MAX_WORKERS} processes")


def _no_worker(queue: str) -> str:
    return f"nothing serves queue {queue!r}: start a worker (atasks run MODULE --mode server)"
