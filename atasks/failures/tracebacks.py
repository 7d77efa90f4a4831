"""Chains of exceptions, and the text of their tracebacks as a worker saw them."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from traceback import TracebackException, format_tb

from atasks.codecs.objects import Path, class_name, get_plainly, held, members
from atasks.errors import RemoteTraceback

__all__ = ["MAX_MESSAGE", "MAX_NOTE", "Origin", "frames", "links", "shorten", "texts"]

MAX_LINKS = 100
"""Exceptions of one chain, or of one tree of groups, that travel."""
MAX_FORMATTED = 1000
"""Exceptions in one traceback: past it only the first one's own frames are formatted."""
MAX_TEXT = 65_536
"""Characters of one traceback."""
MAX_MESSAGE = 8192
"""Characters of the `str()` of one exception."""
MAX_NOTE = 4096
"""Characters of one note."""

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_TESTING = os.path.join(_PACKAGE, "testing", "")  # its cases are atasks like a user's
_POOL = os.path.join("concurrent", "futures", "thread.py")


class Origin:
    """An exception, and where in the list of links the ones are that it refers to."""

    __slots__ = ("cause", "context", "exception", "held", "left_out", "members", "suppress")

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception
        self.cause: int | None = None
        self.context: int | None = None
        self.suppress: bool = get_plainly(exception, "__suppress_context__")
        self.members: list[tuple[int, int]] = []
        """The members of a group: position of each in `exceptions`, and its index."""
        self.held: list[tuple[Path, int | None]] = []
        """Exceptions in `args` and attributes: where they are, and index; None for one that does not travel."""
        self.left_out = 0
        """The number of members of the group that are over the limit."""

    @property
    def following(self) -> int | None:
        """The one that a traceback shows before this one."""
        if self.cause is not None or self.suppress:
            return self.cause
        return self.context


def links(root: BaseException) -> list[Origin]:
    """The exceptions that `root` refers to and `root` itself, each one after those that it refers to itself.

    At most `MAX_LINKS`, the nearest ones. What closes a circle is left out, and so are the `RemoteTraceback`s: the
    text of this hop's traceback contains theirs.
    """
    found: list[Origin] = []
    numbers: dict[int, int | None] = dict.fromkeys(map(id, itertools.islice(_nearest(root), MAX_LINKS)))
    _add_link(root, found, numbers)
    return found


def _add_link(exception: BaseException | None, found: list[Origin], numbers: dict[int, int | None]) -> int | None:
    """The index of an exception's link, which is added if need be.

    `numbers` knows the exceptions that are still to be added (None), and those that have an index. None for one
    that is being added, which would close a circle, and for one that is over the limit.

    A function of its own: one within `links` would be a circle of references, which keeps frames alive.
    """
    key = id(exception)
    if exception is None or key not in numbers:
        return None
    if numbers[key] is not None:
        return numbers[key]
    del numbers[key]
    link = Origin(exception)
    link.cause = _add_link(get_plainly(exception, "__cause__"), found, numbers)
    link.context = _add_link(get_plainly(exception, "__context__"), found, numbers)
    link.held = [(path, _add_link(other, found, numbers)) for path, other in held(exception)]
    for position, member in enumerate(members(exception)):
        number = _add_link(member, found, numbers)
        if number is None:
            link.left_out += 1
        else:
            link.members.append((position, number))
    found.append(link)
    numbers[key] = len(found) - 1
    return numbers[key]


def texts(chain: list[Origin], large: bool = False) -> dict[int, str]:
    """The traceback as text for each exception at the end of the chain, by index.

    `large` says that `str()` of one of them may take seconds: then the frames of the last exception are shown
    alone.

    In a tree of groups every leaf has its own: the whole traceback, less the other members of its groups.
    The frames of atasks that lead to the user's code are left out.
    """
    root = chain[-1].exception
    try:
        if not large and sum(1 for _ in itertools.islice(_nearest(root), MAX_FORMATTED + 1)) <= MAX_FORMATTED:
            return _Formatting(chain, TracebackException.from_exception(root)).texts
    except Exception:  # a method of a user's class raises: it is not asked again
        pass
    text = shorten(frames(root), MAX_TEXT)
    return {index: text for index, link in enumerate(chain) if _is_end(link)}


def frames(exc: BaseException) -> str:
    """The frames of one exception, without its own text."""
    found = "".join(format_tb(get_plainly(exc, "__traceback__")))
    return f"Traceback (most recent call last):\n{found}{class_name(type(exc))[1]}\n"


class _Formatting:
    """Formats one traceback for each end of the chain."""

    def __init__(self, chain: list[Origin], whole: TracebackException) -> None:
        self._chain = chain
        self._whole = whole
        self._limit = max(2048, MAX_TEXT // max(1, sum(map(_is_end, chain))))
        self._seen: set[int] = set()
        self.texts: dict[int, str] = {}
        _trim(whole)
        self._visit(len(chain) - 1, whole)

    def _visit(self, index: int, part: TracebackException | None) -> None:
        """Go on from a link, and from the part of the traceback that shows it, if any does.

        While a member of a group is visited, the traceback shows no other members of that group.
        """
        if index in self._seen:
            return
        self._seen.add(index)
        link = self._chain[index]
        if link.following is not None:
            self._visit(link.following, part and (part.__cause__ if link.cause is not None else part.__context__))
        everyone = part.exceptions if part is not None else None
        for position, member in link.members:
            if part is None or everyone is None:  # the traceback module leaves out what it has shown elsewhere
                self._visit(member, None)
            else:
                part.exceptions = [everyone[position]]
                self._visit(member, everyone[position])
                part.exceptions = everyone
        if _is_end(link):
            self.texts[index] = shorten("".join(self._whole.format()), self._limit)


def shorten(text: str, limit: int) -> str:
    """The text with its middle left out if it is longer than `limit` characters, and fit for UTF-8."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > limit:
        head = limit // 4
        tail = limit - head - 64
        text = f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"
    return text


def _is_end(link: Origin) -> bool:
    return link.following is None and not link.members


def _nearest(root: BaseException) -> Iterator[BaseException]:
    """`root` and all that it refers to, the nearest first."""
    seen = {id(root)}
    waiting = deque([root])
    while waiting:
        exception = waiting.popleft()
        yield exception
        cause, context = get_plainly(exception, "__cause__"), get_plainly(exception, "__context__")
        for other in (cause, context, *members(exception), *(other for _, other in held(exception))):
            if other is not None and id(other) not in seen and type(other) is not RemoteTraceback:
                seen.add(id(other))
                waiting.append(other)


def _trim(whole: TracebackException) -> None:
    """Have every traceback begin in the user's code, and shorten texts that would take seconds to format."""
    seen: set[int] = set()
    waiting: list[TracebackException | None] = [whole]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        _shorten_texts(part)
        own = itertools.takewhile(_is_own, (frame.filename for frame in part.stack))
        del part.stack[: sum(1 for _ in own)]
        waiting += [part.__cause__, part.__context__, *(part.exceptions or ())]


def _shorten_texts(part: TracebackException) -> None:
    text = getattr(part, "_str", None)
    if type(text) is str and len(text) > MAX_MESSAGE:
        vars(part)["_str"] = shorten(text, MAX_MESSAGE)
    notes = getattr(part, "__notes__", None)
    if type(notes) is list:
        part.__notes__ = [shorten(note, MAX_NOTE) if type(note) is str else note for note in notes[:MAX_LINKS]]


def _is_own(file: str) -> bool:
    return (file.startswith(_PACKAGE) and not file.startswith(_TESTING)) or file.endswith(_POOL)
