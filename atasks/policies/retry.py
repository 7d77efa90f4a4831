"""Retries: which endings of a call are worth another try, and when that begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from atasks.checks import MAX_TIMEOUT, validate_integer, validate_number, validate_plain, validate_seconds
from atasks.errors import Diverged, RemoteError, RetryAfter
from atasks.modules import MAIN_NAMES, main_name

__all__ = ["Retry"]

MAX_TRIES: Final = 1000

Predicate = Callable[[Exception], object]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a call that has failed is tried again: `@atask(retry=Retry(on=(ConnectionError, Busy)))`.

    `RetryAfter` is always worth another try. A cancelled await is not tried again, nor is a call whose arguments
    cannot be sent. The deadline of the call is one for all tries: where the next one would begin after it, the
    exception is raised at once. A group of exceptions, as a task group raises, is worth another try if each one in
    it is; a function as `on` gets the group. `Diverged` is not worth another try, which would find the same
    journal, unless `on` names this very class, or is a function.

    Args:
        on: The class of an exception, or several, or a function of the exception that says whether another try is
            worth it. A class may be given by its name, "app.Busy", where it cannot be imported.
        attempts: Tries at the most, the first one included.
        wait: Seconds before the second try, and twice as long before each further one.
        wait_max: Seconds that a pause has at the most.
        jitter: Up to so many seconds more, at random.
        until: No try begins later than so many seconds after the first one. None: that does not matter.

    Raises:
        TypeError: `on` is nothing of the above.
        ValueError: A number makes no sense.

    Example:
        ```python
        from atasks import Retry, atask, current_call

        @atask(retry=Retry(on=ConnectionError, attempts=3, wait=0.01, jitter=0.0))
        async def fetch() -> int:
            if current_call().try_ < 3:
                raise ConnectionError("not yet")
            return current_call().try_

        print(await fetch())  # 3
        ```
    """

    on: type[Exception] | str | tuple[type[Exception] | str, ...] | Predicate
    attempts: int = 5
    wait: float = 1.0
    wait_max: float = 60.0
    jitter: float = 1.0
    until: float | None = 300.0

    def __post_init__(self) -> None:
        for kind in self.on if isinstance(self.on, tuple) else (self.on,):
            _check_kind(kind, alone=not isinstance(self.on, tuple))
        if self.on == ():
            raise ValueError("on=(): name at least one class of exceptions, as in Retry(on=(OSError,))")
        validate_integer("attempts", self.attempts, 1, MAX_TRIES)
        for name in ("wait", "wait_max", "jitter"):
            value = getattr(self, name)
            validate_number(name, value)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: seconds, 0 or more")
        if self.wait > self.wait_max:
            raise ValueError(f"wait={self.wait!r} is longer than wait_max={self.wait_max!r}: give wait_max too")
        if self.until is not None:
            validate_seconds("until", self.until)

    def described(self) -> dict[str, Any]:
        """Return the policy as plain data, for messages that carry no code. Raises TypeError if `on` is a
        function."""
        kinds: Any = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(isinstance(kind, (str, type)) for kind in kinds):
            raise TypeError("a Retry whose `on` is a function is code: name classes, as in Retry(on=(OSError,))")
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**data, "on": [kind if isinstance(kind, str) else _name(kind) for kind in kinds]}

    @classmethod
    def restored(cls, data: Any) -> Retry:
        """Make the policy again that `described` has described. Raises TypeError or ValueError for anything
        else."""
        if not isinstance(data, dict) or not isinstance(data.get("on"), list):
            raise TypeError("a retry is described by a mapping, with a list of names as `on`")
        if not all(isinstance(name, str) for name in data["on"]):
            raise TypeError("the classes of a retry are described by their names")
        return cls(**{**data, "on": tuple(data["on"])})

    def wants(self, error: BaseException) -> bool:
        """Return True if a call that ended with this error is worth another try. Raises what a function given
        as `on` raises."""
        if not isinstance(error, Exception):
            return False
        on: Any = self.on
        if callable(on) and not isinstance(on, type):
            return isinstance(error, RetryAfter) or bool(on(error))
        kinds = on if isinstance(on, tuple) else (on,)
        if any(isinstance(part, Diverged) for part in _parts(error)) and not {Diverged, _name(Diverged)} & {
            *kinds
        }:
            return False
        rest: list[Exception] = [error]
        while rest:
            part = rest.pop()
            if isinstance(part, RetryAfter) or any(_is_of(part, kind) for kind in kinds):
                continue
            if not isinstance(part, ExceptionGroup):
                return False
            rest += part.exceptions
        return True

    def is_last(self, number: int, error: BaseException) -> bool:
        """Return True if no try follows the one of this number, which ended with this error; a function given as
        `on` that raises ends the tries too."""
        try:
            return number >= self.attempts or not self.wants(error)
        except Exception:
            return True

    def too_late(self, seconds: float) -> bool:
        """Return True if no try may begin so many seconds after the first one."""
        return self.until is not None and seconds > self.until

    def pause(self, error: Exception, tries: int) -> float:
        """Return the seconds between this error and the next try; `tries` were made so far. What an error that
        came in a message wants counts if it is a time; of a group, the longest one."""
        wanted = [part.seconds for part in _parts(error) if isinstance(part, RetryAfter)]
        if wanted := [seconds for seconds in wanted if 0 <= seconds < math.inf]:
            return min(max(wanted), MAX_TIMEOUT)
        import random  # slow to import, and only calls that are tried again need it

        return min(self.wait * 2.0 ** (tries - 1) + random.uniform(0.0, self.jitter), self.wait_max)


def _check_kind(kind: Any, alone: bool) -> None:
    if isinstance(kind, type):
        if not issubclass(kind, Exception):
            raise TypeError(
                f"on={kind.__qualname__}: a class derived from Exception, as what ends programs or tasks is not "
                "tried again"
            )
    elif isinstance(kind, str):
        if not all(part.isidentifier() for part in kind.split(".")) or "." not in kind:
            raise ValueError(f"on={kind!r}: the name of a class with its module, as in 'app.Busy'")
    elif not (alone and callable(kind)):
        raise TypeError(
            f"on={kind!r}: a class of exceptions, a tuple of such classes, or a function of the exception"
        )
    else:
        validate_plain("on", kind)


def _name(kind: type) -> str:
    """Return the name by which workers know the class."""
    module = kind.__module__
    return f"{(module in MAIN_NAMES and main_name()) or module}.{kind.__qualname__}"


def _parts(error: Exception) -> Iterator[Exception]:
    """Yield the exceptions in a group, or this one."""
    rest = [error]
    while rest:
        part = rest.pop()
        if isinstance(part, ExceptionGroup):
            rest += part.exceptions
        else:
            yield part


def _is_of(error: Exception, kind: type[Exception] | str) -> bool:
    return _is_named(error, kind) if isinstance(kind, str) else isinstance(error, kind)


def _is_named(error: Exception, name: str) -> bool:
    """Return True if the error's class, or one of its base classes, has this name. The class of a `RemoteError`
    may be unknown here."""
    if isinstance(error, RemoteError) and error.type_name == name:
        return True
    return any(_name(kind) == name for kind in type(error).__mro__)
