"""How long calls are expected to run: what decides how many share a message."""

from __future__ import annotations

import math

from atasks.transport.backends.amqp.pace import FLOOR_US, Pace


def paced(*run_times: int) -> Pace:
    pace = Pace()
    for run_us in run_times:
        pace.observe("t", run_us, parked=False)
    return pace


def test_nothing_is_expected_of_an_atask_that_never_ended() -> None:
    assert Pace().estimate("t") == math.inf


def test_the_estimate_is_the_mean_and_four_deviations() -> None:
    # RFC 6298: first R, R/2; then 3/4 of the deviation and 1/4 of the error, 7/8 of the mean and 1/8 of the value
    assert paced(100).estimate("t") == 100 + 4 * 50
    assert paced(100, 100).estimate("t") == 100 + 4 * 37.5
    assert paced(100, 180).estimate("t") == 110 + 4 * (0.75 * 50 + 0.25 * 80)


def test_steady_calls_are_expected_to_go_on_so() -> None:
    assert 200 <= paced(*[200] * 50).estimate("t") < 205


def test_the_cheapest_call_is_not_free() -> None:
    assert paced(*[0] * 50).estimate("t") == FLOOR_US


def test_one_slow_call_counts_at_once_and_forty_fast_ones_end_it() -> None:
    pace = paced(*[20] * 50, 2_000)
    assert pace.estimate("t") > 1_000
    for _ in range(40):
        pace.observe("t", 20, parked=False)
    assert pace.estimate("t") < 100


def test_calls_of_which_few_are_slow_stay_slow() -> None:
    # one of 1 s among thirty of 1 ms: never so cheap that two of them share a message of 1 ms of work
    pace = paced(*([1_000] * 30 + [1_000_000]) * 5)
    for _ in range(200):
        pace.observe("t", 1_000, parked=False)
        assert pace.estimate("t") >= 1_000


def test_an_atask_that_awaited_another_call_is_never_expected_to_be_short() -> None:
    pace = paced(20, 20)
    pace.observe("t", 20, parked=True)
    for _ in range(100):
        pace.observe("t", 20, parked=False)
    assert pace.estimate("t") == math.inf
    assert pace.estimate("another") == math.inf
