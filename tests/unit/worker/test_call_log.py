"""The log of calls: one line for each run that has ended."""

from __future__ import annotations

import asyncio
import cProfile
import json
import logging
import pstats
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from atasks import ATask, CallTimeout, atask, connect, wire
from atasks.call_log import log_lost
from atasks.logging import CallFilter, JsonFormatter
from atasks.testing import Site, soon
from atasks.transport.loopback import LoopbackTransport
from atasks.wire import Call, Status

SECRET = "the argument of a call"


@pytest.fixture
def site() -> Any:
    site = Site(LoopbackTransport, shared=True)
    yield site
    site.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """The records of the log of calls, as they come."""
    caplog.set_level(logging.DEBUG, "atasks.call")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("atasks.call").addHandler(handler)
    yield records
    logging.getLogger("atasks.call").removeHandler(handler)


async def test_each_run_has_one_line_by_how_it_ended(site: Site, lines: list[logging.LogRecord]) -> None:
    began = asyncio.Event()

    @site.atask
    async def run(how: str) -> str:
        if how == SECRET:
            return how
        if how == "raise":
            raise KeyError("why")
        began.set()
        await asyncio.Event().wait()
        return how

    @site.atask
    async def outer() -> None:
        await run(SECRET)

    async with site.open():
        await soon(outer())
        for changed in (run, run.options(orphan="run")):
            with pytest.raises(KeyError):
                await soon(changed("raise"))
        with pytest.raises(CallTimeout):
            await soon(run.options(timeout=0.5)("wait"))
        began.clear()
        task = asyncio.create_task(run("wait"))
        await soon(began.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    seen: list[Any] = [(record.levelname, record.status) for record in lines]  # type: ignore[attr-defined]
    assert seen == [
        ("DEBUG", "value"),
        ("DEBUG", "value"),
        ("INFO", "raised"),
        ("WARNING", "raised"),
        ("WARNING", "timed_out"),
        ("DEBUG", "withdrawn"),
    ]
    inner, parent, awaited, orphan, *_ = (vars(record) for record in lines)
    assert {name: inner[name] for name in ("task", "root_id", "parent_id", "attempt", "queue")} == {
        "task": run.name,
        "root_id": parent["call_id"],
        "parent_id": parent["call_id"],
        "attempt": 1,
        "queue": "default",
    }
    assert inner["call_id"] != parent["call_id"]
    assert inner["worker"] == site.worker.id if site.workers else inner["worker"]
    assert 0 <= inner["run_ms"] < 30_000
    assert 0 <= inner["wait_ms"] < 30_000
    assert awaited["exc_text"] is None
    assert 'raise KeyError("why")' in orphan["exc_text"]
    shown = [logging.Formatter("%(message)s").format(record) for record in lines]
    assert not any(SECRET in text for text in shown)
    assert "raised (KeyError) after" in shown[2]
    assert "Traceback" not in shown[2]
    assert "Traceback" in shown[3]


async def test_a_submitted_run_that_fails_is_a_warning(namespace: str, lines: list[logging.LogRecord]) -> None:
    from atasks.pipeline import map

    @atask(namespace=namespace)
    async def fail(value: int) -> int:
        raise ValueError(value)

    async with connect("loopback:", namespace=namespace):
        handle = await soon(map(fail).submit(1))
        with pytest.raises(ValueError, match="1"):
            await soon(handle)
    records: list[Any] = [record for record in lines if record.levelno == logging.WARNING]
    assert [(record.task, record.call_id, record.status) for record in records] == [
        ("atasks.pipeline.run", handle.id, "raised")
    ]
    assert "raise ValueError(value)" in records[0].exc_text


async def test_a_call_that_met_its_deadline_unstarted_is_a_warning(
    site: Site, lines: list[logging.LogRecord]
) -> None:
    began = asyncio.Event()

    @site.atask
    async def wait() -> None:
        began.set()
        await asyncio.Event().wait()

    async with site.open(concurrency=1):
        task = asyncio.create_task(wait())
        await soon(began.wait())
        with pytest.raises(CallTimeout):
            await soon(wait.options(timeout=0.2)())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    record: Any = lines[0]
    assert (record.levelname, record.status, record.run_ms) == ("WARNING", "timed_out", None)
    assert record.getMessage().endswith("timed_out before it began")


async def test_streams_have_a_line_too(site: Site, lines: list[logging.LogRecord]) -> None:
    @site.atask
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise ValueError("why")

    async with site.open():
        with pytest.raises(ValueError, match="why"):
            async for _ in numbers():
                pass
    record: Any = lines[0]
    assert (record.levelname, record.status, record.task) == ("INFO", "raised", numbers.name)


async def test_nothing_is_formatted_while_the_level_is_off(namespace: str, add: ATask[..., int]) -> None:
    logging.getLogger("atasks.call").setLevel(logging.NOTSET)
    async with connect("loopback:", namespace=namespace):
        await soon(add(1, 2))
        profile = cProfile.Profile()
        with profile:
            await add(1, 2)
    counts = {
        f"{file}:{name}": count[1]
        for (file, _, name), count in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    }
    logged = {where: count for where, count in counts.items() if "logging/" in where or "call_log.py" in where}
    assert sum(logged.values()) <= 2, logged


async def test_lines_of_a_call_say_which_one(site: Site) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    handler.addFilter(CallFilter())
    log = logging.getLogger(site.namespace)
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    @site.atask
    async def outer() -> None:
        log.info("inside", extra={"task": "a field of the program"})
        await asyncio.to_thread(log.info, "in a thread")

    async with site.open():
        await soon(outer())
        log.info("outside")
    inside, thread, outside = (vars(record) for record in records)
    assert inside["task"] == "a field of the program"
    assert (thread["task"], thread["queue"], thread["attempt"]) == (outer.name, "default", 1)
    assert inside["call_id"] == thread["call_id"] == thread["root_id"]
    assert (outside["task"], outside["call_id"]) == (None, None)


def test_a_record_as_json() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.LogRecord(
            "shop", logging.ERROR, __file__, 1, "%d of %s", (1, "ü"), (type(error), error, None)
        )
    record.task, record.odd = "app.add", object()
    record.created, record.msecs = 1_700_000_000.25, 250.0
    line = JsonFormatter().format(record)
    assert "\n" not in line
    content = json.loads(line)
    assert content.pop("odd").startswith("<object object")
    assert content.pop("pid") > 0
    assert content == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "ERROR",
        "logger": "shop",
        "message": "1 of ü",
        "process": "MainProcess",
        "task": "app.add",
        "exception": "ValueError: why",
    }


def test_the_line_of_a_lost_call_says_where_it_ran_if_that_is_known(lines: list[logging.LogRecord]) -> None:
    call = Call(1, "an-id", "app.work", b"", "pickle")
    known = wire.ended(call.id, Status.WORKER_LOST, "it died", last_worker="ann", ran=0.5)
    log_lost(call, known, queue="mail")
    log_lost(call, wire.ended(call.id, Status.WORKER_LOST, "it died"), queue="mail")
    first: Any = lines[0]
    second: Any = lines[1]
    assert (first.status, first.worker, first.queue, first.run_ms) == ("worker_lost", "ann", "mail", 500)
    assert first.getMessage() == "app.work, call an-id: worker_lost (it died) after 500.0 ms"
    assert (second.worker, second.run_ms) == ("", None)
    assert second.getMessage() == "app.work, call an-id: worker_lost (it died)"
