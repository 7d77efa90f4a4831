"""Calls of which it is in doubt whether they are awaited still: their callers are asked before they begin."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from atasks import wire
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.worker.caller_watch import CANCEL, CallerWatch
from atasks.transport.backends.amqp.worker.consumer import Wait
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.wire import AT_MOST_ONCE, VERSION, Call, Claim, Grant

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["Doubts"]

logger = logging.getLogger("atasks.amqp")

WAITED_MS: Final = 3000.0
"""A call that was sent so long ago is in doubt."""
SKEW_MS: Final = 2000.0
"""By how much the caller's clock may be ahead before every call of it is in doubt."""
CLOSE_MS: Final = 100.0
"""By how much the clocks of hosts differ that keep them right."""
SHORT_MS: Final = 1000
"""Calls that have so little time in all are not asked for."""
NO_TIME_MS: Final = 10**12
"""A caller that says that it sent a call before (in 2001) does not say when it did."""
PROMPT_SECONDS: Final = 0.25
"""Within which a caller answers that is connected and not busy."""
ASK_SECONDS: Final = 1.0
"""Seconds between two questions to a caller that is silent."""
MAX_ASIDE: Final = 10_000
MAX_ASIDE_BYTES: Final = 64 * 2**20
"""Limits on the calls that are put aside, in number and in bytes of arguments: a worker keeps them until their
callers answer."""
IDS_AT_ONCE: Final = 500


class Doubts:
    """Asks callers whether they still await the calls that may have been withdrawn unheard, before these begin.

    A worker hears of each withdrawal from the moment on at which it listens. So a call is in doubt that was sent
    before that, or before the worker had to forget withdrawals; and so is one that has waited for some seconds,
    because its caller may be gone. Many calls are asked for in one message. While a caller is silent its calls are
    put aside, and others go on. They are dropped when their caller says that it does not await them, and when it
    is gone, as `CallerWatch` has it; they begin when it says that it does, and when it was there and silent for
    `patience` seconds. Calls with `orphan="run"`, and those whose replies are kept, are never in doubt.
    """

    patience = 30.0

    def __init__(self, station: Station, watch: CallerWatch) -> None:
        self._station = station
        self._watch = watch
        self._asked: dict[str, _Caller] = {}
        """By reply queue."""
        self._heard_ms = 0.0
        """Wall clock since which the worker hears of withdrawals, in milliseconds."""
        self._aside = self._aside_bytes = 0
        self._stopped = False

    # -- which

    def listening(self) -> None:
        """Withdrawals arrive from now on: those before did not."""
        self._heard_ms = time.time() * 1000

    def bounds(self) -> tuple[float, float]:
        """The wall clock, in milliseconds, before which, and after which, a call was sent that is in doubt now.
        The latter has not come yet here: the clocks differ."""
        now = time.time() * 1000
        forgotten = self._station.worker.withdrawn.forgotten_ms
        return max(now - WAITED_MS, self._heard_ms + CLOSE_MS, forgotten + CLOSE_MS), now + SKEW_MS

    def take(self, call: Call, delivery: CallDelivery, again: bool) -> bool:
        """Ask for a call that is in doubt. False: it is of those that never are, or the worker knows it.

        `again`: it was delivered before. It is asked for if it was in doubt here; else it may have begun."""
        request, worker = delivery.request, self._station.worker
        if request.key and call.delivery == AT_MOST_ONCE:
            return False  # `Attempts` asks for it in any case
        if (
            call.attempt > 1
            or call.sent_ms < NO_TIME_MS
            or self._station.is_kept(request.reply_to)
            or worker.knows(call.id)
        ):
            return False
        withdrawn = worker.withdrawn.since(call.id)
        if withdrawn is not None and self._sent_ms(call, request.reply_to) <= withdrawn:
            return False  # withdrawn: it does not begin, whatever its caller answers
        waited = self._station.clocks.waited(request.reply_to, call.sent_ms)
        if call.timeout_ms is not None and (call.timeout_ms <= SHORT_MS or call.timeout_ms < waited * 1000):
            return False  # its deadline ends it, before it begins or soon after
        caller = self._asked.get(request.reply_to)
        if again and (caller is None or call.id not in caller.doubts):
            return False
        if caller is None:
            caller = self._asked[request.reply_to] = _Caller(request.reply_to)
            caller.task = asyncio.create_task(self._see_to(caller), name="atasks doubt")
        doubt = caller.doubts.get(call.id)
        if doubt is None:
            caller.doubts[call.id] = doubt = _Doubt(call, delivery, self._sent_ms(call, request.reply_to))
            if not caller.new:
                asyncio.get_running_loop().call_soon(self._ask_new, caller)
            caller.new.append(doubt)
        else:  # it was delivered once more, over the next link
            doubt.add(delivery)
        return True

    def _sent_ms(self, call: Call, reply_to: str) -> float:
        """When the call was sent, by this clock as far as it was compared with the caller's."""
        return call.sent_ms + self._station.clocks.ahead(reply_to)

    def holds(self, call_id: str) -> list[str]:
        """The reply queues of the callers for whose word the call waits here."""
        return [caller.name for caller in self._asked.values() if call_id in caller.doubts]

    # -- answers

    def told(self, grant: Grant) -> None:
        """A caller says whether it awaits a call."""
        for caller in list(self._asked.values()):
            doubt = caller.doubts.get(grant.id)
            if doubt is not None:
                now = caller.silent_since = asyncio.get_running_loop().time()
                self._station.clocks.learn(caller.name, grant.now_ms, now - doubt.since)
                self._decide(caller, [doubt], grant.granted)

    def withdrawn(self, call_id: str) -> None:
        """The await of this call has ended."""
        for caller in list(self._asked.values()):
            doubt = caller.doubts.get(call_id)
            if doubt is not None:
                self._decide(caller, [doubt], False)

    # -- life

    def stop(self) -> None:
        """The worker takes no more calls: those that are in doubt go back."""
        self._stopped = True
        for caller in list(self._asked.values()):
            self._decide(caller, list(caller.doubts.values()), True)

    def restart(self) -> None:
        """Take calls again, over a new link."""
        self._stopped = False

    async def close(self) -> None:
        """Ask no more."""
        tasks = [caller.task for caller in self._asked.values() if caller.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- asking

    def _ask_new(self, caller: _Caller) -> None:
        new, caller.new = caller.new, []
        new = [doubt for doubt in new if caller.doubts.get(doubt.call.id) is doubt]
        absent = self._watch.is_absent(caller.name)
        if not absent:
            self._ask(caller, new)
        if absent or caller.is_silent:
            self._put_aside(new)

    def _ask(self, caller: _Caller, doubts: Collection[_Doubt]) -> None:
        if self._station.link is None:
            return
        for key in {doubt.key for doubt in doubts}:
            self._ask_under(key, caller, [doubt for doubt in doubts if doubt.key == key])

    def _ask_under(self, key: str | None, caller: _Caller, doubts: list[_Doubt]) -> None:
        """Ask under the key that the calls came with."""
        station = self._station
        # By the id as their copy: every copy of a first attempt may begin, so that a caller of an older version
        # answers as it should. `again`, because nothing is known of whether it has begun.
        claims: list[wire.Envelope] = [
            Claim(VERSION, doubt.call.id, doubt.call.attempt, doubt.call.id, station.worker.id, False, True)
            for doubt in doubts
        ]
        for start in range(0, len(claims), IDS_AT_ONCE):
            body = wire.encode(claims[start : start + IDS_AT_ONCE])
            station.put(Outgoing(body, caller.name, station.question(), mandatory=False, key=key))

    async def _see_to(self, caller: _Caller) -> None:
        """Until there is an answer for each call: look at its caller, and ask again."""
        loop = asyncio.get_running_loop()
        try:
            known = self._watch.is_absent(caller.name)
            while True:
                if known:
                    await asyncio.sleep(0)  # decide together on calls that have come together
                else:
                    await asyncio.sleep(PROMPT_SECONDS)
                    old = [
                        doubt for doubt in caller.doubts.values() if loop.time() - doubt.since >= PROMPT_SECONDS
                    ]
                    self._put_aside(old)
                    caller.is_silent = bool(old)
                    if not caller.doubts:
                        return
                    await asyncio.sleep(ASK_SECONDS - PROMPT_SECONDS)
                if not caller.doubts:
                    return
                known = False
                await self._look(caller)
                if not caller.doubts:
                    return
                if not self._watch.is_absent(caller.name):
                    self._ask(caller, caller.doubts.values())
        finally:
            del self._asked[caller.name]

    async def _look(self, caller: _Caller) -> None:
        """Decide what is to be taken for the word of a caller that is silent."""
        now = asyncio.get_running_loop().time()
        if self._station.link is None:
            caller.silent_since = now
            return
        try:
            gone = await self._watch.is_gone(caller.name)
        except CLIENT_ERRORS:
            caller.silent_since = now
            return
        doubts = list(caller.doubts.values())
        if gone:
            logger.warning("a caller is gone: %d of its calls do not begin", len(doubts))
            self._decide(caller, [doubt for doubt in doubts if doubt.call.orphan == CANCEL], False)
        elif not self._watch.is_absent(caller.name):
            silent, withdrawn = now - caller.silent_since, self._station.worker.withdrawn
            waited = [doubt for doubt in doubts if silent >= (ASK_SECONDS if doubt.is_young else self.patience)]
            self._decide(caller, [doubt for doubt in waited if doubt.call.id in withdrawn], False)
            self._decide(caller, [doubt for doubt in waited if doubt.call.id not in withdrawn], True)
        self._decide(caller, [doubt for doubt in caller.doubts.values() if doubt.call.orphan != CANCEL], True)

    def _put_aside(self, doubts: list[_Doubt]) -> None:
        """Their caller is slow to answer, or gone: other calls need not wait for it."""
        for doubt in doubts:
            if doubt.wait.aside or self._aside >= MAX_ASIDE or self._aside_bytes >= MAX_ASIDE_BYTES:
                continue
            self._aside += 1
            self._aside_bytes += len(doubt.call.payload)
            doubt.wait.put_aside()
            self._station.adapt_window()

    def _decide(self, caller: _Caller, doubts: list[_Doubt], begins: bool) -> None:
        worker = self._station.worker
        for doubt in doubts:
            del caller.doubts[doubt.call.id]
            if doubt.wait.aside:
                self._aside -= 1
                self._aside_bytes -= len(doubt.call.payload)
            doubt.wait.end()
            *others, last = doubt.deliveries
            if not begins:
                for each in doubt.deliveries:
                    each.drop()
                worker.over(doubt.call)
            elif self._stopped:
                last.give_back(doubt.call)  # the earlier ones may be of a connection that is gone
                for each in others:
                    each.drop()
            else:
                # The first delivery starts the run, which adopts the other deliveries.
                for each in doubt.deliveries:
                    worker.deliver(doubt.call, each)
        if doubts:
            self._station.adapt_window()


class _Caller:
    """A caller that is asked."""

    __slots__ = ("doubts", "is_silent", "name", "new", "silent_since", "task")

    def __init__(self, name: str) -> None:
        self.name = name
        self.doubts: dict[str, _Doubt] = {}
        """By call."""
        self.new: list[_Doubt] = []
        """Those for which it was not asked."""
        self.silent_since = asyncio.get_running_loop().time()
        """When it spoke last, or was asked first (event loop time)."""
        self.is_silent = False
        self.task: asyncio.Task[None] | None = None


class _Doubt:
    """A call that waits for the word of its caller."""

    __slots__ = ("call", "deliveries", "is_young", "key", "since", "wait")

    def __init__(self, call: Call, delivery: CallDelivery, sent_ms: float) -> None:
        self.call = call
        self.key = delivery.request.key
        self.deliveries = [delivery]
        self.since = asyncio.get_running_loop().time()
        self.is_young = abs(time.time() * 1000 - sent_ms) < WAITED_MS
        """True if the call was sent just now."""
        self.wait = Wait(delivery.request.consumer)

    def add(self, delivery: CallDelivery) -> None:
        """Add another delivery of the same call."""
        self.deliveries.append(delivery)
        self.wait.move(delivery.request.consumer)
