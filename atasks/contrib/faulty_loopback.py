"""The loopback transport of a test, to whose deliveries faults happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from atasks import wire
from atasks.contrib.faults import Fault
from atasks.errors import NotSupported
from atasks.transport.loopback import LoopbackDelivery, LoopbackTransport
from atasks.transport.pending import Pending
from atasks.wire import AT_MOST_ONCE, Call, End, Item, Reply, Report, Status

__all__ = ["FaultyDelivery", "FaultyLoopback"]


class FaultyLoopback(LoopbackTransport):
    """A loopback transport to whose deliveries the faults of a test happen."""

    def __init__(self, namespace: str, take: Callable[[Call], Fault | None]) -> None:
        """`take(call)` gives the fault that is to happen to the next delivery of the call."""
        super().__init__(namespace)
        self._take = take

    def _post(self, pending: Pending) -> None:
        worker = self._worker
        fault = None if worker is None or pending.delay else self._take(pending.call)
        if fault is None:
            super()._post(pending)
        elif pending.call.credit:
            pending.fail(NotSupported(f"the fault {str(fault)!r} is for a call: {pending.call.task} is a stream"))
        elif fault.kind == "delay":
            asyncio.get_running_loop().call_later(fault.seconds, self._late, pending)
        else:
            delivery = FaultyDelivery(self, pending, fault)
            assert worker is not None
            worker.deliver(pending.call, delivery)
            if pending.kept:
                pending.handed_over()
            if fault.kind == "kill":
                delivery.watch()

    def _late(self, pending: Pending) -> None:
        if pending.kept or not pending.future.done():
            super()._post(pending)

    def _again(self, pending: Pending) -> None:
        """The worker of the call is gone: deliver it to the next one, as the transports do."""
        call, worker = pending.call, self._worker
        if worker is None or (pending.future.done() and not pending.kept):
            return
        if worker.holds(call.id):  # the run that died has not noticed yet
            asyncio.get_running_loop().call_later(0.001, self._again, pending)
        elif call.delivery == AT_MOST_ONCE or call.attempt >= call.max_attempts:
            message = f"{wire.describe(call)} will not run again: its worker died"
            reply = wire.ended(call.id, Status.WORKER_LOST, message, worker.id, call.attempt)
            LoopbackDelivery(self, pending).reply(reply)
        else:
            pending.call = replace(call, attempt=call.attempt + 1)
            self._post(pending)

    def _twice(self, pending: Pending) -> None:
        """Deliver a call once more that has been answered."""
        call, worker = pending.call, self._worker
        if worker is None or call.delivery == AT_MOST_ONCE:
            return
        if worker.holds(call.id):
            asyncio.get_running_loop().call_later(0.001, self._twice, pending)
        else:
            copy = replace(call, attempt=call.attempt + 1)
            worker.deliver(copy, FaultyDelivery(self, pending, None))


class FaultyDelivery(LoopbackDelivery):
    """A delivery to which a fault happens; without one, a delivery whose replies nobody hears."""

    fault: Fault | None = None
    dead: bool = False

    def reply(self, reply: Reply | End) -> None:
        if self.fault is None or self.dead:
            return
        if self.fault.kind == "duplicate":
            super().reply(reply)
            asyncio.get_running_loop().call_soon(self._transport._twice, self.pending)
        else:
            self.dead = True
            asyncio.get_running_loop().call_soon(self._transport._again, self.pending)

    def send(self, envelope: Item | End | Report) -> None:
        if self.fault is not None and not self.dead:
            super().send(envelope)

    def watch(self) -> None:
        """Have the worker die when the function has begun, and `seconds` later."""
        assert self.fault is not None
        run = None if self._transport._worker is None else self._transport._worker.find(self.pending.call.id)
        if run is None or self.dead:
            return
        loop = asyncio.get_running_loop()
        if run.ran is not None:
            loop.call_later(self.fault.seconds, self._die)
        else:
            loop.call_later(0.001, self.watch)

    def _die(self) -> None:
        worker = self._transport._worker
        if not self.dead and worker is not None and worker.holds(self.pending.call.id):
            self.dead = True
            worker.cancel(self.pending.call.id)
            self._transport._again(self.pending)

    @property
    def _transport(self) -> FaultyLoopback:
        assert isinstance(self.transport, FaultyLoopback)
        return self.transport
