"""The tries of a submitted call with a `retry`: a call of its own at a worker, which awaits them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from atasks.current import serving
from atasks.definitions import InvokedName
from atasks.errors import DecodeError
from atasks.namespaces import namespace_item
from atasks.options import TaskOptions
from atasks.policies.retry import Retry
from atasks.wire import Call

__all__ = ["CARRIED", "named_as", "run_tries", "tries_of", "whole"]

CARRIED = ("queue", "timeout", "delivery", "max_attempts", "priority", "durable")
"""Options of the atask that each of its tries has."""


def tries_of(
    name: str, options: TaskOptions, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, dict[str, Any], list[Any], dict[str, Any]]:
    """The arguments of `run_tries` for a call with these options. Raises TypeError for a retry that is code."""
    assert options.retry is not None, "else there is one try"
    given = {**{option: getattr(options, option) for option in CARRIED}, "retry": options.retry.described()}
    return str(name), given, list(args), dict(kwargs)


def whole(options: TaskOptions) -> TaskOptions:
    """The options of the call that makes the tries."""
    return options.with_changes({"timeout": None, "delivery": "at_least_once"})


def named_as(name: str, other: str) -> str:
    """The other name, for a call of which the middlewares know what they know of this one."""
    if not isinstance(name, InvokedName):
        return other
    renamed = InvokedName(other)
    renamed.task, renamed.options, renamed.fill = None, name.options, name.fill
    return renamed


async def run_tries(name: Any, options: Any, args: Any, kwargs: Any) -> Any:
    """The result of the first try of this atask that gives one, or what the last one raises.

    It is parked over all tries and pauses. If its worker dies the tries begin anew, with the same key.
    """
    run = serving.get()
    assert run is not None, "it is called by workers"
    invoked = InvokedName(_checked(name, str))
    invoked.task = None
    given = _checked(options, dict)
    try:
        if set(given) != {*CARRIED, "retry"}:
            raise TypeError("not the options of a submitted call")
        invoked.options = TaskOptions().with_changes({**given, "retry": Retry.restored(given["retry"])})
    except (TypeError, ValueError) as error:
        raise DecodeError(f"these tries cannot be read: {error}") from error
    invoked.fill = functools.partial(_name_key, run.call.key or run.call.id)
    positional: Sequence[Any] = _checked(args, list)
    named: Mapping[str, Any] = _checked(kwargs, dict)
    return await namespace_item(run.worker.namespace).router.send_request(invoked, *positional, **named)


def _name_key(key: str, call: Call) -> None:
    call.key = key


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise DecodeError(f"these tries cannot be read: {type(value).__name__} instead of {kind.__name__}")
    return value
