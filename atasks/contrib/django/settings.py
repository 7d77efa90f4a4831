"""The setting ATASKS: its keys, their defaults, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.conf import settings
from django.utils.module_loading import import_string

from atasks import Codec
from atasks.errors import AtasksError, closest
from atasks.options import validate_count, validate_queue
from atasks.schemes import check_options

__all__ = ["CODECS", "Namespace", "Problem", "read"]

KEYS: Final = ("URL", "PREFIX", "QUEUE", "CODEC", "CONCURRENCY", "THREADS", "RECORDS", "OPTIONS")
CODECS: Final = {
    "cloudpickle": "atasks.CloudpickleCodec",
    "pickle": "atasks.PickleCodec",
    "msgpack": "atasks.MsgpackCodec",
}
"""Short names of codecs. Others are named by their path."""


@dataclass(frozen=True)
class Problem:
    """A fault of the setting, for the system checks."""

    number: int
    message: str
    hint: str


@dataclass(frozen=True)
class Namespace:
    """One namespace of ATASKS."""

    name: str
    url: str | Sequence[str] = "loopback:"
    codec: str | None = None
    """The path of the codec's class; None: the default codec."""
    concurrency: int | None = None
    """Calls that one worker process runs at once; None: 100."""
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The other options of `atasks.connect` and `atasks.serve`."""
    problems: tuple[Problem, ...] = ()

    @property
    def scheme(self) -> str:
        """The scheme of the URL, or of the first of several."""
        first = self.url if isinstance(self.url, str) else self.url[0]
        return first.partition(":")[0].lower()

    @property
    def sizes(self) -> dict[str, int]:
        """The options of workers."""
        given = {"concurrency": self.concurrency, "threads": self.threads}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def connect_options(self) -> dict[str, Any]:
        """The options of a connection by which this process calls."""
        sizes = {} if self.scheme.startswith("amqp") else self.sizes
        return {**self.options, **sizes}

    def make_codec(self) -> Codec | None:
        """Make the codec, which becomes that of the namespace; None: it has the default one."""
        if self.codec is None:
            return None
        made: Codec = import_string(self.codec)(namespace=self.name)
        return made


def read() -> list[Namespace]:
    """Read the setting, and note what is wrong with it. Raises nothing."""
    given: object = getattr(settings, "ATASKS", None)
    if given is None:
        given = {"default": {}}
    if not isinstance(given, Mapping):
        problem = Problem(1, f"ATASKS is a dictionary, not {type(given).__name__}", 'ATASKS = {"default": {...}}')
        return [Namespace("default", problems=(problem,))]
    return [_read(name, item) for name, item in given.items()]


def _read(name: object, given: object) -> Namespace:
    if not isinstance(name, str) or not isinstance(given, Mapping):
        hint = 'ATASKS = {"default": {"URL": "amqp://guest:guest@localhost/"}}'
        problem = Problem(1, f"ATASKS[{name!r}]: a dictionary for each namespace, by its name", hint)
        return Namespace(str(name), problems=(problem,))
    problems = list(_problems(name, given))
    if problems:
        return Namespace(name, problems=tuple(problems))
    found = _namespace(name, given)
    try:
        check_options(found.url, found.connect_options)
    except (AtasksError, TypeError, ValueError) as error:
        problems.append(Problem(3, f"ATASKS[{name!r}]: {error}", "URL and OPTIONS are those of atasks.connect"))
    return Namespace(name, problems=tuple(problems)) if problems else found


def _namespace(name: str, given: Mapping[str, Any]) -> Namespace:
    options = dict(given.get("OPTIONS") or {})
    for key, option in _options_of(given):
        options[option] = given[key]
    codec = given.get("CODEC")
    url = given.get("URL") or os.environ.get("ATASKS_URL") or "loopback:"
    path = None if codec is None else CODECS.get(codec, codec)
    return Namespace(name, url, path, given.get("CONCURRENCY"), given.get("THREADS"), options)


def _options_of(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The keys that are given and stand for options of `atasks.connect`, with these options."""
    records = "records" if isinstance(given.get("RECORDS"), str) else "keep_runs"
    pairs = (("PREFIX", "prefix"), ("QUEUE", "queue"), ("RECORDS", records))
    return [(key, option) for key, option in pairs if given.get(key) is not None]


def _problems(name: str, given: Mapping[Any, Any]) -> Iterator[Problem]:
    where = f"ATASKS[{name!r}]"
    for key in given:
        if key not in KEYS:
            near = closest(str(key).upper(), KEYS, limit=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(KEYS)}."
            yield Problem(2, f"{where} has the unknown key {key!r}", hint)
    url = given.get("URL")
    if url is not None and not isinstance(url, str) and not _is_list_of_strings(url):
        yield Problem(2, f"{where}['URL']: a URL is a string, not {type(url).__name__}", "Several are a list.")
    tests: list[tuple[str, Callable[[Any], object], str]] = [
        ("CONCURRENCY", lambda value: validate_count("CONCURRENCY", value), "a number of calls"),
        ("THREADS", lambda value: validate_count("THREADS", value), "a number of threads"),
        ("QUEUE", lambda value: validate_queue(value, "QUEUE"), "the name of a work queue"),
        ("PREFIX", lambda value: validate_queue(value, "PREFIX"), "the beginning of the names of queues"),
        ("RECORDS", _check_records, "for how many seconds results are kept, or the URL of a database for them"),
        ("OPTIONS", _check_mapping, "a dictionary of options of atasks.connect"),
        ("CODEC", _check_codec, f"{', '.join(CODECS)}, or the path of a class of codecs"),
    ]
    try:
        validate_queue(name, "the name of a namespace")
    except (TypeError, ValueError) as error:
        yield Problem(2, f"{where}: {error}", "")
    for key, test, meaning in tests:
        try:
            if given.get(key) is not None:
                test(given[key])
        except (TypeError, ValueError, ImportError) as error:
            yield Problem(2, f"{where}[{key!r}]: {error}", f"{key} is {meaning}.")
    for key, option in _options_of(given):
        options = given.get("OPTIONS")
        if isinstance(options, Mapping) and option in options:
            yield Problem(2, f"{where} has {key!r}, and {option!r} in OPTIONS", "Leave one of them out.")


def _is_list_of_strings(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, str) for item in value)


def _check_records(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"a number of seconds or a URL, not {value!r}")
    if isinstance(value, str) and "://" not in value:
        raise ValueError(f"{value!r} is no URL")


def _check_mapping(value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"a dictionary, not {type(value).__name__}")


def _check_codec(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"a string, not {type(value).__name__}")
    if value in CODECS:
        return
    if "." not in value:
        raise ValueError(f"there is no codec {value!r}")
    if not callable(import_string(value)):
        raise TypeError(f"{value} cannot be called")
