"""The function that prepares a worker process before it imports atasks: `process_setup="module:function"`."""

from __future__ import annotations

from contextlib import suppress

from atasks.errors import LoadError
from atasks.modules import importing, named

__all__ = ["check", "remember", "remembered", "run"]

_remembered: str | None = None


def check(setup: object) -> str:
    """Return the text, if it names a function as `module:function`. Raises TypeError, ValueError."""
    if not isinstance(setup, str):
        raise TypeError(
            f'process_setup names a function, as in "shop.boot:prepare", and is no {type(setup).__name__}'
        )
    module, colon, function = setup.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f'process_setup={setup!r}: name a function of a module, as in "shop.boot:prepare"')
    return setup


def remember(setup: str) -> None:
    """Have the processes that this one starts call that function first, unless their starter names another."""
    global _remembered
    _remembered = check(setup)


def remembered() -> str | None:
    """The function that this process was prepared by, or None."""
    return _remembered


def run(setup: str) -> None:
    """Import the module, call the function without arguments, and remember it.

    Raises LoadError for whatever that raises, TypeError, ValueError.
    """
    module, _, path = check(setup).partition(":")
    found: object = None
    with importing(), suppress(ValueError):  # which says that the module has none
        found = named(setup)
    if not callable(found):
        raise LoadError(f"process_setup={setup!r}: {module} has no function {path}")
    try:
        with importing():
            found()
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        raise LoadError(f"process_setup={setup!r} has failed ({type(error).__name__}: {text})") from error
    remember(setup)
