"""A worker's knowledge of the clocks of its callers."""

from __future__ import annotations

import time

import pytest

from atasks.transport.backends.amqp.worker.clocks import MAX_CALLERS, Clocks


def _now_ms(ahead: float = 0.0) -> int:
    """The time that a caller tells whose clock is so many seconds behind this one."""
    return int((time.time() - ahead) * 1000)


@pytest.mark.parametrize("ahead", [60.0, -60.0, 2.5, -86_400.0, 0.0])
def test_what_is_measured_is_allowed_for(ahead: float) -> None:
    clocks = Clocks()
    sent = _now_ms(ahead + 7)
    assert clocks.waited("caller", sent) == 0, "nothing is certain of a clock that was not compared"
    clocks.learn("caller", _now_ms(ahead), 0.1)
    assert 6.5 < clocks.waited("caller", sent) <= 7
    assert clocks.waited("another", sent) == 0
    assert clocks.waited("caller", _now_ms(ahead)) == 0
    assert abs(clocks.ahead("caller") - (1000 * ahead if abs(ahead) > 2 else 0)) < 500


def test_an_answer_that_took_its_time_does_not_count_for_more() -> None:
    clocks = Clocks()
    clocks.learn("caller", _now_ms(3), 5)  # it was on its way, or the clocks differ by so much
    clocks.learn("caller", _now_ms(0), 5)
    assert clocks.waited("caller", _now_ms(4)) > 3.5
    clocks.learn("caller", _now_ms(3), 5)
    assert clocks.waited("caller", _now_ms(4)) > 3.5


def test_a_clock_that_is_set_is_measured_anew() -> None:
    clocks = Clocks()
    for ahead in (0, 60, -60, 5):
        clocks.learn("caller", _now_ms(ahead), 0.2)
        assert clocks.waited("caller", _now_ms(ahead)) == 0
        assert 9 < clocks.waited("caller", _now_ms(ahead + 10)) <= 10


def test_an_older_caller_does_not_say() -> None:
    clocks = Clocks()
    clocks.learn("caller", 0, 0.1)
    assert clocks.waited("caller", _now_ms(100)) == 0


def test_a_large_difference_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    for number in range(5):
        clocks.learn(f"right-{number}", _now_ms(1), 0.1)
    assert not caplog.records
    for number in range(5):
        clocks.learn(f"caller-{number}", _now_ms(-30), 0.1)
    (record,) = caplog.records
    assert "30.0 s behind that of a caller" in record.getMessage()


def test_callers_are_remembered_within_a_bound() -> None:
    clocks = Clocks()
    for number in range(MAX_CALLERS + 10):
        clocks.learn(f"caller-{number}", _now_ms(), 0.1)
    assert clocks.waited("caller-0", _now_ms(10)) == 0
    assert clocks.waited(f"caller-{MAX_CALLERS}", _now_ms(10)) > 9
