"""The surroundings of a call in a Django project: connections, threads, language and time zone."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings
from django.utils import timezone, translation

from atasks.testing import soon, until
from tests.busy import calm
from tests.django.conftest import naps, opened, still_open
from tests.django.shop import tasks
from tests.django.shop.models import Order


async def test_calls_have_connections_of_their_own_at_once() -> None:
    threads = await soon(asyncio.gather(*(tasks.together(10) for _ in range(10))))
    assert len(opened) == len(set(threads)) == 10
    assert not still_open(), "they are closed when a call has ended"


def test_a_call_of_blocking_code_inside_a_call_does_not_deadlock() -> None:
    assert tasks.nested.options(timeout=10).sync("tea") > 0
    assert tasks.nested_in_thread.options(timeout=10).sync("cup") > 0
    assert tasks.names.sync() == ["tea", "cup"]


def test_functions_in_threads_leave_no_connection_behind() -> None:
    assert tasks.take_in_thread.sync("tea") > 0
    assert len(opened) == 1
    assert not still_open()
    assert list(Order.objects.values_list("item", flat=True)) == ["tea"]


def test_functions_in_threads_keep_connections_as_long_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    for item in "abc":
        tasks.take_in_thread.sync(item)
    assert len(opened) == len(still_open()) == 1, "one thread, one connection"
    opened[0].errors_occurred = True  # type: ignore[attr-defined]
    monkeypatch.setattr(type(opened[0]), "is_usable", lambda wrapper: False)
    tasks.take_in_thread.sync("d")
    assert len(opened) == 2, "one that is broken is opened again"
    for kept in opened:
        kept.inc_thread_sharing()  # type: ignore[attr-defined]
        kept.close()  # type: ignore[attr-defined]


def test_functions_in_threads_forget_the_queries_of_the_call_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    with override_settings(DEBUG=True):
        for item in "abc":
            tasks.take_in_thread.sync(item)
        (kept,) = opened
        assert len(kept.queries_log) == 1  # type: ignore[attr-defined]
    kept.inc_thread_sharing()  # type: ignore[attr-defined]
    kept.close()  # type: ignore[attr-defined]


async def test_streams_keep_their_connection_until_they_are_over() -> None:
    await soon(asyncio.gather(*(tasks.take(str(n)) for n in range(3))))
    assert sorted([item async for item in tasks.stream()]) == ["0", "1", "2"]
    await until(lambda: not still_open(), "the connection is closed")
    async for _ in tasks.stream():
        break
    await until(lambda: not still_open(), "the connection of a stream that was left")


async def test_a_cancelled_call_keeps_nothing_waiting_for_its_query() -> None:
    slow = asyncio.create_task(tasks.slow(2))
    await until(lambda: naps.begun, "the query")
    slow.cancel()
    assert await soon(tasks.take("tea")) > 0
    assert not naps.ended, "the event loop did not wait for the thread"
    with pytest.raises(asyncio.CancelledError):
        await slow
    await until(lambda: not still_open(), "the thread has closed it when its query was over")


@pytest.mark.parametrize("task", [tasks.place, tasks.place_in_thread])
def test_language_and_time_zone_of_the_caller(task: Any) -> None:
    assert task.sync() == ("en-us", "0:00:00")
    for zone, offset in (("Asia/Kolkata", "5:30:00"), (timezone.get_fixed_timezone(-90), "-1 day, 22:30:00")):
        with translation.override("de"), timezone.override(zone):
            assert task.sync() == ("de", offset)
            assert task.submit.sync().sync() == ("de", offset)
    with translation.override(None):
        assert task.sync()[0] is None
    with translation.override("tlh"):
        assert task.sync()[0] == "en-us", "a language that Django does not know"


def test_a_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        with pytest.raises(ValueError, match="it failed"):
            tasks.fail.sync()
        handle = tasks.fail.submit.sync()
        with pytest.raises(ValueError, match="it failed"):
            handle.sync()
    lines = [(record.name, record.levelname) for record in calm(caplog.records) if record.levelno >= logging.INFO]
    assert lines == [("atasks.call", "INFO"), ("atasks.call", "WARNING")]
