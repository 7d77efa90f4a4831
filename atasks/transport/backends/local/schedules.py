"""The schedules of a namespace at the hub, as the processes around it use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from atasks.errors import QueueFull
from atasks.transport.backends.local.messages import Answer, Outcome, ReadTable, Stand, Swap, Table
from atasks.transport.schedules import Look, Schedules

if TYPE_CHECKING:
    from atasks.transport.backends.local.conversation import Conversation
    from atasks.transport.backends.local.records import LocalRecords

__all__ = ["LocalSchedules"]


class LocalSchedules(Schedules):
    """The table of one namespace at the hub, which forgets it at its end."""

    def __init__(self, records: LocalRecords, link: Callable[[], Conversation | None]) -> None:
        """`records` asks the hub; `link()` is the conversation with it, while there is one."""
        self._records = records
        self._link = link
        self._standing: Look | None = None
        self._leads = False

    async def read(self) -> bytes:
        answer = await self._records.ask(ReadTable)
        return answer.content if isinstance(answer, Table) else b""

    async def swap(self, old: bytes, new: bytes) -> bool:
        answer = await self._records.ask(lambda number: Swap(number, old, new), len(old) + len(new))
        if isinstance(answer, Answer) and answer.outcome == Outcome.NO_ROOM:
            raise QueueFull("there is no room at the hub for this schedule: raise keep_bytes, or unschedule some")
        return isinstance(answer, Answer) and answer.outcome == Outcome.DONE

    async def stand(self, look: Look) -> bool:
        self._standing = look
        self._say(True)
        return bool(await self.read())

    async def withdraw(self, look: Look) -> None:
        if self._standing is look:
            self._standing, self._leads = None, False
            self._say(False)

    def leads(self, look: Look) -> bool:
        return self._leads and self._standing is look

    def told(self) -> None:
        """The hub has said: keep the times, or look at the table."""
        if self._standing is not None:
            self._leads = True
            self._standing()

    def _say(self, on: bool) -> None:
        link = self._link()
        if link is not None:
            link.send(Stand(on))
