"""The checker of histories: a checker that finds nothing proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atasks import CallConnectionLost, WorkerLost
from tests.faults.history import Await, Delivery, History
from tests.faults.tasks import Failed


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
            r"WorkerLost\(1\) after 2 runs",
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
    ],
)
def test_breaches_are_found(tmp_path: Path, lines: list[str], ending: dict[str, Any], breach: str) -> None:
    history = _history(tmp_path / "runs", lines)
    _add(history, **ending)
    with pytest.raises(AssertionError, match=breach):
        history.check()
