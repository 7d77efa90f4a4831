"""Faults that a test has happen to its calls: `@pytest.mark.atasks(faults=[faults.kill_worker_during("pay")])`.

Each one happens to the first calls of its atask, `times` of them, as callers and workers see it over RabbitMQ. A
test fails one of whose faults never happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from atasks.checks import validate_count, validate_number

__all__ = ["Fault", "delay", "duplicate", "kill_worker_during", "lose_reply"]


@dataclass(frozen=True)
class Fault:
    """One fault of the calls of an atask: made by the functions of this module."""

    kind: Literal["kill", "lose", "duplicate", "delay"]
    task: str
    """The name of the atask, or the last part of it."""
    seconds: float
    times: int
    """To how many deliveries it happens."""

    def __post_init__(self) -> None:
        if not self.task:
            raise ValueError("a fault needs the name of an atask")
        validate_number("the time of a fault", self.seconds)
        if not 0 <= self.seconds <= 3600:
            raise ValueError(f"the time of a fault is 0 to 3600 seconds, not {self.seconds!r}")
        validate_count("times", self.times)

    def concerns(self, name: str) -> bool:
        """Return True for the name of its atask."""
        return name == self.task or name.endswith((f".{self.task}", f":{self.task}"))

    def __str__(self) -> str:
        return f"{self.kind} {self.task}"


def kill_worker_during(task: Any, *, after: float = 0.0, times: int = 1) -> Fault:
    """Have the worker of a call die while it runs: `after` so many seconds; 0: where the function awaits first.

    The call runs again, as its next attempt; one that runs at most once, or had its last attempt, ends in
    `WorkerLost`. In this process the function sees a CancelledError, where a process that dies would see nothing,
    and a function in a thread goes on to its end.
    """
    return Fault("kill", _name(task), after, times)


def lose_reply(task: Any, *, times: int = 1) -> Fault:
    """Have the worker of a call die when the function has returned and nobody has its result.

    The call runs again, as its next attempt; one that runs at most once, or had its last attempt, ends in
    `WorkerLost`.
    """
    return Fault("lose", _name(task), 0.0, times)


def duplicate(task: Any, *, times: int = 1) -> Fault:
    """Have a call delivered again when its result is under way: the function runs twice, and its caller hears of
    the first run. A call that runs at most once is never delivered twice."""
    return Fault("duplicate", _name(task), 0.0, times)


def delay(task: Any, seconds: float, *, times: int = 1) -> Fault:
    """Have a call reach its worker so many seconds late. Its deadline counts from when it was made."""
    return Fault("delay", _name(task), seconds, times)


def _name(task: Any) -> str:
    name = getattr(task, "name", task)
    if not isinstance(name, str):
        raise TypeError(f"a fault is for an atask or the name of one, not {type(task).__name__}")
    return name
