"""Limits: how many calls may run at a time, and how many may begin in a period."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from atasks.checks import validate_integer, validate_number, validate_plain, validate_queue, validate_seconds
from atasks.namespaces import namespace_item

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from atasks.transport.limits.contract import Token

__all__ = ["Limit", "Rule"]

MAX_TOKENS: Final = 10_000
MAX_NAME: Final = 60
MAX_KEY: Final = 40
MAX_PERIOD: Final = 24 * 3600
PLAIN_KEY: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}")


class Rule(NamedTuple):
    """The rule of a limit."""

    at_once: int
    """The most holders at one time; 0: any number."""
    per_period: int
    """The most beginnings in a period; 0: any number."""
    period: float
    """Seconds."""

    def __str__(self) -> str:
        parts = [f"at_once={self.at_once}"] if self.at_once else []
        if self.per_period:
            parts.append(f"{self.per_period} in {self.period:g} s")
        return " and ".join(parts)


class Limit:
    """At most so many at a time, or in a period, over all processes that share a broker, a hub or a loopback.

    `Limit("stripe", at_once=3)`: at most three hold it at any time. `Limit("mail", per_second=5)`: at most five
    begin in any second; `Limit("report", per_second=100 / 3600, period=3600)`: at most a hundred in any hour. Both
    may be given.

    `@atask(limit=stripe)`: a worker takes a token before the body of a call begins, and the call holds no slot
    while it waits for it. `async with stripe:` takes one anywhere, `with stripe.sync:` in threads without an event
    loop. With `key` each value has tokens of its own, and `async with limit.of(user):` takes one of those.

    The name is that of the limit in its `namespace`, for all programs: those that use it at the same time must say
    the same of it, else whoever comes later gets a LimitError. Nobody is told whether there are tokens: a token is
    waited for.

    Args:
        name: The name of the limit: letters, digits and `-_.:@#,/+`, at most 60.
        at_once: So many hold it at the most.
        per_second: So many begin in a second at the most.
        period: Seconds in which `per_second * period` may begin. None: 1, or the time for one where `per_second`
            is below 1.
        key: A function of the arguments of the atask, which gives a text or a whole number. There should be a
            bounded number of its values: a thousand in use at a time.
        namespace: The namespace of the limit.

    Raises:
        ValueError: Nothing is limited, or a number makes no sense.
        TypeError: `key` is no function.

    Guarantees:
        Waiters of one process have their turn in order. Processes in which somebody waits have theirs one after
        the other, however many wait in each.

    Example:
        ```python
        import asyncio

        from atasks import Limit, atask

        @atask(limit=Limit("bank", at_once=3))
        async def charge(amount: int) -> int:
            return amount

        print(await asyncio.gather(*(charge(n) for n in range(5))))  # [0, 1, 2, 3, 4]
        ```
    """

    def __init__(
        self,
        name: str,
        *,
        at_once: int | None = None,
        per_second: float | None = None,
        period: float | None = None,
        key: Callable[..., str | int] | None = None,
        namespace: str = "default",
    ) -> None:
        self.name = validate_queue(name, "the name of a limit")
        if len(name) > MAX_NAME:
            raise ValueError(f"the name of a limit has {len(name)} characters: at most {MAX_NAME}")
        if at_once is None and per_second is None:
            raise ValueError(f"Limit({name!r}) limits nothing: give at_once, or per_second, or both")
        if at_once is not None:
            validate_integer("at_once", at_once, 1, MAX_TOKENS)
        if per_second is None and period is not None:
            raise ValueError("period is for per_second: give that too")
        if key is not None and not callable(key):
            raise TypeError(f"key is a function of the arguments of the atask, not {key!r}")
        validate_plain("key", key)
        count, seconds = (0, 0.0) if per_second is None else _rate(per_second, period)
        self.rule = Rule(at_once or 0, count, seconds)
        """The rule of the limit."""
        self.key = key
        """Which tokens a call needs, of its arguments; None: there is one kind."""
        self.namespace = validate_queue(namespace, "namespace")
        self._whole = Holding(self, None)

    def of(self, /, *args: Any, **kwargs: Any) -> Holding:
        """The tokens for one value of the key: `async with limit.of(user):`."""
        if self.key is None:
            raise TypeError(f"limit {self.name!r} has no key: write `async with limit:`")
        return Holding(self, self.key_of(args, kwargs))

    def key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """The value of the key for these arguments, as it stands in names; None: it has no key. Raises TypeError
        for a value that is neither a text nor a whole number, and what the function raises."""
        if self.key is None:
            return None
        value = self.key(*args, **kwargs)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise TypeError(
                f"the key of limit {self.name!r} is a text or a whole number, not {type(value).__name__}"
            )
        text = str(value)
        if PLAIN_KEY.fullmatch(text):
            return text
        import hashlib  # slow to import, and only limits with a key need it

        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=MAX_KEY // 2).hexdigest()

    async def take(self, /, *args: Any, **kwargs: Any) -> Token:
        """A token for work with these arguments, which the key takes if there is one. It is held until its
        `release`; where a block can do that, write `async with limit:`."""
        return await Holding(self, self.key_of(args, kwargs)).take()

    async def __aenter__(self) -> None:
        await self._the_one().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._whole.__aexit__(kind, error, traceback)

    @property
    def sync(self) -> SyncHolding:
        """For code without an event loop: `with limit.sync:`."""
        return self._the_one().sync

    def _the_one(self) -> Holding:
        if self.key is not None:
            raise TypeError(f"limit {self.name!r} has a key: write `async with limit.of(...)`, with what it takes")
        return self._whole

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Limit):
            return NotImplemented
        return self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._said())

    def _said(self) -> tuple[Any, ...]:
        return self.name, self.rule, self.key, self.namespace

    @classmethod
    def restored(cls, name: str, rule: Rule, namespace: str, key: Callable[..., str | int] | None = None) -> Limit:
        """A limit of this rule. Raises TypeError and ValueError as the constructor does."""
        rate: dict[str, float] = {}
        if rule.per_period:
            validate_integer("per_period", rule.per_period, 1, MAX_TOKENS)
            validate_seconds("period", rule.period, MAX_PERIOD)
            rate = {"per_second": rule.per_period / rule.period, "period": rule.period}
        return cls(name, at_once=rule.at_once or None, key=key, namespace=namespace, **rate)

    def __reduce__(self) -> tuple[Any, ...]:
        return Limit.restored, (self.name, self.rule, self.namespace, self.key)

    def __repr__(self) -> str:
        return f"<limit {self.name!r}: {self.rule}>"


class Holder(NamedTuple):
    """The task or thread that entered a limit."""

    loop: asyncio.AbstractEventLoop | None
    """The event loop of a task; None: a thread without one."""
    who: object
    """The task, or the number of the thread."""


def _task() -> Holder:
    import asyncio  # whoever has a task has it: who defines a limit need not

    return Holder(asyncio.get_running_loop(), asyncio.current_task())


def _thread() -> Holder:
    return Holder(None, threading.get_ident())


class Holding:
    """The tokens of a limit, or of one value of its key: a context manager that holds one of them."""

    def __init__(self, limit: Limit, key: str | None) -> None:
        self._limit = limit
        self._key = key
        self._held: dict[Holder, list[Token]] = {}
        """The tokens of each holder, the last one last."""

    async def take(self) -> Token:
        """A token, which is held until its `release`."""
        token: Token = await self._router.take_token(self._limit, self._key)
        token.begin()
        return token

    async def __aenter__(self) -> None:
        token = await self.take()
        self._held.setdefault(_task(), []).append(token)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pop(_task()).release()

    @property
    def sync(self) -> SyncHolding:
        """For code without an event loop: `with limit.of(user).sync:`."""
        return SyncHolding(self)

    @property
    def _router(self) -> Any:
        return namespace_item(self._limit.namespace).router

    def _enter_sync(self) -> None:
        self._held.setdefault(_thread(), []).append(self._router.take_token_sync(self._limit, self._key))

    def _exit_sync(self) -> None:
        self._pop(_thread()).release_soon()

    def _pop(self, holder: Holder) -> Token:
        if holder not in self._held:
            # A generator that nobody read to its end is closed by another task, and so may be an AsyncExitStack.
            # Tokens are alike, so one of another holder goes back, and its own is left for that one.
            others = [other for other in list(self._held) if other.loop is holder.loop]
            if not others:
                raise RuntimeError(
                    f"limit {self._limit.name!r} was left where it was not entered: leave it where it was entered"
                )
            holder = others[-1]
        held = self._held[holder]
        token = held.pop()
        if not held:
            del self._held[holder]
        return token


class SyncHolding:
    """Holds a token for a thread without an event loop, which is blocked until it has one. In a thread of an
    atask the call is parked meanwhile."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    def __enter__(self) -> None:
        self._holding._enter_sync()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._holding._exit_sync()


def _rate(per_second: float, period: float | None) -> tuple[int, float]:
    """Return the count and the seconds of a rate. Raises TypeError, ValueError."""
    validate_number("per_second", per_second)
    if not 0 < per_second <= MAX_TOKENS:
        raise ValueError(f"per_second={per_second!r}: above 0, at most {MAX_TOKENS}")
    if period is None:
        period = 1.0 if per_second >= 1 else 1 / per_second
    validate_seconds("period", period, MAX_PERIOD)
    if period < 0.01:
        raise ValueError(f"period={period!r}: at least 0.01 seconds")
    exact = per_second * period
    count = round(exact)
    if not 1 <= count <= MAX_TOKENS or abs(exact - count) > 1e-6 * count:
        raise ValueError(
            f"per_second={per_second!r} and period={period:g} make {exact:g} in a period: a whole number from 1 "
            f"to {MAX_TOKENS}, as per_second=1.5 with period=2"
        )
    return count, float(period)
