"""Exceptions to bytes at the worker, and back at the caller.

A failure is a list of nodes, one for each exception of the chain or of the tree of groups, each one after those
that it refers to; the last one is what was raised. A node holds how to find the class, the values in the codec's
bytes, and what a `RemoteError` says in its place where it cannot be rebuilt. Each has its values to itself, so
that one that the caller cannot decode costs the others nothing.
"""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

import reprlib
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from atasks.codecs import objects, sizes
from atasks.codecs.base import Codec, ends_here
from atasks.codecs.objects import MAX_NAME, MAX_PATH
from atasks.errors import RemoteError, RemoteTraceback
from atasks.failures.tracebacks import MAX_MESSAGE, MAX_NOTE, MAX_TEXT, Origin, frames, links, shorten, texts
from atasks.failures.values import Kind, left_behind, values_of, with_values
from atasks.failures.weight import weight

__all__ = ["decode_failure", "encode_failure", "failure_text", "raised_type"]

MAX_NOTES = 32
LARGE = 2**20
"""Bytes of values from which on `str()` of an exception is not asked for: it may take seconds."""
MAX_REPEATED = 16 * 2**20
"""Characters that the exceptions of a failure may show more than there are, all together, because they refer to
others more than once: `str()` is asked of each."""
SHOWN = 1024
"""Characters that one exception shows besides its own texts and values."""

_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Note = Annotated[str, Meta(max_length=MAX_NOTE)]
_Path = Annotated[list[int | _Name], Meta(min_length=1, max_length=MAX_PATH)]
_Index = Annotated[int, Meta(ge=0, le=1024)]


class Node(Struct, array_like=True, gc=False):
    """One exception. Texts are bounded in characters."""

    kind: Annotated[int, Meta(ge=0, le=2)]
    module: _Name
    qualname: _Name
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)]
    values: bytes = b""
    notes: Annotated[list[_Note], Meta(max_length=MAX_NOTES)] = []
    cause: _Index | None = None
    context: _Index | None = None
    suppress: bool = False
    members: Annotated[list[_Index], Meta(max_length=1024)] = []
    traceback: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    """For the last exception of the chain, and each leaf in a tree of groups: what its `RemoteTraceback` says."""
    held: Annotated[list[tuple[_Path, _Index]], Meta(max_length=1024)] = []
    """Exceptions in `args` and attributes, where the values hold None: where, and which node."""


class Failure(Struct, array_like=True, gc=False):
    """An exception and the chain behind it, as nodes. The last node is the exception that was raised, and
    references lead to earlier nodes."""

    nodes: Annotated[list[Node], Meta(min_length=1, max_length=1024)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Failure)


def _read(content: bytes) -> Failure:
    """Return the description. Another program may have sent it in pieces."""
    return _decoder.decode(bytes(content))


async def encode_failure(exc: BaseException, codec: Codec, *, hop: str, limit: int | None = None) -> bytes:
    """Encode the exception of an atask, for `decode_failure` at the caller, who sees `hop` as its last note.

    At most `limit` bytes, if that is possible at all: beyond it, the largest values stay behind, and then all but
    a short message and the end of the traceback. What cannot be encoded stays behind too, and a note names it.

    The exception itself is left as it is, and nothing keeps it or its frames. Raises nothing but the cancellation
    of the current task: an exception of which nothing can be encoded is described, and arrives as a `RemoteError`.
    """
    try:
        if limit is None or codec.compresses or not _is_heavy(exc, limit):
            content = _encoder.encode(Failure(await _nodes(exc, codec, hop)))
            if limit is None or len(content) <= limit:
                return content
        content = _encoder.encode(Failure(await _nodes(exc, codec, hop, most=limit // 4)))
        if len(content) <= limit:
            return content
    except BaseException as error:  # a method of a user's class may raise anything
        if ends_here(error):
            raise
    for length in (MAX_MESSAGE, 2048, 512, 128):
        node = _described(exc, large=True)
        node.message = shorten(node.message, length)
        node.notes = [shorten(hop, length)]
        node.traceback = shorten(frames(exc), 2 * length)
        content = _encoder.encode(Failure([node]))
        if limit is None or len(content) <= limit:
            break
    return content


def _is_heavy(exc: BaseException, limit: int) -> bool:
    """Return True if the exceptions are too large by far, so that nobody need wait for their encoding."""
    return any(
        weight(value) > limit
        for link in links(exc)
        for value in (*objects.get_plainly(link.exception, "args"), *objects.state(link.exception).values())
    )


async def decode_failure(content: bytes, codec: Codec) -> BaseException:
    """The exception that `encode_failure` was given, rebuilt without running its `__init__`.

    It has the same type, args and attributes, and so have its causes and contexts, the members of a group and the
    exceptions among its args and attributes; one that cannot be rebuilt, or whose `str()` or `repr()` does not
    work here, is a `RemoteError` in its place. The worker's traceback is a `RemoteTraceback`, the `__cause__` of
    the last one in the chain, and of each leaf in a group. So is one from which on they would show far more than
    has arrived, for each exception is shown as often as others refer to it.

    With a codec that carries no classes nothing is imported, and only subclasses of `Exception` are made.

    It is an `Exception` or a `BaseExceptionGroup`, never a `StopIteration`. Raises nothing but the cancellation of
    the current task.
    """
    try:
        nodes = _read(content).nodes
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return RemoteError("unknown", f"an exception whose description cannot be read here: {error}")
    with sizes.together():
        root = await _root(nodes, codec, most=MAX_REPEATED + len(content))
    return _not_stop_iteration(root) if issubclass(type(root), StopIteration) else root


async def _root(nodes: list[Node], codec: Codec, most: int) -> BaseException:
    """The exception that the last node describes, with those that it refers to: they show at most so many
    characters again."""
    built: list[BaseException] = []
    tracebacks: list[str] = []
    shown: list[int] = []
    repeated = 0
    for node in nodes:
        # Only earlier nodes are linked, so no sender can make a cycle here.
        cause, context, *members = [
            number if number is not None and number < len(built) else None
            for number in (node.cause, node.context, *node.members)
        ]
        following = cause if cause is not None or node.suppress else context
        nearest = next((number for number in (following, *members) if number is not None), None)
        tracebacks.append(node.traceback or (tracebacks[nearest] if nearest is not None else ""))
        texts = (node.message, node.traceback, node.values, *node.notes)
        again = sum(shown[number] for number in _shown_again(node, len(built)))
        if repeated + again <= most:
            exc = await _rebuild(node, built, codec, tracebacks[-1])
        else:
            exc = _remote(node, tracebacks[-1])
            again = 0
        repeated += again
        shown.append(SHOWN + sum(map(len, texts)) + again)
        _link(
            exc,
            node,
            cause=built[cause] if cause is not None else None,
            context=built[context] if context is not None else None,
        )
        built.append(exc)
    return built[-1]


def describe_failure(content: bytes) -> bytes:
    """Reduce what `encode_failure` made to the exception that was raised last, without its values: it arrives as a
    `RemoteError`.

    Needs no codec. Raises one of msgspec's errors if `content` does not come from `encode_failure`.
    """
    node = _read(content).nodes[-1]
    described = Node(
        Kind.DESCRIBED, node.module, node.qualname, node.message, notes=node.notes, traceback=node.traceback
    )
    return _encoder.encode(Failure([described]))


def raised_type(content: bytes) -> str:
    """The name of the class that was raised, of what `encode_failure` made. It needs no codec."""
    try:
        root = _read(content).nodes[-1]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "an exception whose description cannot be read"
    return root.qualname if root.module == "builtins" else f"{root.module}.{root.qualname}"


def failure_text(content: bytes) -> str:
    """Return what `encode_failure` made as text for a log: the traceback, and the notes that it lacks. Needs no
    codec."""
    try:
        nodes = _read(content).nodes
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "an exception whose description cannot be read"
    root = nodes[-1]
    tracebacks = [node.traceback.rstrip() for node in nodes if node.traceback]
    raised = f"{root.module}.{root.qualname}: {root.message}"
    text = "\n".join(tracebacks or [raised])
    shown = {line.strip(" |") for line in text.splitlines()}  # a group's have a frame around them
    notes = [note for note in root.notes if any(line.strip(" |") not in shown for line in note.splitlines())]
    return "\n".join([text, *notes])


async def _nodes(exc: BaseException, codec: Codec, hop: str, most: int | None = None) -> list[Node]:
    """The nodes, whose values have at most so many bytes together."""
    chain = links(_not_stop_iteration(exc) if issubclass(type(exc), StopIteration) else exc)
    nodes = [_left_out(link) for link in chain if link.left_out]
    first = len(nodes)
    left_out = iter(range(first))
    share = most if most is None else most // len(chain)
    for link in chain:
        node = await _node(link, codec, share)
        node.cause = link.cause if link.cause is None else first + link.cause
        node.context = link.context if link.context is None else first + link.context
        node.suppress = link.suppress
        node.members = [first + number for _, number in link.members]
        if link.left_out:
            node.members.append(next(left_out))
        if node.kind == Kind.STATE:
            node.held = [(path, first + number) for path, number in link.held if number is not None]
        nodes.append(node)
    large = most is not None or sum(len(node.values) for node in nodes) > LARGE
    for number, text in texts(chain, large=large).items():
        nodes[first + number].traceback = text
    nodes[-1].notes.append(_note(hop))
    return nodes


async def _node(link: Origin, codec: Codec, most: int | None) -> Node:
    exc = link.exception
    left: list[str] = []
    try:
        kind, values = await values_of(link, codec, most, left)
    except BaseException as error:  # whatever the codec or the values raise: it cannot be sent
        if ends_here(error):
            raise
        kind, values = Kind.DESCRIBED, b""
    node = _described(exc, large=most is not None or len(values) > LARGE)
    node.kind, node.values = kind, values
    if left and kind == Kind.STATE:
        node.notes.append(_note(left_behind(left)))
    names = codec.name_exception(type(exc))
    if names is not None and max(map(len, names)) <= MAX_NAME:
        node.module, node.qualname = names
    return node


async def _rebuild(node: Node, built: list[BaseException], codec: Codec, traceback: str) -> BaseException:
    exc: BaseException | None = None
    try:
        exc = await _instance(node, built, codec)
        if exc is not None and len(node.values) <= LARGE:
            exc = exc if objects.works(exc) else None
    except BaseException as error:  # importing runs the user's modules, decoding their classes
        if ends_here(error):
            raise
        exc = None
    return exc if exc is not None else _remote(node, traceback)


def _remote(node: Node, traceback: str) -> RemoteError:
    return RemoteError(f"{node.module}.{node.qualname}", node.message, traceback)


def _shown_again(node: Node, count: int) -> Iterator[int]:
    """The numbers of those among the first nodes that are shown wherever this one is, as often as they are."""
    return (number for number in (*node.members, *(number for _, number in node.held)) if number < count)


async def _instance(node: Node, built: list[BaseException], codec: Codec) -> BaseException | None:
    """The exception without notes and links. None, or any exception raised: it cannot be rebuilt here."""
    if node.kind == Kind.DESCRIBED:
        return None
    plain = not codec.carries_types
    values = await codec.decode(node.values)
    if node.kind == Kind.OBJECT:
        return values if not plain and objects.is_rebuildable(type(values)) else None
    args, attributes, *by_value = values
    cls = by_value[0] if by_value and not plain else codec.find_exception(node.module, node.qualname)
    if not objects.is_rebuildable(cls):
        return None
    if plain and not issubclass(cls, Exception) and cls is not BaseExceptionGroup:  # which makes an ExceptionGroup
        return None
    held = [(path, built[number] if number < len(built) else None) for path, number in node.held]
    args, attributes = with_values(list(args), attributes, held)
    if issubclass(cls, BaseExceptionGroup):
        group = [built[number] for number in node.members if number < len(built)]
        exc = objects.bare(cls, args[0], group, plain=plain)
    else:
        exc = objects.bare(cls, plain=plain)
        objects.set_plainly(exc, "args", tuple(args))
    if plain and not objects.suits(exc, attributes):
        return None
    objects.restore(exc, attributes)
    return exc


def _link(exc: BaseException, node: Node, cause: BaseException | None, context: BaseException | None) -> None:
    """Give an exception its notes, and those that it refers to."""
    if node.notes:
        objects.get_plainly(exc, "__dict__")["__notes__"] = node.notes
    if node.traceback and cause is None:
        cause = RemoteTraceback(node.traceback)
    objects.set_plainly(exc, "__cause__", cause)
    objects.set_plainly(exc, "__context__", context)
    objects.set_plainly(exc, "__suppress_context__", node.suppress)


def _not_stop_iteration(exc: BaseException) -> RuntimeError:
    """Return the error that local code would get: a StopIteration cannot leave a coroutine."""
    error = RuntimeError("coroutine raised StopIteration").with_traceback(exc.__traceback__)
    error.__cause__ = error.__context__ = exc
    return error


def _described(exc: BaseException, large: bool = False) -> Node:
    """A node without values. `large`: without asking the exception for its text."""
    module, qualname = objects.class_name(type(exc))
    return Node(
        Kind.DESCRIBED,
        shorten(module, MAX_NAME),
        shorten(qualname, MAX_NAME),
        shorten(_summary(exc) if large else _str(exc), MAX_MESSAGE),
        notes=_notes(exc),
    )


def _left_out(link: Origin) -> Node:
    module, qualname = objects.class_name(type(link.exception))
    message = f"{link.left_out} more exceptions of this group did not travel with the others"
    return Node(Kind.DESCRIBED, shorten(module, MAX_NAME), shorten(qualname, MAX_NAME), message)


def _notes(exc: BaseException) -> list[str]:
    """The notes, leaving room for those of this hop; the first and the latest ones if they are too many."""
    found = objects.get_plainly(exc, "__dict__").get("__notes__", ())
    notes: list[Any] = list(found) if type(found) in (list, tuple) else [found]
    half = (MAX_NOTES - 3) // 2
    if len(notes) > 2 * half:
        notes[half:-half] = [f"[... {len(notes) - 2 * half} notes left out ...]"]
    return [_note(note) for note in notes]


def _note(note: object) -> str:
    return shorten(_str(note), MAX_NOTE)


def _summary(exc: BaseException) -> str:
    """A text in place of `str()`, which may take seconds where values are large."""
    args = objects.get_plainly(exc, "args")
    if args and type(args[0]) is str and (len(args) == 1 or objects.members(exc)):
        return args[0]
    try:
        return reprlib.repr(tuple(arg[:100] if type(arg) in (str, bytes) else arg for arg in args[:10]))
    except BaseException:  # as in _str
        return _failed(type(exc))


def _str(value: object) -> str:
    try:
        return "".join([str(value)])  # str() may return an instance of a subclass of str, with methods of its own
    except BaseException:  # nothing here awaits, so only the object itself can have raised this
        return _failed(type(value))


def _failed(cls: type) -> str:
    return f"<str() of this {objects.class_name(cls)[1]} failed>"
