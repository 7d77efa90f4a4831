"""The contract of what hands out the tokens of limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Final, Protocol

from atasks.errors import LimitError
from atasks.policies.limit import Rule

__all__ = ["MAX_KEYS", "Limits", "Token", "agree", "differs", "too_many"]

MAX_KEYS: Final = 1000
"""Limits, and values of their keys, that one side keeps tokens for at a time."""


class Token(Protocol):
    """The right to begin, of a limit. It belongs to its event loop."""

    def begin(self) -> None:
        """Begin the work that the token was taken for: a token of a rate is spent now."""

    def release(self) -> None:
        """Give the token back: the work has ended, or will not begin. Safe to call again."""

    def release_soon(self) -> None:
        """Give the token back, from any thread."""


class Limits(ABC):
    """Hands out the tokens of all limits of a namespace."""

    follows_the_youngest: ClassVar[bool] = False
    """True if a process that begins to use a limit may change its numbers while others use it."""

    @abstractmethod
    async def take(self, name: str, key: str | None, rule: Rule) -> Token:
        """A token of that limit, and of that value of its key, as soon as there is one.

        Cancelling it costs no token. A token is given back when it is released, or when its holder dies.

        Raises LimitError where the limit is in use with another rule that does not give way, and NotConnected.
        """


def agree(name: str, rule: Rule, others: Iterable[Rule]) -> None:
    """Raise LimitError if the limit has another rule where it is in use already, maybe for other values of its
    key."""
    for other in others:
        if other != rule:
            raise differs(name, rule, str(other))


def differs(name: str, rule: Rule, other: str) -> LimitError:
    """The error of a limit that has two rules at the same time."""
    return LimitError(
        f"limit {name!r} has {rule} here, and {other} where it is in use already: say the same everywhere, or "
        "stop the other programs first"
    )


def too_many(name: str) -> LimitError:
    """The error of a limit with more keys than can be kept."""
    return LimitError(
        f"limit {name!r} has one key more than the {MAX_KEYS} that may be in use at a time: give it a key with "
        "fewer values"
    )
