"""The arguments that users give to a stage's function, and those that it may ask for: `bind` and `worker_info`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVarTuple

__all__ = ["Bound", "WorkerInfo", "bind"]

Ts = TypeVarTuple("Ts")


@dataclass(frozen=True)
class Bound(Generic[*Ts]):
    """Extra arguments of a stage's function. Made by `bind`. Type checkers know the positional ones."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((len(self.args), *self.kwargs))


def bind(*args: *Ts, **kwargs: Any) -> Bound[*Ts]:
    """Extra arguments for the option `bind`: `map(scale, bind=bind(by=10))` calls `scale(item, by=10)`.

    Args:
        *args: Positional ones, which come before the item.
        **kwargs: Those by keyword.

    Returns:
        The arguments, for `bind=`.
    """
    return Bound(args, kwargs)


@dataclass(frozen=True)
class WorkerInfo:
    """The argument of `on_start`, `on_done` and a stage's function if they have a parameter `worker_info`."""

    stage: str
    """The name of the stage."""
    index: int
    """Which of the stage's workers this is, from 0."""
