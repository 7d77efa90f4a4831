"""Checks of what programs give: numbers, seconds and names, with errors that say what is taken."""

from __future__ import annotations

import os
from typing import Any, Final

__all__ = [
    "MAX_TIMEOUT",
    "from_environment",
    "is_queue",
    "validate_count",
    "validate_integer",
    "validate_name",
    "validate_number",
    "validate_plain",
    "validate_queue",
    "validate_seconds",
    "validate_timeout",
]

MAX_TIMEOUT: Final = 10 * 365 * 24 * 3600
"""Seconds: RabbitMQ takes no message that is to expire later."""


def from_environment(variable: str, error: type[Exception], words: str, option: str) -> str | None:
    """The value of a variable, or None. Raises this error for one that is set and empty: something was to give a
    value and did not, and the program would go on without it, unprotected or to another place."""
    value = os.environ.get(variable)
    if value == "":
        raise error(
            f"${variable} is set and empty: {words} there, or unset it ({option}='' has none whatever it says)"
        )
    return value


def validate_number(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless it is a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if value != value:
        raise ValueError(f"{name} is a number of seconds, not NaN")


def validate_plain(name: str, function: Any) -> None:
    """Raise TypeError for a coroutine function, where nobody awaits the result."""
    import inspect  # slow to import, and a process of a stage has no other need of it

    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{name}={function!r} is a coroutine function, and nobody would await it: give a plain function"
        )


def validate_seconds(name: str, value: Any, most: float = MAX_TIMEOUT) -> float:
    """A number of seconds above 0 and at most `most`. Raises TypeError, ValueError."""
    validate_number(name, value)
    if not 0 < value <= most:
        raise ValueError(f"{name}={value!r}: seconds above 0, at most {most:.0f}")
    return float(value)


def validate_timeout(value: Any) -> float:
    """A `timeout` of a call, or of a stage for one item: seconds above 0. Raises TypeError, ValueError."""
    validate_number("timeout", value)
    if not value > 0:
        raise ValueError(f"timeout={value!r}: seconds above 0, or None for no limit")
    if value > MAX_TIMEOUT:
        raise ValueError(f"timeout is at most {MAX_TIMEOUT} seconds (10 years), or None for no limit")
    return float(value)


def validate_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raise TypeError or ValueError unless it is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: {low} to {high}")


_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@#,/+")


def validate_count(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless it is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value}: at least 1")


def validate_name(value: Any, what: str) -> str:
    """A name that travels in messages: 1 to 1 024 characters that UTF-8 has. Raises TypeError, ValueError."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{what} is a non-empty string, not {value!r}")
    if len(value) > 1024:
        raise ValueError(f"{what} has {len(value)} characters: at most 1024")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {value!r} has characters that no message can carry (surrogates)") from None
    return value


def is_queue(name: str) -> bool:
    """Return True if a queue, a namespace or a prefix can have this name."""
    return 0 < len(name) <= 100 and _NAME_CHARACTERS.issuperset(name)


def validate_queue(value: Any, what: str = "queue") -> str:
    """The name of a queue, a namespace or a prefix, if brokers take it: letters, digits and `-_.:@#,/+`."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {value!r}")
    if len(value) > 100:
        raise ValueError(f"{what} of {len(value)} characters: at most 100")
    bad = sorted(set(value) - _NAME_CHARACTERS)
    if bad or not value:
        found = f"not {''.join(bad)!r}" if bad else "and not empty"
        raise ValueError(f"{what}={value!r}: letters, digits and -_.:@#,/+ only, {found}")
    return value
