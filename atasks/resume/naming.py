"""Names for the steps of a call that resumes: what is asked for, and how often it was asked for before."""

from __future__ import annotations

import dis
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import blake2b
from types import CodeType
from typing import Any, Final

__all__ = ["Names", "again", "content", "name_of"]

SIZE: Final = 16
"""Bytes of an id."""
LONG: Final = 1024
"""Characters, or bytes, of what a local function uses that is hashed before it is put beside others."""
LAMBDA: Final = "<lambda>"
PLAIN: Final = frozenset({str, bytes, int, bool, type(None)})
"""Types of what a local function uses that tells it from others: such things are the same in every run, as a rule.
Others may have a state, or be a time."""


def content(args: Sequence[Any], kwargs: Mapping[str, Any], encoded: bytes) -> bytes:
    """Arguments as bytes: equal ones have the same in every process, as a rule.

    They are pickled without references from one part to another, which depend on which objects happen to be the
    same. What cannot be pickled so is named by `encoded`, the codec's bytes. A set of strings has another order in
    another process, so another name.
    """
    buffer = io.BytesIO()
    try:
        pickler = pickle.Pickler(buffer, protocol=5)
        pickler.fast = True
        pickler.dump((tuple(args), sorted(kwargs.items())))
    except Exception:  # a pickle may raise anything
        return encoded
    return buffer.getvalue()


def name_of(function: Callable[..., Any]) -> tuple[str, bytes]:
    """The name of a function, and what tells it from others of that name.

    That is what a `functools.partial` fills in, the code of a lambda, and of a lambda or a local function the
    defaults, and what it uses of the function around it and does not set, if that is of a `PLAIN` type. Nothing,
    for others: new code of a function is the same step.
    """
    parts: list[object] = []
    while isinstance(function, partial):
        parts += (_alone(each) for each in function.args)  # one may not be picklable
        parts += ((key, _alone(each)) for key, each in sorted(function.keywords.items()))
        function = function.func
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        if code.co_name == LAMBDA:
            parts.append(repr(_meaning(code)))
        if code.co_name == LAMBDA or "<locals>" in code.co_qualname:
            parts += (_short(each) for each in function.__defaults__ or () if type(each) in PLAIN)
            others = sorted((function.__kwdefaults__ or {}).items())
            parts += ((key, _short(each)) for key, each in others if type(each) in PLAIN)
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # it has no value yet
                if type(cell.cell_contents) in PLAIN and variable not in _set_by(code):
                    parts.append((variable, _short(cell.cell_contents)))
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or type(getattr(named, "__self__", named)).__module__
    return f"{module}.{named.__qualname__}", content(parts, {}, b"") if parts else b""


def _short(value: object) -> object:
    """A value of a `PLAIN` type, or a hash of a long one: it is not copied with each name."""
    if not isinstance(value, (str, bytes)) or len(value) <= LONG:
        return value
    data = value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
    return type(value).__name__, blake2b(data).digest()


def _alone(value: object) -> bytes:
    return content([value], {}, b"")


@lru_cache
def _set_by(code: CodeType) -> frozenset[str]:
    """The variables around a function that it, or a function in it, sets. A run that is given the result of the
    function does not set them: so they differ from run to run."""
    found = {each.argval for each in dis.get_instructions(code) if each.opname in ("STORE_DEREF", "DELETE_DEREF")}
    found.update(*(_set_by(each) for each in code.co_consts if isinstance(each, CodeType)))
    return frozenset(found.intersection(code.co_freevars))


def _meaning(constant: object) -> object:
    """The code of a function, or a constant in it, without the lines where it stands."""
    if isinstance(constant, CodeType):
        names = constant.co_names, constant.co_freevars
        return constant.co_code, names, [_meaning(each) for each in constant.co_consts]
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def again(step: str) -> str:
    """The id with which a step is made again whose call has ended without a result."""
    return blake2b(step.encode(), digest_size=SIZE, person=b"atasks again").hexdigest()


class Names:
    """The names of the steps of one run, in the order in which they are asked for."""

    __slots__ = ("_journal", "_keys", "_times", "given")

    def __init__(self, journal: str) -> None:
        self._journal = journal
        self._times: dict[str, int] | None = None
        """First step of that name -> how often it was asked for again."""
        self.given: dict[str, bool] = {}
        """Id of a step -> True once it was looked for in the journal."""
        self._keys: dict[tuple[str, str], bytes] | None = None

    def of(self, task: str, key: str | None, arguments: bytes) -> str:
        """The id of the next call of this atask with these arguments, or with this key.

        Raises ValueError if the key was given to a call with other arguments.
        """
        named = blake2b(f"{self._journal}{task}\0".encode(), digest_size=SIZE, person=b"atasks step")
        if key is None:
            named.update(arguments)
        else:
            digest = blake2b(arguments).digest()
            if self._keys is None:
                self._keys = {}
            if self._keys.setdefault((task, key), digest) != digest:
                raise ValueError(
                    f"key={key!r} names two calls of {task} with different arguments: within a call that resumes, "
                    "give each call a key of its own"
                )
            named.update(b"key " + key.encode())
        step = first = named.hexdigest()
        if first in self.given:
            if self._times is None:
                self._times = {}
            number = self._times[first] = self._times.get(first, 0) + 1
            step = blake2b(named.digest() + number.to_bytes(8, "big"), digest_size=SIZE).hexdigest()
        self.given[step] = False
        return step
