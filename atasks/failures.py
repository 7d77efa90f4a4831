"""Exceptions to bytes at the worker, and back at the caller.

A failure is a list of nodes, one for each exception of the chain or of the tree of groups, each one after those
that it refers to; the last one is what was raised. A node holds how to find the class, the values in the codec's
bytes, and what a `RemoteError` says in its place where it cannot be rebuilt. Each has its values to itself, so
that one that the caller cannot decode costs the others nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from atasks import anatomy
from atasks.codecs.base import Codec
from atasks.errors import RemoteError, RemoteTraceback
from atasks.tracebacks import MAX_TEXT, Link, links, shorten, texts

__all__ = ["decode_failure", "encode_failure"]

MAX_NAME = 1024
MAX_MESSAGE = 8192
MAX_NOTE = 4096
MAX_NOTES = 32

_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Note = Annotated[str, Meta(max_length=MAX_NOTE)]
_Index = Annotated[int, Meta(ge=0, le=1024)]


class Kind:
    """What the values of a node are."""

    DESCRIBED: Final = 0
    """None: the node only describes the exception, which arrives as a `RemoteError`."""
    STATE: Final = 1
    """`[args, attributes]`, or `[args, attributes, class]` if the class travels by value. The args of a group are
    its message."""
    OBJECT: Final = 2
    """The exception itself: its class says how it is pickled."""


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


class Failure(Struct, array_like=True, gc=False):
    """What was raised is the last node. References lead to earlier nodes."""

    nodes: Annotated[list[Node], Meta(min_length=1, max_length=1024)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Failure)


async def encode_failure(exc: BaseException, codec: Codec, *, hop: str) -> bytes:
    """What an atask raised, as bytes for `decode_failure` at the caller, who sees `hop` as its last note.

    The exception itself is left as it is, and nothing keeps it or its frames. Raises nothing but the cancellation
    of the current task: what cannot be encoded is described, and arrives as a `RemoteError`.
    """
    try:
        return _encoder.encode(Failure(await _nodes(exc, codec, hop)))
    except (Exception, SystemExit):  # a user's class may do anything at all
        node = _described(exc)
        node.notes.append(_note(hop))
        return _encoder.encode(Failure([node]))


async def decode_failure(content: bytes, codec: Codec) -> BaseException:
    """The exception that `encode_failure` was given, rebuilt without running its `__init__`.

    It has the same type, args and attributes, and so have its causes and contexts and the members of a group; one
    that cannot be rebuilt here is a `RemoteError` in its place. The worker's traceback is a `RemoteTraceback`, the
    `__cause__` of the last exception in the chain, and of each leaf in a group.

    It is an `Exception` or a `BaseExceptionGroup`, never a `StopIteration`. Raises nothing but the cancellation of
    the current task.
    """
    try:
        nodes = _decoder.decode(content).nodes
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return RemoteError("unknown", f"an exception whose description cannot be read here: {error}")
    built: list[BaseException] = []
    tracebacks: list[str] = []
    for node in nodes:
        # Earlier nodes only, so that nothing that was sent can make a circle here.
        cause, context, *members = [
            number if number is not None and number < len(built) else None
            for number in (node.cause, node.context, *node.members)
        ]
        following = cause if cause is not None or node.suppress else context
        nearest = next((number for number in (following, *members) if number is not None), None)
        tracebacks.append(node.traceback or (tracebacks[nearest] if nearest is not None else ""))
        group = [built[number] for number in members if number is not None]
        exc = await _rebuild(node, group, codec, tracebacks[-1])
        _link(
            exc,
            node,
            cause=built[cause] if cause is not None else None,
            context=built[context] if context is not None else None,
        )
        built.append(exc)
    root = built[-1]
    return _not_stop_iteration(root) if isinstance(root, StopIteration) else root


async def _nodes(exc: BaseException, codec: Codec, hop: str) -> list[Node]:
    chain = links(_not_stop_iteration(exc) if isinstance(exc, StopIteration) else exc)
    nodes = [_left_out(link) for link in chain if link.left_out]
    first = len(nodes)
    left_out = iter(range(first))
    for link in chain:
        node = await _node(link.exception, codec)
        node.cause = link.cause if link.cause is None else first + link.cause
        node.context = link.context if link.context is None else first + link.context
        node.suppress = link.suppress
        node.members = [first + number for _, number in link.members]
        if link.left_out:
            node.members.append(next(left_out))
        nodes.append(node)
    for number, text in texts(chain).items():
        nodes[first + number].traceback = text
    nodes[-1].notes.append(_note(hop))
    return nodes


async def _node(exc: BaseException, codec: Codec) -> Node:
    try:
        kind, values = await _values(exc, codec)
    except (Exception, SystemExit):  # whatever the codec or the values raise: it cannot be sent
        kind, values = Kind.DESCRIBED, b""
    node = _described(exc)
    node.kind, node.values = kind, values
    names = anatomy.importable_name(type(exc))
    if names is not None and max(map(len, names)) <= MAX_NAME:
        node.module, node.qualname = names
    return node


async def _values(exc: BaseException, codec: Codec) -> tuple[int, bytes]:
    """The kind and the values of a node; raises what the codec raises."""
    cls = type(exc)
    if not anatomy.is_rebuildable(cls):
        return Kind.DESCRIBED, b""
    if codec.carries_types and not isinstance(exc, BaseExceptionGroup) and anatomy.pickles_itself(cls):
        try:
            content = await codec.encode(exc)
            if type(await codec.decode(content)) is cls:
                return Kind.OBJECT, bytes(memoryview(content))
        except (Exception, SystemExit):  # its own way does not work: take it apart
            pass
    args = [exc.message] if isinstance(exc, BaseExceptionGroup) else list(anatomy.get_plainly(exc, "args"))
    values: list[Any] = [args, anatomy.state(exc)]
    if anatomy.importable_name(cls) is None:
        if not codec.carries_types:
            return Kind.DESCRIBED, b""
        values.append(cls)
    return Kind.STATE, bytes(memoryview(await codec.encode(values)))  # a TypeError if it gives anything but bytes


async def _rebuild(node: Node, group: list[BaseException], codec: Codec, traceback: str) -> BaseException:
    try:
        exc = await _instance(node, group, codec)
    except (Exception, SystemExit):  # importing runs the user's modules, decoding their classes
        exc = None
    return exc if exc is not None else RemoteError(f"{node.module}.{node.qualname}", node.message, traceback)


async def _instance(node: Node, group: list[BaseException], codec: Codec) -> BaseException | None:
    """The exception without notes and links. None, or any exception raised: it cannot be rebuilt here."""
    if node.kind == Kind.DESCRIBED:
        return None
    values = await codec.decode(node.values)
    if node.kind == Kind.OBJECT:
        return values if anatomy.is_rebuildable(type(values)) else None
    args, attributes, *by_value = values
    cls = by_value[0] if by_value else anatomy.find(node.module, node.qualname)
    if not anatomy.is_rebuildable(cls):
        return None
    if issubclass(cls, BaseExceptionGroup):
        exc = anatomy.bare(cls, args[0], group)
    else:
        exc = anatomy.bare(cls)
        anatomy.set_plainly(exc, "args", tuple(args))
    anatomy.restore(exc, attributes)
    return exc


def _link(exc: BaseException, node: Node, cause: BaseException | None, context: BaseException | None) -> None:
    """Give an exception its notes, and those that it refers to."""
    if node.notes:
        anatomy.get_plainly(exc, "__dict__")["__notes__"] = node.notes
    if node.traceback and cause is None:
        cause = RemoteTraceback(node.traceback)
    anatomy.set_plainly(exc, "__cause__", cause)
    anatomy.set_plainly(exc, "__context__", context)
    anatomy.set_plainly(exc, "__suppress_context__", node.suppress)


def _not_stop_iteration(exc: StopIteration) -> RuntimeError:
    """What local code would get: a StopIteration cannot leave a coroutine."""
    error = RuntimeError("coroutine raised StopIteration").with_traceback(exc.__traceback__)
    error.__cause__ = error.__context__ = exc
    return error


def _described(exc: BaseException) -> Node:
    module, qualname = anatomy.class_name(type(exc))
    return Node(
        Kind.DESCRIBED,
        shorten(module, MAX_NAME),
        shorten(qualname, MAX_NAME),
        shorten(_str(exc), MAX_MESSAGE),
        notes=_notes(exc),
    )


def _left_out(link: Link) -> Node:
    module, qualname = anatomy.class_name(type(link.exception))
    message = f"{link.left_out} more exceptions of this group did not travel with the others"
    return Node(Kind.DESCRIBED, shorten(module, MAX_NAME), shorten(qualname, MAX_NAME), message)


def _notes(exc: BaseException) -> list[str]:
    """The notes, leaving room for that of this hop; the first and the latest ones if they are too many."""
    found = anatomy.get_plainly(exc, "__dict__").get("__notes__", ())
    notes: list[Any] = list(found) if type(found) in (list, tuple) else [found]
    half = (MAX_NOTES - 2) // 2
    if len(notes) > 2 * half:
        notes[half:-half] = [f"[... {len(notes) - 2 * half} notes left out ...]"]
    return [_note(note) for note in notes]


def _note(note: object) -> str:
    return shorten(_str(note), MAX_NOTE)


def _str(value: object) -> str:
    try:
        return "".join([str(value)])  # str() may give an instance of a subclass, with methods of its own
    except BaseException:  # no await in here: it can only be the object's own
        return f"<str() of this {anatomy.class_name(type(value))[1]} failed>"
