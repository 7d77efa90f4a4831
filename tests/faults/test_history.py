"""The checker of histories: a checker that finds nothing proves nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from atasks import CallConnectionLost, CallTimeout, WorkerLost
from atasks.testing import until
from tests.faults.history import Await, Delivery, History, begun_again, settled
from tests.faults.tasks import Failed
from tests.waiting import wait_until


def _history(path: Path, lines: list[str]) -> History:
    path.write_text("".join(f"{line}\n" for line in lines))
    return History(path)


def _add(
    history: History,
    value: Any = None,
    error: BaseException | None = None,
    delivery: Delivery = "at_least_once",
    times: int = 1,
) -> None:
    history.made["k"] = delivery
    history.nonces["k"] = "n"
    history.awaits += [Await("k", delivery, value, error)] * times


GOOD = ["start k id 1 10", "end k id 1 10"]


def test_good_histories_pass(tmp_path: Path) -> None:
    histories = [
        (GOOD, {"value": ("k", "n", 10)}),
        (["start k id 1 10", "start k id 2 11", "end k id 2 11"], {"value": ("k", "n", 11)}),
        (["start k id 1 10", "raised k id 1 10"], {"error": Failed("k", "n")}),
        (["start k id 1 10"], {"error": WorkerLost("gone", 1)}),
        (GOOD, {"value": ("k", "n", 10), "delivery": "at_most_once"}),
        ([], {"error": CallConnectionLost("gone"), "delivery": "at_most_once"}),
    ]
    for lines, ending in histories:
        history = _history(tmp_path / "runs", lines)
        _add(history, **ending)
        history.check()


@pytest.mark.parametrize(
    ("lines", "ending", "breach"),
    [
        (GOOD, {"value": ("k", "n", 10), "times": 2}, "the await ended 2 times"),
        (GOOD, {"times": 0}, "the await ended 0 times"),
        (GOOD, {"value": ("other", "n", 10)}, "has the result of another call"),
        (GOOD, {"value": ("k", "other", 10)}, "has the result of another call"),
        (GOOD, {"value": None}, "has the result of another call"),
        ([], {"value": ("k", "n", 10)}, "a value that no run returned"),
        (GOOD, {"value": ("k", "n", 11)}, "a value that no run returned"),
        (["start k id 1 10", "raised k id 1 10"], {"error": Failed("j", "n")}, "the exception of another call"),
        (GOOD, {"error": Failed("k", "n")}, "an exception that no run raised"),
        (GOOD, {"error": RuntimeError("aiormq")}, "ended in a foreign error"),
        (GOOD, {"error": CallConnectionLost("gone")}, "at least once, and ended in CallConnectionLost"),
        (
            ["start k id 1 10", "start k id 2 11"],
            {"error": WorkerLost("gone", 1)},
            r"WorkerLost\(1\) after 2 runs, sent again 0 times",
        ),
        (
            ["start k id 1 10", *GOOD[:1], "end k id 1 10"],
            {"value": ("k", "n", 10)},
            "worker 10 ran it 2 times",
        ),
        (
            ["start k id 1 10", "start k id 1 11", "end k id 1 11"],
            {"value": ("k", "n", 11), "delivery": "at_most_once"},
            "at most once, and ran 2 times",
        ),
        (["start k id 1 10", "start k jd 1 11", "end k jd 1 11"], {"value": ("k", "n", 11)}, "several call ids"),
        (["start j id 1 10"], {"error": WorkerLost("gone", 1)}, "j: ran and was never called"),
        ([], {"error": CallConnectionLost("gone"), "times": 2, "delivery": "at_most_once"}, "ended 2 times"),
        (
            ["start k id 1 10", "cancelled k id 1 10", "start k id 1 10"],
            {"error": asyncio.CancelledError(), "delivery": "at_most_once"},
            "at most once, and ran 2 times",
        ),
        (
            ["start k id 1 10", "start k id 1 11"],
            {"error": WorkerLost("gone", 1), "delivery": "at_most_once"},
            "at most once, and ran 2 times",
        ),
        (["start k id 1 10"], {"value": ("k", "n", 10)}, "a value that no run returned"),
        (["start k id 1 10"], {"error": Failed("k", "n")}, "an exception that no run raised"),
    ],
)
def test_breaches_are_found(tmp_path: Path, lines: list[str], ending: dict[str, Any], breach: str) -> None:
    history = _history(tmp_path / "runs", lines)
    _add(history, **ending)
    with pytest.raises(AssertionError, match=breach):
        history.check()


TWICE = ["start k id 1 10", "start k id 1 11", "start k id 2 12"]


def test_a_request_that_was_sent_again_may_run_once_more_for_each_time(tmp_path: Path) -> None:
    history = _history(tmp_path / "runs", TWICE)
    _add(history, error=WorkerLost("gone", 2))
    with history.listening():
        logging.getLogger("atasks.amqp").debug("task 'work', call other is sent again: the reply queue is gone")
        with pytest.raises(AssertionError, match=r"WorkerLost\(2\) after 3 runs, sent again 0 times"):
            history.check()
        logging.getLogger("atasks.amqp").debug("task 'work', call id is sent again: the reply queue is gone")
    logging.getLogger("atasks.amqp").debug("task 'work', call id is sent again: nobody listens")
    history.check()
    history.path.write_text(history.path.read_text() + "start k id 2 13\n")
    with pytest.raises(AssertionError, match=r"WorkerLost\(2\) after 4 runs, sent again 1 times"):
        history.check()


def test_an_attempt_that_is_started_twice_is_found(tmp_path: Path) -> None:
    history = _history(tmp_path / "runs", [*TWICE, "end k id 2 12"])
    _add(history, value=("k", "n", 12))
    with pytest.raises(AssertionError, match="attempt 1 was started 2 times, sent again 0 times"):
        history.check()


def test_a_run_that_was_given_back_is_not_charged(tmp_path: Path) -> None:
    history = _history(tmp_path / "runs", ["start k id 1 10", "cancelled k id 1 10", "start k id 1 11"])
    _add(history, error=WorkerLost("gone", 1))
    history.check()


def test_every_breach_is_named(tmp_path: Path) -> None:
    history = _history(tmp_path / "runs", ["start k id 1 10", "start j id 1 10"])
    _add(history, value=("k", "n", 10))
    with pytest.raises(AssertionError, match="2 breaches") as caught:
        history.check()
    assert "k: has a value that no run returned" in str(caught.value)
    assert "j: ran and was never called" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "times", "late"),
    [
        ([], 1, 0),
        (["start k id 1 10 1.0", "end k id 1 10 2.0", "start k id 1 11 3.0"], 1, 0),
        (["start k id 1 10 1.0", "end k id 1 10 2.0", "safe id 2.5", "start k id 1 11 3.0"], 1, 1),
        (["start k id 1 10 1.0", "end k id 1 10 2.0", "start k id 1 11 2.2", "safe id 2.5"], 1, 0),
        (["start k id 1 10 1.0", "safe id 2.5", "start k jd 1 11 3.0"], 1, 1),
        (["start k id 1 10 1.0", "safe id 2.5", "start k jd 1 11 3.0", "safe jd 4.0"], 2, 0),
        (["start k id 1 10 1.0", "safe id 2.5", "start k id 1 11 3.0", "start k jd 1 11 3.0"], 2, 1),
    ],
)
def test_a_step_that_begins_again_is_found_only_if_its_end_was_safe(
    tmp_path: Path, lines: list[str], times: int, late: int
) -> None:
    history = _history(tmp_path / "runs", lines)
    assert len(begun_again(history.runs(), history.safe(), times)) == late


def test_a_line_that_is_being_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    history = _history(tmp_path / "runs", GOOD)
    with history.path.open("a") as record:
        record.write("start k id")
    assert [run.ending for run in history.runs()] == ["end"]
    with history.path.open("a") as record:
        record.write(" 2 11\n")
    assert [run.attempt for run in history.runs()] == [1, 2]


def test_an_await_that_did_not_complete_is_found(tmp_path: Path) -> None:
    history = _history(tmp_path / "runs", GOOD)
    _add(history, value=("k", "n", 10))
    history.completed()
    history.awaits.append(Await("k", "at_least_once", None, WorkerLost("gone", 1)))
    with pytest.raises(AssertionError, match="1 of 2 did not complete"):
        history.completed()


async def test_an_await_that_hangs_is_found() -> None:
    with pytest.raises(AssertionError, match="it hangs: not done"):
        await settled(asyncio.get_running_loop().create_future(), "it", 0.01)


async def test_a_call_that_times_out_does_not_hang() -> None:
    async def call() -> None:
        raise CallTimeout("in time")

    with pytest.raises(CallTimeout):
        await settled(call(), "it")


async def test_what_does_not_happen_is_named() -> None:
    with pytest.raises(AssertionError, match="still not: that"):
        await until(lambda: False, "that", 0.01)
    with pytest.raises(AssertionError, match="still not: that"):
        wait_until(lambda: False, "that", 0.01)
