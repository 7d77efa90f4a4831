"""The options of stages, and what values they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypedDict

from atasks.checks import validate_timeout
from atasks.errors import closest
from atasks.pipeline.flow.arguments import Bound
from atasks.policies.limit import Limit

__all__ = ["GroupOptions", "PlainOptions", "StageOptions", "StageOptionsDict", "read_options"]

Hook = Callable[..., Any]
OnError = Callable[[Any, Exception], Any]

LOCAL_WORKERS: Final = 1
REMOTE_WORKERS: Final = 64
MAX_WORKERS: Final = 100_000
THROTTLE: Final = 64
QUICK_THROTTLE: Final = 1024


class PlainOptions(TypedDict, total=False):
    """Those that leave it to the item alone what the function is called with: type checkers know that."""

    workers: int | None
    throttle: int | None
    timeout: float | None
    skip_errors: bool
    multiprocess: bool
    inline: bool
    on_error: OnError | None
    max_errors: float | None
    limit: Limit | None


class StageOptionsDict(PlainOptions, total=False):
    """Options of `stage`, `map`, `filter`, `flat_map`, `each` and `after`."""

    bind: Bound[*tuple[Any, ...]] | None
    param_name: str | None
    unpack: bool
    on_start: Hook | None
    on_done: Hook | None


class GroupOptions(TypedDict, total=False):
    """Options of `group` besides `skip_errors`."""

    workers: int | None
    throttle: int | None
    timeout: float | None
    limit: Limit | None


@dataclass(frozen=True)
class StageOptions:
    """The options by which a stage runs its function."""

    workers: int | None = LOCAL_WORKERS
    """Calls in flight; None: as many as there are items."""
    throttle: int | None = None
    """The most results that wait for the next stage; 0: no bound. None: `THROTTLE`, and in
    processes up to `QUICK_THROTTLE` where the function is quick and the next stage takes results at once."""
    timeout: float | None = None
    """Seconds that the function may take for one item."""
    skip_errors: bool = False
    """Drop the items for which the function raises an `Exception`, but for `AbortPipeline`."""
    on_error: OnError | None = None
    """Called, and awaited if it is asynchronous, with each item that is dropped and the exception."""
    max_errors: float | None = None
    """The most items that may be dropped: an int, or a float, a share of those that the stage is done with. None:
    any number."""
    limit: Limit | None = None
    """A token of it is held over each call of the function."""
    bind: Bound[*tuple[Any, ...]] | None = None
    """Extra arguments."""
    param_name: str | None = None
    """The parameter that gets the item, by name."""
    unpack: bool = False
    """Pass the elements of the item as arguments; those of a mapping by name."""
    multiprocess: bool = False
    """Run a plain function in processes, one for each worker."""
    inline: bool = False
    """Run a plain function on the event loop."""
    on_start: Hook | None = None
    """Called once per worker before its first item; returns a dict of arguments, or None."""
    on_done: Hook | None = None
    """Called once per worker at its end, for each `on_start` that has succeeded."""


_WORKERS: Final = "write workers=, the calls in flight"
_THROTTLE: Final = "write throttle=, the results that may wait for the next stage"
_LIMIT: Final = "write limit=Limit(name, per_second=...), which all that name the same limit share"
_RETRY: Final = (
    "a stage calls its function once for an item: give an atask @atask(retry=Retry(...)), or repeat within the "
    "function what may fail"
)
_ELSEWHERE: Final = {
    **dict.fromkeys(("concurrency", "max_workers", "n_workers", "task_limit", "processes"), _WORKERS),
    **dict.fromkeys(("maxsize", "buffer", "buffer_size", "queue_size", "prefetch"), _THROTTLE),
    **dict.fromkeys(("retries", "retry", "max_retries", "attempts", "max_attempts", "retry_on_error"), _RETRY),
    **dict.fromkeys(("rate_limit", "rate", "per_second", "rps"), _LIMIT),
    "executor": "plain functions run in threads, or with multiprocess=True in processes",
}
"""Names of options in other libraries -> our own name for them, in messages."""
_NAMES: Final = tuple(item.name for item in fields(StageOptions))
_MAY_BE_NONE: Final = {"workers", *(item.name for item in fields(StageOptions) if item.default is None)}


def read_options(given: Mapping[str, Any], *, remote: bool) -> StageOptions:
    """The options, checked. Raises TypeError for an unknown one or a wrong type, ValueError for a wrong value."""
    for name, value in given.items():
        if name not in _NAMES:
            near = closest(name, _NAMES, limit=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(_NAMES)}"
            hint = _ELSEWHERE.get(name, hint)
            raise TypeError(f"unknown option {name!r} of a stage: {hint}")
        _check(name, value)
    return StageOptions(**{"workers": REMOTE_WORKERS if remote else LOCAL_WORKERS, **given})


def _check(name: str, value: Any) -> None:
    if value is None and name in _MAY_BE_NONE:
        return
    match name:
        case "workers":
            _integer(name, value, f"calls in flight, 1 to {MAX_WORKERS}, or None for no bound", 1, MAX_WORKERS)
        case "throttle":
            _integer(name, value, "results that may wait, at least 0; 0 for no bound", 0)
        case "timeout":
            validate_timeout(value)
        case "max_errors":
            _most_errors(value)
        case "bind" if not isinstance(value, Bound):
            raise TypeError(f"bind is what bind(...) returns: bind=bind(...), not {type(value).__name__}")
        case "limit" if not isinstance(value, Limit):
            raise TypeError(f"limit is a Limit, as Limit('api', per_second=5), not {value!r}")
        case "param_name" if not (isinstance(value, str) and value.isidentifier()):
            raise TypeError(f"param_name is the name of a parameter, not {value!r}")
        case "on_start" | "on_done" | "on_error" if not callable(value):
            raise TypeError(f"{name} is a function, not {type(value).__name__}")
        case "skip_errors" | "unpack" | "multiprocess" | "inline" if not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, not {value!r}")


def _most_errors(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"max_errors is a number of items, or a share as a float, not {value!r}")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"max_errors={value}: items, at least 0")
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ValueError(f"max_errors={value}: a float is a share, 0.0 to 1.0; write an int for a number of items")


def _integer(name: str, value: Any, what: str, low: int, high: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number ({what}), not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: {what}")
