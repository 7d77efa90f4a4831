"""The values of one exception: what of them travels, and what stays behind at the worker."""

from __future__ import annotations

from typing import Any, Final

from atasks.codecs import objects
from atasks.codecs.base import Codec, ends_here
from atasks.codecs.culprits import brief
from atasks.failures.tracebacks import MAX_NOTE, Origin, shorten
from atasks.failures.weight import weight

__all__ = ["Kind", "left_behind", "values_of", "with_values"]

MAX_NAMED = 10
"""Parts that a note names of those that could not travel."""


class Kind:
    """The kinds of values that a node can have."""

    DESCRIBED: Final = 0
    """None: the node only describes the exception, which arrives as a `RemoteError`."""
    STATE: Final = 1
    """`[args, attributes]`, or `[args, attributes, class]` if the class travels by value. The args of a group are
    its message."""
    OBJECT: Final = 2
    """The exception itself: its class says how it is pickled."""


async def values_of(link: Origin, codec: Codec, most: int | None, left: list[str]) -> tuple[int, bytes]:
    """The kind and the values of a node; raises what the codec raises. Adds the names of what stays behind to
    `left`."""
    exc = link.exception
    cls = type(exc)
    if not objects.is_rebuildable(cls):
        return Kind.DESCRIBED, b""
    if issubclass(cls, BaseExceptionGroup):
        args = [vars(BaseExceptionGroup)["message"].__get__(exc)]
    else:
        args = list(objects.get_plainly(exc, "args"))
    attributes = objects.state(exc)
    heavy = {} if most is None or codec.compresses else _heavy(args, attributes, most)
    own = codec.carries_types and not issubclass(cls, BaseExceptionGroup) and objects.pickles_itself(cls)
    if own and not heavy:
        content = await _own(exc, codec)
        if content is not None and (most is None or len(content) <= most):
            return Kind.OBJECT, content
    for place, size in heavy.items():
        left.append(f"{_shown([place])} (about {size} bytes)")
        _take_away(args, attributes, place)
    link.held = [pair for pair in link.held if pair[0][0] not in heavy]
    args, attributes = with_values(args, attributes, [(path, None) for path, _ in link.held])
    for path, number in link.held:
        if number is None:
            left.append(f"{_shown(path)} (one exception too many, or a circle)")
    if left:
        _speak(exc, args, attributes)
    by_value: list[Any] = []
    if codec.name_exception(cls) is None:
        if not codec.carries_types:
            return Kind.DESCRIBED, b""
        by_value.append(cls)
    try:
        content = await _encoded([args, attributes, *by_value], codec)
        if most is None or len(content) <= most:
            return Kind.STATE, content
    except BaseException as error:
        if ends_here(error):
            raise
    gone = await _leave_behind(args, attributes, codec, most, left)
    link.held = [pair for pair in link.held if pair[0][0] not in gone]
    _speak(exc, args, attributes)
    return Kind.STATE, await _encoded([args, attributes, *by_value], codec)


def _speak(exc: BaseException, args: list[Any], attributes: dict[str, Any]) -> None:
    """Put texts in the places of attributes that stay behind, if the text of the exception needs them: without a
    text it would lose its class."""
    if issubclass(type(exc), BaseExceptionGroup):
        return
    probe = objects.bare(type(exc))
    objects.set_plainly(probe, "args", tuple(args))
    objects.restore(probe, attributes)
    if not objects.works(probe):
        for name, value in objects.state(exc).items():
            attributes.setdefault(name, _placeholder(value))


def _heavy(args: list[Any], attributes: dict[str, Any], most: int) -> dict[int | str, int]:
    """The places of what is larger than `most` bytes by itself, with its size."""
    places: list[tuple[int | str, Any]] = [*enumerate(args), *attributes.items()]
    return {place: size for place, value in places if (size := weight(value)) > most}


async def _own(exc: BaseException, codec: Codec) -> bytes | None:
    """Pickle the exception in its class's own way; None if that does not work, or loses something."""
    try:
        content = await _encoded(exc, codec)
        copy = await codec.decode(content)
        kept = objects.is_faithful(exc, copy) or (type(copy) is type(exc) and not objects.is_bare(type(exc)))
        return content if kept else None
    except BaseException as error:
        if ends_here(error):
            raise
        return None


async def _leave_behind(
    args: list[Any], attributes: dict[str, Any], codec: Codec, most: int | None, left: list[str]
) -> set[int | str]:
    """Take away what cannot be encoded, and the largest parts of what would have more than `most` bytes.

    Returns where they were.
    """
    gone: set[int | str] = set()
    sizes: list[tuple[int, int | str]] = []
    places: list[tuple[int | str, Any]] = [*enumerate(args), *attributes.items()]
    for place, value in places:
        try:
            named = {place: value} if isinstance(place, str) else value  # a codec may not take the name
            sizes.append((len(await _encoded(named, codec)), place))
        except BaseException as error:
            if ends_here(error):
                raise
            left.append(f"{_shown([place])} ({brief(error)})")
            _take_away(args, attributes, place)
            gone.add(place)
    total = sum(size for size, _ in sizes)
    for size, place in sorted(sizes, key=lambda pair: -pair[0]):
        if most is None or total <= most // 2:
            break
        total -= size
        left.append(f"{_shown([place])} ({size} bytes)")
        _take_away(args, attributes, place)
        gone.add(place)
    return gone


def _take_away(args: list[Any], attributes: dict[str, Any], place: int | str) -> None:
    if isinstance(place, str):
        del attributes[place]
        return
    args[place] = _placeholder(args[place])


def _placeholder(value: Any) -> str:
    """The text that stands in the place of what stays behind."""
    module, qualname = objects.class_name(type(value))
    return shorten(value, MAX_NOTE) if type(value) is str else f"<{module}.{qualname}, left behind>"


def with_values(
    args: list[Any], attributes: dict[str, Any], places: list[tuple[objects.Path, Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """Args and attributes with other values at these places."""
    if not places:
        return args, attributes
    in_args = [place for place in places if isinstance(place[0][0], int)]
    in_attributes = [place for place in places if isinstance(place[0][0], str)]
    return objects.put(args, in_args), objects.put(attributes, in_attributes)


def left_behind(left: list[str]) -> str:
    """A note that names what stays behind."""
    more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
    return f"atasks: left behind at the worker: {', '.join(left[:MAX_NAMED])}{more}"


def _shown(path: objects.Path) -> str:
    place, *within = path
    text = f"args[{place}]" if isinstance(place, int) else place
    return text + "".join(f"[{position}]" for position in within)


async def _encoded(value: Any, codec: Codec) -> bytes:
    return bytes(memoryview(await codec.encode(value)))  # a TypeError if it gives anything but bytes
