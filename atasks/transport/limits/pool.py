"""The tokens of one limit, as counters: for those who all ask the same process."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextvars import Context

from atasks.policies.limit import Rule

__all__ = ["Grant", "TokenPool"]


class TokenPool:
    """Hands tokens to those who ask: to processes in turns, and within each in the order in which they asked."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._loop = asyncio.get_running_loop()
        self._free = rule.at_once or math.inf
        self._since = self._loop.time()
        self._gap = rule.period / rule.per_period if rule.per_period else 0.0
        self._fresh = rule.per_period
        """The number of tokens of the rate that nobody has taken yet: one may be taken after each gap."""
        self._ready: deque[float] = deque()
        """When the others that are here may be taken again, the next one first."""
        self._waiting: OrderedDict[Hashable, OrderedDict[Grant, None]] = OrderedDict()
        """The wishes of each process that has any; the process whose turn is next comes first."""
        self._timer: asyncio.TimerHandle | None = None
        self._held = 0

    @property
    def idle(self) -> bool:
        """Nothing would be different if the pool were made anew."""
        now = self._loop.time()
        ready = not self._ready or self._ready[-1] <= now
        fresh = not self._fresh or self._since + (self.rule.per_period - 1) * self._gap <= now
        return not self._waiting and not self._held and ready and fresh

    def ask(self, granted: Callable[[], None], process: Hashable = None) -> Grant:
        """Wait for a token of this process; `granted` is called, now or later, when it is there."""
        grant = Grant(self, granted, process)
        self._waiting.setdefault(process, OrderedDict())[grant] = None
        self._hand_out()
        return grant

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            if self.rule.per_period and not self._take():
                return
            self._free -= 1
            self._held += 1
            process, wishes = self._waiting.popitem(last=False)
            grant, _ = wishes.popitem(last=False)
            if wishes:
                self._waiting[process] = wishes
            grant.is_held = True
            grant.granted()

    def _take(self) -> bool:
        """Take a token of the rate; False: there is none now, and this looks again when there is one."""
        again = self._ready[0] if self._ready else math.inf
        fresh = self._since + (self.rule.per_period - self._fresh) * self._gap if self._fresh else math.inf
        wait = min(again, fresh) - self._loop.time()
        if wait > 0:
            if wait < math.inf:
                self._look_in(wait)
            return False
        if again <= fresh:
            self._ready.popleft()
        else:
            self._fresh -= 1
        return True

    def _look_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look, context=Context())

    def _look(self) -> None:
        self._timer = None
        self._hand_out()

    def _begun(self) -> None:
        if self.rule.per_period:
            self._ready.append(self._loop.time() + self.rule.period)

    def _over(self, grant: Grant) -> None:
        if not grant.is_held:
            wishes = self._waiting.get(grant.process, OrderedDict())
            wishes.pop(grant, None)
            if not wishes:
                self._waiting.pop(grant.process, None)
            return
        self._free += 1
        self._held -= 1
        if self.rule.per_period and not grant.has_begun:
            self._ready.appendleft(self._loop.time())
        self._hand_out()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Grant:
    """A token of a pool, or the wish for one."""

    __slots__ = ("_pool", "granted", "has_begun", "is_held", "is_over", "process")

    def __init__(self, pool: TokenPool, granted: Callable[[], None], process: Hashable) -> None:
        self._pool = pool
        self.granted = granted
        self.process = process
        self.is_held = False
        self.has_begun = False
        self.is_over = False

    def begin(self) -> None:
        """Begin the work that the token was taken for. Nothing happens while it is a wish: none was taken."""
        if self.is_held and not (self.has_begun or self.is_over):
            self.has_begun = True
            self._pool._begun()

    def release(self) -> None:
        """Give the token back: it is not needed any more, or not wanted."""
        if not self.is_over:
            self.is_over = True
            self._pool._over(self)

    def release_soon(self) -> None:
        """Give the token back, from any thread."""
        loop = self._pool._loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(self.release)
