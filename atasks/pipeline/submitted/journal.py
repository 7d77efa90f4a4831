"""The journal of a submitted run: the results of its calls, item by item, so that the next coordinator does not
make them again.

A note is the result of one stage for one item, which its lineage names. Notes are written in the order in which
they were made, many at a time, so what an item has given is never on record without what it was made of.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from atasks.codecs.base import Codec
from atasks.codecs.checked import encoded
from atasks.errors import AbortPipeline, DecodeError, EncodeError, PayloadTooLarge
from atasks.pipeline.flow.channel import Lineage
from atasks.pipeline.flow.failing import FailedBefore, add_note
from atasks.pipeline.flow.runners import LoopRunner
from atasks.transport.records.contract import Record, Records
from atasks.wire import VERSION, Reply, Status

__all__ = ["Journal", "StageNotes", "begin_id", "notes_of"]

_NOTES: Final = "n"

PAUSE: Final = 0.05
"""Seconds between two writes: the calls that have ended meanwhile are made again after a crash."""
FINISH_SECONDS: Final = 10.0
"""For which the end of a run that fails waits until its notes are written."""
AHEAD: Final = 1000
"""Notes that may wait to be written: past it, calls wait."""


class Note(NamedTuple):
    """The note of a call: its results."""

    value: Any
    """The result, or the list of results of a branch."""
    failed: bool
    """True if the call raised, behind those results, and its stage goes on without the item."""


_NOTHING: Final = Note(None, False)


class Written(Struct):
    """The notes that one message has."""

    attempt: Annotated[int, Meta(ge=1)]
    notes: list[tuple[int, Lineage, Any, bool]]


def _read(content: Any) -> Written:
    try:
        return msgspec.convert(content, Written)
    except msgspec.ValidationError as error:
        raise DecodeError(f"the notes of a run cannot be read: {error}") from error


class Journal:
    """The notes of one attempt at a stretch of stages, and those of the attempts before it."""

    def __init__(
        self, records: Records, run_id: str, attempt: int, codec: Codec, limit: int, names: Sequence[str]
    ) -> None:
        self._records = records
        self._id = run_id
        self._attempt = attempt
        self._codec = codec
        self._limit = limit
        self._names = names
        """The names of all stages of the run."""
        self._own = secrets.token_hex(4)  # a run moves from a worker that drains without another attempt
        self._written = 0
        self._known: dict[tuple[int, Lineage], Note] = {}
        self._waiting: list[tuple[int, Lineage, Any, bool]] = []
        self._finishing = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def read(
        self, contents: Iterable[Any], stages: range, first: int = 1, renumbering: AbstractSet[int] = frozenset()
    ) -> None:
        """Take over what other attempts have noted of these stages: `contents` are those of the record, in its
        order, and numbers, which are attempts that began there. What an earlier attempt has noted after that does
        not count: its items may differ from those that the later one has. Raises DecodeError for what no attempt
        has written.

        `first` is the first attempt since the run was retried: calls that failed before it are made again, and so
        is what was made of their results, for all items behind a stage that is `renumbering` them."""
        latest = 0
        failed_before: list[tuple[int, Lineage]] = []
        for content in contents:
            if isinstance(content, int):
                latest = max(latest, content)
                continue
            written = _read(content)
            if written.attempt >= latest:
                for stage, lineage, value, failed in written.notes:
                    if stage in stages:
                        self._known.setdefault((stage, lineage), Note(value, failed))
                        if failed and written.attempt < first:
                            failed_before.append((stage, lineage))
        for failure in failed_before:
            if self._known.get(failure, _NOTHING).failed:
                self._forget(*failure, renumbering)

    def _forget(self, stage: int, lineage: Lineage, renumbering: AbstractSet[int]) -> None:
        """Know nothing of this item any more, nor of those that were made of it."""
        del self._known[stage, lineage]
        renumbered = min((number for number in renumbering if number > stage), default=None)
        for other in list(self._known):
            number, path = other
            if number > stage and (
                (renumbered is not None and number > renumbered) or path[: len(lineage)] == lineage
            ):
                del self._known[other]

    def recall(self, stage: int, lineage: Lineage) -> Note | None:
        """Return the note of an earlier attempt, once."""
        return self._known.pop((stage, lineage), None)

    async def note(self, stage: int, lineage: Lineage, note: Note) -> None:
        """Have it written soon, behind all that was noted before; waits while much is not written yet."""
        while len(self._waiting) >= AHEAD:
            self._room.clear()
            await self._room.wait()
        self._waiting.append((stage, lineage, note.value, note.failed))
        self._news.set()

    async def write(self) -> None:
        """Write what is noted, until this is cancelled. Raises what keeps it from that."""
        while True:
            await self._news.wait()
            self._news.clear()
            notes, self._waiting = self._waiting, []
            self._room.set()
            if notes:
                await self._write(notes)
            if self._finishing and not self._waiting:
                return
            await asyncio.sleep(0 if self._finishing else PAUSE)

    async def finish(self, writing: asyncio.Task[None]) -> None:
        """Have all written that is noted, by this task, which runs `write`. Raises nothing: it is for a run that
        has failed."""
        self._finishing = True
        self._news.set()
        await asyncio.wait([writing], timeout=FINISH_SECONDS)

    async def _write(self, notes: list[tuple[int, Lineage, Any, bool]]) -> None:
        """In one message, or in several where that would be too large. An error names the first that is not."""
        try:
            payload = await self._encode(notes)
            self._written += 1
            note_id = f"{self._id}.{_NOTES}{self._own}.{self._written}"
            reply = Reply(VERSION, note_id, Status.VALUE, payload, self._codec.name)
            await self._records.add(self._id, reply, quiet=True)
        except Exception as error:
            if len(notes) == 1 or not isinstance(error, (EncodeError, PayloadTooLarge)):
                stages = {self._names[stage] for stage, *_ in notes}
                if len(stages) == 1:
                    item = f", at item {notes[0][1]}" if len(notes) == 1 else ""
                    add_note(error, f"in stage {stages.pop()!r}{item}")
                raise
        else:
            return
        half = len(notes) // 2
        await self._write(notes[:half])
        await self._write(notes[half:])

    async def _encode(self, notes: list[tuple[int, Lineage, Any, bool]]) -> bytes:
        content = {"attempt": self._attempt, "notes": [[stage, [*path], *rest] for stage, path, *rest in notes]}
        instead = "pass references, or run the pipeline here"
        return await encoded("what an item gave", content, self._codec, self._limit, instead)


def begin_id(run_id: str, attempt: int) -> str:
    """The id of the mark that an attempt leaves before it reads the notes of others."""
    return f"{run_id}.a{attempt}"


class StageNotes:
    """The journal, for one stage."""

    def __init__(self, journal: Journal, stage: int, role: str, lenient: bool) -> None:
        self._journal = journal
        self._stage = stage
        self._role = role
        self.lenient = lenient
        """True if the stage goes on without items that fail."""

    def recall(self, lineage: Lineage) -> Note | None:
        """Return the note of the item's call in an earlier attempt."""
        return self._journal.recall(self._stage, lineage)

    def wrap(self, runner: LoopRunner) -> LoopRunner:
        """A runner that calls only for items that are not known."""
        return RememberingRunner(runner, self)

    async def note(self, lineage: Lineage, value: Any, *, failed: bool = False) -> None:
        """Remember it: of a filter what counts, of `each` that it was done."""
        if self._role == "filter":
            value = bool(value)
        elif self._role == "each":
            value = None
        await self._journal.note(self._stage, lineage, Note(value, failed))


class RememberingRunner(LoopRunner):
    """Calls as another runner does, but not for items of which the journal knows."""

    def __init__(self, runner: LoopRunner, notes: StageNotes) -> None:
        self.simple = None
        self.ready = runner.ready
        self._runner = runner
        self._notes = notes

    async def start(self) -> None:
        await self._runner.start()

    async def close(self, *, hurry: bool) -> None:
        await self._runner.close(hurry=hurry)

    def left(self) -> list[Coroutine[Any, Any, None]]:
        return self._runner.left()

    async def call(self, value: Any, lineage: Lineage) -> Any:
        notes = self._notes
        known = notes.recall(lineage)
        if known is not None:
            if known.failed:
                raise _failed_before()
            return known.value
        try:
            result = await self._runner.call(value, lineage)
        except Exception as error:
            if notes.lenient and not isinstance(error, AbortPipeline):
                await notes.note(lineage, None, failed=True)
            raise
        await notes.note(lineage, result)
        return result

    async def stream(self, value: Any, lineage: Lineage) -> AsyncIterator[Any]:
        """All children of an item are noted before the first one goes on: another attempt must not make others."""
        notes = self._notes
        known = notes.recall(lineage)
        failure: Exception | None = None
        if known is None:
            children: list[Any] = []
            stream = self._runner.stream(value, lineage)
            try:
                async for child in stream:
                    children.append(child)  # noqa: PERF401 - those before a failure count
            except Exception as error:
                if not notes.lenient or isinstance(error, AbortPipeline):
                    raise
                failure = error
            finally:
                aclose = getattr(stream, "aclose", None)
                if aclose is not None:
                    await aclose()
            await notes.note(lineage, children, failed=failure is not None)
        else:
            children = known.value
            failure = _failed_before() if known.failed else None
        for child in children:
            yield child
        if failure is not None:
            raise failure


def _failed_before() -> FailedBefore:
    return FailedBefore("it failed at a worker that has ended meanwhile")


def notes_of(record: Record, run_id: str) -> list[int | Reply]:
    """Return the argument of `Journal.read`, not decoded: marks as numbers, notes as their replies."""
    mark = f"{run_id}.a"
    found: list[int | Reply] = []
    for reply_id, reply in record.replies.items():
        if reply_id.startswith(mark) and reply_id.removeprefix(mark).isdecimal():
            found.append(int(reply_id.removeprefix(mark)))
        elif reply_id.startswith(f"{run_id}.{_NOTES}"):
            found.append(reply)
    return found
