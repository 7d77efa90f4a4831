"""The local transport: the caller's side, and the life of the connection to the hub."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack

from atasks import modules, wire
from atasks.commands import worker_command
from atasks.errors import (
    AccessRefused,
    ConnectFailed,
    DecodeError,
    InvalidURL,
    NotConnected,
    TransportError,
    WorkersFailed,
)
from atasks.options import Executor, WorkerOptions, validate_queue, validate_seconds
from atasks.pauses import pauses
from atasks.tracking.steering import Purged
from atasks.transport.backends.local.calling import Calling
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.frames import Salvaged
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.hub.socket_file import trusts
from atasks.transport.backends.local.journals import LocalJournals
from atasks.transport.backends.local.limits import LocalLimits
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import (
    PROTOCOL,
    Answer,
    Bye,
    Deliver,
    Found,
    Handed,
    Hello,
    Hold,
    JournalFound,
    LookAtTable,
    Message,
    News,
    NoneServes,
    Outcome,
    Pong,
    Publish,
    QueueState,
    Refused,
    Table,
    There,
    TokenTaken,
    Welcome,
)
from atasks.transport.backends.local.records import LocalRecords
from atasks.transport.backends.local.schedules import LocalSchedules
from atasks.transport.backends.local.serving import Serving
from atasks.transport.backends.local.steering import Steering
from atasks.transport.backends.local.url import checked_path, parse
from atasks.transport.backends.local.worker_processes import WorkerProcesses, check, check_number
from atasks.transport.call_transport import CallTransport
from atasks.transport.pending import Pending
from atasks.transport.records.contract import DEFAULT_EXPIRES
from atasks.transport.records.store import DEFAULT_KEEP_BYTES, check_keep_bytes
from atasks.wire import Call, Cancel, Credit, End, Reply

if TYPE_CHECKING:
    from atasks.codecs.pieces import Pieces
    from atasks.transport.server import Server

__all__ = ["LocalTransport"]

logger = logging.getLogger("atasks.local")

BACKOFF: Final = (0.02, 1.0)
"""Seconds before the first and, at most, before any later attempt to reconnect."""
CLOSE_SECONDS: Final = 5.0


class State(enum.Enum):
    """The state of a transport's connection to the hub."""

    CLOSED = enum.auto()
    """No connection: not yet, or no more."""
    JOINED = enum.auto()
    LEAVING = enum.auto()
    """No connection, and the hub has said that it is about to close."""
    LOST = enum.auto()
    """The hub is gone, and the next one is looked for."""
    ENDED = enum.auto()
    """Every await has ended, and there will be no others."""


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

    supports = CallTransport.supports | {"streams", "events", "reports"}
    max_payload = 2**30
    shares = False
    """True if payloads in pieces go to the hub in shared memory."""

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
        check_number(workers)
        if hub is False and (path is None or workers):
            raise ValueError("hub=False joins the hub of another process: it needs a path, and takes no workers")
        check(serving)
        self._keep_bytes = check_keep_bytes(keep_bytes)
        self.calling = Calling(self.path, self.queue, self._ask_if_open)
        self._records = LocalRecords(self.calling, self.usable, keep_runs)
        super().__init__(namespace)
        self.records = self._records
        self._limits = LocalLimits()
        self.limits = self._limits
        self._schedules = LocalSchedules(self._records, lambda: self._link)
        self.schedules = self._schedules
        self._steering = Steering(self._records)
        self.journals = LocalJournals(self, self._records, lambda: self._link)
        self._pending = self.calling.pendings
        self.workers = workers
        self._options = serving
        self._modules = modules
        self._hosts = True if path is None or workers else hub
        """True if the hub is here; None: not if nothing is served here."""
        self._state = State.CLOSED
        self._link: Conversation | None = None
        """To the hub; None while there is none."""
        self._welcome: asyncio.Future[None] | None = None
        """The hub's answer to our Hello."""
        self._host: Host | None = None
        self.worker_processes: WorkerProcesses | None = None
        """The worker processes, if it has some."""
        self._processes_watch: asyncio.Task[None] | None = None
        self._private: str | None = None
        """The directory of a private socket."""
        self.serving: Serving | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        return self._link is not None

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

    def keep(self, payload: Pieces) -> bytes | Pieces:
        return payload.shared() if self.shares else bytes(payload)

    def will_serve(self) -> None:
        if self._hosts is None:
            self._hosts = True

    async def connect(self) -> None:
        if self._state not in (State.CLOSED, State.ENDED):
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
            await self._greet()
            if self.workers:
                self.worker_processes = WorkerProcesses(
                    self.workers, path, self.namespace, self._modules, self._options, self.process_ended
                )
                await self.worker_processes.start(self.timeout)
                self._processes_watch = asyncio.create_task(
                    self._watch_processes(self.worker_processes), name="atasks processes watch"
                )
        except BaseException:
            await self._close(0)
            raise
        self._opened()

    async def disconnect(self) -> None:
        reason = "the transport was disconnected"
        try:
            await self._closing(reason)
        finally:
            self._closed(reason)
            await self._close()

    def process_ended(self, pid: int) -> None:
        """Tell the hub, if it is here, that a process has ended: others may have the socket of a dead one open."""
        if self._host is not None:
            self._host.hub.process_ended(pid)

    def _closed(self, reason: str) -> None:
        self._state = State.ENDED
        super()._closed(reason)
        self.calling.close()
        self._records.close(reason)
        self._limits.close(reason)
        if self.serving is not None:
            self.serving.expect_no_answers()

    async def _watch_processes(self, processes: WorkerProcesses) -> None:
        """End every await when worker processes die faster than they start: nobody will run what waits."""
        try:
            await processes.wait()
        except WorkersFailed as error:
            logger.error("this program starts no more worker processes: %s", error)
            self._closed(str(error))

    async def _close(self, patience: float = CLOSE_SECONDS) -> None:
        """Let go of everything; the hub gets so many seconds to read what it was sent."""
        background = [task for task in (self._keeper, self._processes_watch) if task is not None]
        self._keeper = self._processes_watch = None
        for task in background:
            task.cancel()
        if background:
            await asyncio.wait(background)
        try:
            if (
                self.worker_processes is not None
            ):  # stop them while the hub lives: they give unfinished calls back to it
                await self.worker_processes.stop()
        finally:
            self.worker_processes = None
            link, self._link = self._link, None
            self.calling.lost(graceful=True)
            host, self._host = self._host, None
            if host is not None:
                await host.close()
            if link is not None:
                await link.aclose(patience)
            if self._private is not None:
                shutil.rmtree(self._private, ignore_errors=True)
                self._private = None
            self._state = State.CLOSED

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
                f"nothing serves at {path}: start a server there ({worker_command(f' --url unix://{path}')})"
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
        link.freed = self.calling.backpressure.open_link
        link.eager = isinstance(link, SocketLink)
        self._link = link
        self.calling.backpressure.attach(link)

    async def _greet(self) -> None:
        """Say Hello, and go on with this hub. Raises ConnectFailed if that does not make us welcome."""
        assert self._link is not None, "it is attached"
        self._welcome = asyncio.get_running_loop().create_future()
        self._link.greet(Hello(PROTOCOL, self.namespace, os.getpid(), True))
        try:
            async with asyncio.timeout(self.timeout):
                await self._welcome
            if self._link is None:
                raise ConnectFailed(f"the hub at {self.path} went away")
        except TimeoutError as error:
            raise ConnectFailed(f"the hub at {self.path} does not answer: is its process stopped?") from error
        finally:
            self._welcome = None
        self._state = State.JOINED
        self._records.attach(self._link)
        self._limits.attach(self._link)
        self.calling.resume(self._link)

    def _lost(self, reason: str) -> None:
        """The hub is gone, or refused us."""
        link, self._link = self._link, None
        self._records.detach()
        self._limits.detach()
        if self._welcome is not None:
            if not self._welcome.done():
                self._welcome.set_exception(ConnectFailed(f"the hub at {self.path} went away: {reason}"))
            return
        if self._state not in (State.JOINED, State.LEAVING):
            return  # it is being disconnected
        graceful = self._state is State.LEAVING
        self.calling.lost(graceful=graceful)
        if self.serving is not None:
            self.serving.lost()
            self.serving.worker.fail(TransportError(f"the hub at {self.path} is gone ({reason})"))
            self._closed(f"the hub at {self.path} is gone")
        else:
            self._state = State.LOST
            logger.log(
                logging.INFO if graceful else logging.WARNING, "the hub at %s is gone: %s", self.path, reason
            )
            if isinstance(link, SocketLink):
                self._keeper = asyncio.create_task(self._reconnect(), name="atasks reconnect")
                self._keeper.add_done_callback(self._on_keeper_done)

    async def _reconnect(self) -> None:
        """Connect to the next hub, and send again what is awaited."""
        assert self.path is not None, "a hub with a private socket is in this process"
        for pause in pauses(*BACKOFF):
            await asyncio.sleep(pause)
            try:
                await self._join(self.path)
                await self._greet()
            except TransportError as error:
                logger.debug("the hub at %s is away still: %s", self.path, error)
                link, self._link = self._link, None
                if link is not None:
                    await link.aclose(0)
            else:
                break
        logger.info("this process is connected to the hub at %s again", self.path)
        self._keeper = None

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        """Say loudly that the keeper ended without a connection, and end every await."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            logger.critical(
                "the transport failed and connects no more, so every await ends: report the traceback",
                exc_info=error,
            )
            self._closed(f"the transport failed ({type(error).__name__})")

    # -- calls

    def _room(self) -> asyncio.Future[None] | None:
        return self.calling.backpressure.room()

    async def publish(self, call: Call) -> None:
        while (room := self._room()) is not None:
            await room
        answer = await self._records.ask(lambda number: Publish(number, call), len(call.payload))
        if isinstance(answer, Answer) and answer.outcome != Outcome.DONE:
            raise DecodeError(answer.reason)

    async def pause_queue(self, queue: str) -> None:
        await self._steering.steer(queue, "pause")

    async def resume_queue(self, queue: str) -> None:
        await self._steering.steer(queue, "resume")

    async def paused_queues(self, queues: Sequence[str]) -> list[str]:
        return await self._steering.paused(queues)

    async def purge_queue(self, queue: str) -> Purged:
        return await self._steering.purge(queue)

    async def queue_states(self, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
        return await self._steering.states(queues)

    def _post(self, pending: Pending) -> None:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        self.calling.post(pending)

    def _locate(self, pending: Pending) -> None:
        self.calling.locate(pending)

    def _withdraw(self, pending: Pending) -> None:
        self.calling.withdraw(pending)

    def send_events(self, token: str, worker: str, content: bytes, voice: str | None) -> bool:
        link = self._link
        if link is None or link.clogged:
            return False
        link.send(wire.QueryAnswer(wire.VERSION, token, worker, content), len(content))
        return True

    def _ask_if_open(self, query: wire.Query, heard: Callable[[wire.QueryAnswer], object]) -> None:
        if self._refusal is None:  # else it leaves, and nobody is there to ask
            self.ask(query, heard)

    def _send_query(self, query: wire.Query) -> None:
        if self._link is not None:
            self._link.send(query, len(query.content))

    def _grant(self, credit: Credit, worker: str) -> None:
        self.calling.grant(credit)

    # -- what arrives

    def _receive(self, messages: list[Message]) -> None:
        serving, resumes = self.serving, False
        for message in messages:
            if type(message) is Deliver:
                if serving is not None:
                    serving.deliver(message)
                continue
            resumes = True
            if type(message) is Reply:
                self._resolve(message)
            elif type(message) is wire.Item or type(message) is End:
                self._take_in(message)
            else:
                self._control(message)
        if serving is not None and (resumes or not serving.is_guessed):
            serving.link.speak()  # calls that resume take slots, later in this turn

    def _answer_here(self, reply: Reply) -> bool:
        """Give a reply of this process's worker to the await, if that is here too, and nothing of the call but the
        reply goes by way of the hub. Tell whether it is so. Not for a call that runs on without its caller: the
        hub, which is told of the end a little later, would have it run again if this process died before."""
        pending = self._pending.get(reply.id)
        if (
            pending is None
            or pending.receiver is not None
            or pending.kept
            or pending.address
            or pending.call.reports
            or pending.call.orphan
        ):
            return False
        self._resolve(reply)
        return True

    def _control(self, message: Message) -> None:
        match message:
            case Cancel() | Credit() | Pong() | wire.Query():
                if self.serving is not None:
                    self.serving.told(message)
            case wire.QueryAnswer():
                self._hear(message)
            case wire.Report():
                self._reported(message)
            case NoneServes() | There() | Handed() | Hold():
                self.calling.told(message)
            case LookAtTable():
                self._schedules.told()
            case Answer() | Found() | Table() | QueueState() | JournalFound():
                self._records.answered(message)
            case News():
                self._records.news(message)
            case TokenTaken():
                self._limits.answered(message)
            case Bye():
                if self._state is State.JOINED:
                    self._state = State.LEAVING
            case Welcome() | Refused():
                self._greeted(message)

    def _greeted(self, message: Welcome | Refused) -> None:
        """The answer to our Hello."""
        if self._welcome is None or self._welcome.done():
            return
        if isinstance(message, Welcome):
            if self._link is not None:
                self._link.beside = message.beside
                self._link.shares = message.shares and self._link.has_lane
                self.shares = self._link.shares
            self._welcome.set_result(None)
        else:
            self._welcome.set_exception(ConnectFailed(message.reason))

    def _unreadable(self, salvaged: Salvaged) -> None:
        logger.error("a message from the hub cannot be read, and is dropped: %s", salvaged.bad[0][1])
        self._receive(salvaged.messages)

    # -- serving

    async def serve(self, worker: Server, queues: Sequence[str] | None = None) -> None:
        serving = self.serving
        if serving is None:
            if self._link is None:
                raise NotConnected(self._refusal or "the connection is lost just now: try again")
            names = worker.served.queues(self.queue) if queues is None else map(validate_queue, queues)
            serving = self.serving = Serving(worker, list(names), self._link, self._answer_here)
            self._link.eager = False  # a reply is followed by a message on free slots
        elif serving.worker is not worker:
            raise TransportError("this transport serves a worker already: use one transport for each worker")
        serving.start()
        await serving.others()  # when this returns, the hub knows

    async def serve_also(self, worker: Server, queues: Sequence[str]) -> None:
        if self.serving is not None:
            known = self.serving.queues
            known += [name for name in map(validate_queue, queues) if name not in known]
            self.serving.start()
            await self.serving.others()  # when this returns, the hub knows

    async def serve_no_more(self, worker: Server, queue: str) -> None:
        if self.serving is not None and queue in self.serving.queues:
            self.serving.queues.remove(queue)
            self.serving.start()
            await self.serving.others()

    async def stop_serving(self, worker: Server) -> None:
        if self.serving is not None:
            await self.serving.stop()

    async def has_other_workers(self, worker: Server) -> bool:
        return self.serving is not None and await self.serving.others()

    async def flush(self) -> None:
        if self.serving is not None:
            await self.serving.others()  # the answer means that the hub has what was sent before

    def slots_changed(self, worker: Server) -> None:
        if self.serving is not None:
            self.serving.link.speak()

    def overfull(self, worker: Server) -> None:
        if self.serving is not None:
            self.serving.overfull()

    def lacks_place(self, worker: Server, executor: Executor) -> None:
        if self.serving is not None:
            self.serving.lacks_place(executor)
