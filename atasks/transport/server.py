"""The contract of transports with workers: what a transport may ask of the worker that it serves.

`Transport.serve` is given a `Server`. The transport hands calls to it by `deliver`, each with a `Delivery`, by
which the worker answers; it may look at what the worker holds, cancel that, and have unstarted calls back. It
knows nothing else of workers, and imports none: `Worker` is what fulfils this.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from atasks.errors import TransportError
    from atasks.options import Executor
    from atasks.tracking.watching import Watching
    from atasks.transport.delivery import Delivery
    from atasks.transport.subscription import Subscription
    from atasks.wire import Call, Credit, End, Query, QueryAnswer, Reply

__all__ = ["HeldRun", "Places", "Server", "ServerStreams", "ServerTasks", "TokenWaits", "Withdrawals"]


class HeldRun(Protocol):
    """A call that a worker holds."""

    call: Call
    deliveries: tuple[Delivery, ...]
    """All by which it came, the last one by the present connection. The transport may replace them."""

    ended: bool
    permit: Callable[[], Coroutine[Any, Any, bool]] | None
    """Asked right before it begins: whether it may, still. If not, nobody is told how it ended."""

    @property
    def ran(self) -> float | None:
        """Seconds since it has begun; None: it has not."""
        ...

    @property
    def awaited(self) -> tuple[str, str] | None:
        """A call that it awaits: its id, and its atask."""
        ...


class Places(Protocol):
    """The places of one pool, for functions that block."""

    size: int
    free: int


class TokenWaits(Protocol):
    """Calls of a worker that wait for tokens of limits."""

    fresh: int
    """Those that may have their token in a moment, and take their slots again."""
    lasting: int


class Pools(Protocol):
    """The pools of a worker."""

    @property
    def places(self) -> Mapping[Executor, Places]:
        """Those of each executor."""
        ...


class ServerTasks(Protocol):
    """The atasks that a worker serves."""

    def queues(self, default: str) -> list[str]:
        """Their work queues; `default` is that of those which name none."""
        ...

    @property
    def executors(self) -> dict[str, Executor]:
        """The executor of each atask that is a blocking function."""
        ...

    @property
    def attempts(self) -> dict[str, int]:
        """The attempts of those atasks that may have more than others."""
        ...

    @property
    def subscriptions(self) -> list[Subscription]:
        """Those of them that handle events."""
        ...

    def cap(self, call: Call) -> None:
        """Hold a call that asks for very many attempts to those that are allowed here."""
        ...


class ServerStreams(Protocol):
    """The streams that a worker sends."""

    def credit(self, credit: Credit) -> None:
        """A consumer says what it has taken."""
        ...

    def run(self, call_id: str) -> HeldRun | None:
        """The call of a stream that is live, or has ended lately."""
        ...

    def ask(self) -> None:
        """Ask every consumer where it is: a connection was lost."""
        ...


class Withdrawals(Protocol):
    """Calls whose awaits have ended, and which the worker did not have."""

    @property
    def forgotten_ms(self) -> float:
        """When one of them had to be forgotten before its time (wall clock in milliseconds)."""
        ...

    def since(self, call_id: str) -> float | None:
        """When the await of the call ended (wall clock in milliseconds); None: it is not known to have."""
        ...

    def __contains__(self, call_id: str) -> bool: ...


class Server(Protocol):
    """A worker, as its transport sees it. Both are in one event loop, and nothing here waits."""

    id: str
    """Unique among all workers: printable ASCII, 64 characters at most."""

    @property
    def served(self) -> ServerTasks:
        """The atasks that it serves."""
        ...

    @property
    def draining(self) -> bool:
        """The worker is about to end."""
        ...

    @property
    def accepting(self) -> bool:
        """The worker takes calls: what comes otherwise, it gives back."""
        ...

    # -- how much it can take

    @property
    def concurrency(self) -> int:
        """The number of calls that the worker runs at once."""
        ...

    @property
    def room(self) -> int:
        """The number of calls for which there are slots now; less than 0: so many wait here for one."""
        ...

    @property
    def parked(self) -> int:
        """Calls that await others: they hold no slot."""
        ...

    @property
    def token_waits(self) -> TokenWaits:
        """Those of them that wait for a token of a limit, and have not begun."""
        ...

    @property
    def alone(self) -> bool:
        """A call runs alone here, or waits to: then nothing else may start."""
        ...

    @property
    def pools(self) -> Pools:
        """The places for functions that block."""
        ...

    # -- calls

    def deliver(
        self,
        call: Call,
        delivery: Delivery,
        alone: bool = False,
        permit: Callable[[], Coroutine[Any, Any, bool]] | None = None,
    ) -> None:
        """Take a call in hand, which may be one that is in hand already. `alone`: nothing may run beside it.
        `permit` is awaited before it begins, and may refuse it. Never raises."""
        ...

    def cancel(self, call_id: str) -> None:
        """The await of this call has ended."""
        ...

    def give_back_unstarted(self, executor: Executor | None = None, queue: str | None = None) -> None:
        """Return the calls that have not begun to their queue; `executor`: those that wait for such a place."""
        ...

    @property
    def held(self) -> int:
        """The number of calls in hand."""
        ...

    @property
    def runs(self) -> Sequence[HeldRun]:
        """The calls in hand."""
        ...

    def find(self, call_id: str) -> HeldRun | None:
        """The call in hand of that id."""
        ...

    def holds(self, call_id: str) -> bool:
        """Return True if the worker has the call in hand."""
        ...

    def knows(self, call_id: str) -> bool:
        """Return True if the worker has the call in hand, or has finished it lately."""
        ...

    def knows_any(self, call_ids: Iterable[str]) -> bool:
        """Return True if the worker knows one of these calls."""
        ...

    def finished(self, call_id: str) -> Reply | End | None:
        """The reply of a call that has finished here lately."""
        ...

    def owner(self, call_id: str) -> str | None:
        """Return `Call.by` of a call that the worker has in hand or has finished lately; None: it knows no such
        call."""
        ...

    @property
    def withdrawn(self) -> Withdrawals:
        """Calls that were cancelled before they came."""
        ...

    @property
    def streams(self) -> ServerStreams:
        """The streams that it sends."""
        ...

    @property
    def watching(self) -> Watching | None:
        """The teller of the worker's events, while somebody watches it."""
        ...

    def answer(
        self, queues: Sequence[str], query: Query, owner: str | None = None, voice: str | None = None
    ) -> QueryAnswer | None:
        """Return what it says to a question about itself and its calls, as it serves these queues; None: nothing.
        `owner`: only calls of the key of that name may be ended. Never raises."""
        ...

    # -- what goes wrong

    def count_bad(self, reason: str) -> None:
        """Count a request that could not be read; the first one is logged."""
        ...

    def over(self, call: Call, *, reply: Reply | None = None) -> None:
        """A call that has come again is not to run again: it has ended elsewhere, or nobody awaits it. Drop what
        an earlier run has left of it; if it is about to be answered by `reply`, when that is safe."""
        ...

    def moved(self, call_id: str, ended: bool = False) -> None:
        """Another worker has been given this call, and goes on with it, or has `ended` it: end its run here, and
        leave what it has begun."""
        ...

    def count_lost(self, call: Call) -> None:
        """Count a call that was lost with another worker, and is not tried again."""
        ...

    def fail(self, error: TransportError) -> None:
        """The transport is lost for good: who waits for the worker is told."""
        ...
