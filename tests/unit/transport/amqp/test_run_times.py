"""Expected run times of calls, which decide how many calls share a message."""

from __future__ import annotations

from atasks.transport.backends.amqp.caller.run_times import (
    LONGEST_PAUSE_US,
    PAUSE_CALLS,
    UNKNOWN,
    RunTimes,
    at_most,
)


def paced(*run_times: int) -> RunTimes:
    pace = RunTimes()
    for run_us in run_times:
        pace.observe("t", run_us, parked=False)
    return pace


def most(pace: RunTimes) -> float:
    """Microseconds that one call is expected to run at most."""
    return at_most(pace.expected("t"))


def test_nothing_is_expected_of_an_atask_that_never_ended() -> None:
    assert RunTimes().expected("t") == UNKNOWN


def test_a_call_runs_at_most_the_mean_and_four_deviations() -> None:
    # RFC 6298: first R, R/2; then 3/4 of the deviation and 1/4 of the error, 7/8 of the mean and 1/8 of the value
    assert most(paced(100)) == 100 + 4 * 50
    assert most(paced(100, 100)) == 100 + 4 * 37.5
    assert most(paced(100, 180)) == 110 + 4 * (0.75 * 50 + 0.25 * 80)


def test_of_calls_together_the_means_add_up_and_the_squares_of_the_deviations() -> None:
    mean, square = paced(100).expected("t")
    assert (mean, square) == (100, 50**2)
    assert at_most((4 * mean, 4 * square)) == 4 * 100 + 4 * 2 * 50


def test_steady_calls_are_expected_to_go_on_so() -> None:
    assert 200 <= most(paced(*[200] * 50)) < 205


def test_a_call_that_is_slower_than_any_pause_counts_at_once_and_forty_fast_ones_end_it() -> None:
    pace = paced(*[20] * 50, LONGEST_PAUSE_US + 1)
    assert most(pace) > 2_500
    for _ in range(45):
        pace.observe("t", 20, parked=False)
    assert most(pace) < 100


def test_one_call_in_many_may_have_run_into_a_pause() -> None:
    pace = paced(*[20] * 50)
    for _ in range(3):
        before = most(pace)
        pace.observe("t", LONGEST_PAUSE_US, parked=False)
        assert most(pace) == before
        for _ in range(PAUSE_CALLS):
            pace.observe("t", 20, parked=False)


def test_an_atask_that_turns_slow_counts_with_its_second_slow_call() -> None:
    pace = paced(*[20] * 50, 4_000)
    for _ in range(PAUSE_CALLS - 1):
        pace.observe("t", 20, parked=False)
    assert most(pace) < 100
    pace.observe("t", 4_000, parked=False)
    assert most(pace) > 1_000


def test_calls_of_which_few_are_slow_stay_slow() -> None:
    # one of 1 s among thirty of 1 ms: never so cheap that two of them share a message of 1 ms of work
    pace = paced(*([1_000] * 30 + [1_000_000]) * 5)
    for _ in range(200):
        pace.observe("t", 1_000, parked=False)
        assert most(pace) >= 1_000


def test_of_an_atask_that_awaited_others_the_work_counts() -> None:
    pace = paced(5)
    for _ in range(100):
        pace.observe("t", 100_000, parked=True, work_us=100)
    assert 100 <= most(pace) < 105
    assert pace.parking == {"t"}


def test_an_atask_that_awaited_another_call_remains_unknown_where_its_work_was_not_measured() -> None:
    pace = paced(20, 20)
    pace.observe("t", 20, parked=True)
    for _ in range(100):
        pace.observe("t", 20, parked=False)
    assert pace.expected("t") == UNKNOWN
    assert pace.expected("another") == UNKNOWN


def test_an_atask_is_known_again_after_some_calls_of_which_the_work_was_measured() -> None:
    pace = paced(20, 20)
    pace.observe("t", 20, parked=True)
    for _ in range(PAUSE_CALLS):
        assert pace.expected("t") == UNKNOWN
        pace.observe("t", 100_000, parked=True, work_us=100)
    assert most(pace) < 400
