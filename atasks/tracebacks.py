"""Chains of exceptions, and the text of their tracebacks as a worker saw them."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from traceback import TracebackException, format_tb

from atasks.errors import RemoteTraceback

__all__ = ["Link", "links", "shorten", "texts"]

MAX_LINKS = 100
"""Exceptions of one chain, or of one tree of groups, that travel."""
MAX_FORMATTED = 1000
"""Exceptions in one traceback: past it only the first one's own frames are formatted."""
MAX_TEXT = 65_536
"""Characters of one traceback."""

_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_TESTING = os.path.join(_PACKAGE, "testing", "")  # its cases are atasks like a user's
_POOL = os.path.join("concurrent", "futures", "thread.py")


class Link:
    """An exception, and where in the list of links the ones are that it refers to."""

    __slots__ = ("cause", "context", "exception", "left_out", "members", "suppress")

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception
        self.cause: int | None = None
        self.context: int | None = None
        self.suppress = bool(exception.__suppress_context__)
        self.members: list[tuple[int, int]] = []
        """Of a group: position in `exceptions`, and index."""
        self.left_out = 0
        """How many members of the group are over the limit."""

    @property
    def following(self) -> int | None:
        """The one that a traceback shows before this one."""
        if self.cause is not None or self.suppress:
            return self.cause
        return self.context


def links(root: BaseException) -> list[Link]:
    """The exceptions that `root` refers to and `root` itself, each one after those that it refers to itself.

    At most `MAX_LINKS`, the nearest ones. What closes a circle is left out, and so are the `RemoteTraceback`s: the
    text of this hop's traceback contains theirs.
    """
    near = {id(exception) for exception in itertools.islice(_nearest(root), MAX_LINKS)}
    found: list[Link] = []
    numbers: dict[int, int | None] = {}

    def visit(exception: BaseException | None) -> int | None:
        key = id(exception)
        if exception is None or key not in near:
            return None
        if key in numbers:
            return numbers[key]  # None while it is being visited: a circle
        numbers[key] = None
        link = Link(exception)
        link.cause = visit(exception.__cause__)
        link.context = visit(exception.__context__)
        for position, member in enumerate(_members(exception)):
            number = visit(member)
            if number is None:
                link.left_out += 1
            else:
                link.members.append((position, number))
        found.append(link)
        numbers[key] = len(found) - 1
        return numbers[key]

    visit(root)
    return found


def texts(chain: list[Link]) -> dict[int, str]:
    """The traceback as text for each exception at the end of the chain, by index.

    In a tree of groups every leaf has its own: the whole traceback, less the other members of its groups.
    The frames of atasks that lead to the user's code are left out.
    """
    root = chain[-1].exception
    if sum(1 for _ in itertools.islice(_nearest(root), MAX_FORMATTED + 1)) > MAX_FORMATTED:
        text = shorten("".join(format_tb(root.__traceback__)), MAX_TEXT)
        return {index: text for index, link in enumerate(chain) if _is_end(link)}
    whole = TracebackException.from_exception(root)
    _drop_own_frames(whole)
    limit = max(2048, MAX_TEXT // max(1, sum(map(_is_end, chain))))
    found: dict[int, str] = {}
    seen: set[int] = set()

    def visit(index: int, part: TracebackException | None) -> None:
        if index in seen:
            return
        seen.add(index)
        link = chain[index]
        if link.following is not None:
            visit(link.following, part and (part.__cause__ if link.cause is not None else part.__context__))
        everyone = part.exceptions if part is not None else None
        for position, member in link.members:
            if part is None or everyone is None:  # the traceback module leaves out what it has shown elsewhere
                visit(member, None)
            else:
                part.exceptions = [everyone[position]]
                visit(member, everyone[position])
                part.exceptions = everyone
        if _is_end(link):
            found[index] = shorten("".join(whole.format()), limit)

    visit(len(chain) - 1, whole)
    return found


def shorten(text: str, limit: int) -> str:
    """The text with its middle left out if it is longer than `limit` characters, and fit for UTF-8."""
    if len(text) > limit:
        head = limit // 4
        tail = limit - head - 64
        text = f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _is_end(link: Link) -> bool:
    return link.following is None and not link.members


def _nearest(root: BaseException) -> Iterator[BaseException]:
    """`root` and all that it refers to, the nearest first."""
    seen = {id(root)}
    waiting = deque([root])
    while waiting:
        exception = waiting.popleft()
        yield exception
        for other in (exception.__cause__, exception.__context__, *_members(exception)):
            if other is not None and id(other) not in seen and not isinstance(other, RemoteTraceback):
                seen.add(id(other))
                waiting.append(other)


def _members(exception: BaseException) -> tuple[BaseException, ...]:
    return exception.exceptions if isinstance(exception, BaseExceptionGroup) else ()


def _drop_own_frames(whole: TracebackException) -> None:
    """Have every traceback begin in the user's code."""
    seen: set[int] = set()
    waiting: list[TracebackException | None] = [whole]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        own = itertools.takewhile(_is_own, (frame.filename for frame in part.stack))
        del part.stack[: sum(1 for _ in own)]
        waiting += [part.__cause__, part.__context__, *(part.exceptions or ())]


def _is_own(file: str) -> bool:
    return (file.startswith(_PACKAGE) and not file.startswith(_TESTING)) or file.endswith(_POOL)
