"""The settings of one run of the command, checked for contradictions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from atasks.errors import InvalidURL
from atasks.options import validate_queue
from atasks.schemes import TRANSPORTS, is_added
from atasks.urls import DATABASE_URL, take_apart
from atasks_cli.exits import CommandError, Exit

__all__ = [
    "AMQP_URL",
    "TRANSPORT_NAMES",
    "Mode",
    "Settings",
    "check_records",
    "parse_options",
    "parse_value",
]

Mode = Literal["loopback", "server", "client"]

AMQP_URL: Final = "amqp://guest:guest@localhost/"
"""The URL for servers and clients where nothing names one: RabbitMQ's own default."""


_NAMES: Final = {scheme: "amqp" if scheme == "amqps" else scheme for scheme in TRANSPORTS}
"""URL scheme -> name of the transport."""
TRANSPORT_NAMES: Final = list(dict.fromkeys(_NAMES.values()))
_DEFAULT_URLS: Final = {"loopback": "loopback:", "amqp": AMQP_URL, "local": "local:"}


class Settings(msgspec.Struct, frozen=True):
    """The module to run, and the transport to run it over. `make` checks the settings."""

    mode: Mode
    url: str
    """The URL to connect to; empty for a transport of the program that was named without one."""
    transport: str
    """The name of a transport, or a class of the program as module:Class."""
    namespace: str
    concurrency: int
    queues: list[str]
    grace: float
    """Seconds that a drain gives to running calls."""
    verbosity: int = 0
    threads: int | None = None
    """For blocking functions; None: as the worker sees fit."""
    processes: int | None = None
    workers: int | None = None
    """Worker processes of the private socket of `local:`; None: as many as there are cores."""
    targets: tuple[str, ...] = ()
    """The modules to load, as they were given."""
    keys: str | None = None
    """The path of the file of keys; None: $ATASKS_KEYS, if it is set."""
    unsealed: str | None = None
    """The treatment of unsealed messages by a server that has keys; None: it refuses them."""
    records: str | None = None
    """The URL of the database of records; None: $ATASKS_RECORDS, if it is set."""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Further options of the transport."""
    nodes: Sequence[str] = ()
    """The URLs of all nodes of the broker, where several are given; `url` is the first one."""
    http: tuple[str, int] | None = None
    """Host and port where a server answers probes; None: nowhere."""

    @classmethod
    def make(
        cls,
        mode: Mode | None,
        *,
        url: str | None = None,
        transport: str | None = None,
        namespace: str = "default",
        concurrency: int | None = None,
        threads: int | None = None,
        processes: int | None = None,
        queues: Iterable[str] = (),
        grace: float | None = None,
        verbosity: int = 0,
        workers: int | None = None,
        targets: Iterable[str] = (),
        keys: str | None = None,
        unsealed: str | None = None,
        records: str | None = None,
        http: str | None = None,
        options: Mapping[str, Any] | None = None,
        nodes: Sequence[str] = (),
    ) -> Settings:
        """None stands for what was not said. Raises a CommandError for what does not go together."""
        queues = list(dict.fromkeys(queues))
        if mode == "loopback" and workers is not None:
            raise CommandError(
                Exit.USAGE,
                "--mode loopback runs every call in this process, and --workers in others: leave one of them out",
            )
        private = _private(mode, url, transport, workers)
        if private and mode is None:
            mode = "client"
            url = url or _DEFAULT_URLS["local"]
        mode = mode or "loopback"
        servers = {"--queue": queues, "--grace": grace, "--unsealed": unsealed, "--http": http}
        option = next((name for name, value in servers.items() if value not in (None, [])), None)
        if mode != "server" and option is not None:
            raise CommandError(
                Exit.USAGE, f"{option} is for --mode server, and this is --mode {mode}: leave it out"
            )
        sizes = {"--concurrency": concurrency, "--threads": threads, "--processes": processes}
        given = [option for option, size in sizes.items() if size is not None]
        if mode == "client" and given and not private:
            raise CommandError(Exit.USAGE, f"{given[0]} is for workers, and --mode client runs none: leave it out")
        try:
            validate_queue(namespace, "--namespace ")
            for queue in queues:
                validate_queue(queue, "--queue ")
        except ValueError as error:
            raise CommandError(Exit.USAGE, str(error).replace(" =", " ")) from None
        url, transport = _choose(mode, url, transport)
        return cls(
            mode,
            url,
            transport,
            namespace,
            100 if concurrency is None else concurrency,
            queues,
            30.0 if grace is None else grace,
            verbosity,
            threads,
            processes,
            workers if private else None,
            tuple(targets),
            keys,
            unsealed,
            check_records(records),
            options or {},
            nodes,
            None if http is None else _address(http),
        )

    @property
    def transport_options(self) -> dict[str, Any]:
        """The options of the transport, those that were said included."""
        given = {"keys": self.keys, "unsealed": self.unsealed, "records": self.records}
        return {**self.options, **{name: value for name, value in given.items() if value is not None}}

    @property
    def where(self) -> str | list[str]:
        """The URL to connect to, or those of all nodes."""
        return list(self.nodes) or self.url

    @property
    def has_keys(self) -> bool:
        """Messages are sealed."""
        keys = self.transport_options.get("keys")
        path = os.environ.get("ATASKS_KEYS") if keys is None else keys
        return self.transport == "amqp" and bool(path)

    def for_aiomain(self) -> dict[str, Any]:
        """The settings that every aiomain is offered."""
        return {
            "mode": self.mode,
            "url": self.url,
            "transport": self.transport,
            "namespace": self.namespace,
            "concurrency": self.concurrency,
            "queue": self.queues,
            "grace": self.grace,
        }


def check_records(url: str | None) -> str | None:
    """The URL of a database, as a command line may have it. Raises a CommandError for one with a password."""
    if not url:
        return url
    try:
        secret = take_apart(url, DATABASE_URL).password is not None
    except InvalidURL as error:
        raise CommandError(Exit.USAGE, f"--records: {error}") from None
    if secret or "password=" in url:
        raise CommandError(
            Exit.USAGE,
            "--records has a password, which every user of this host would see in the list of processes: put the "
            "URL into $ATASKS_RECORDS, or the password into $PGPASSWORD or ~/.pgpass",
        )
    return url


def _private(mode: Mode | None, url: str | None, transport: str | None, workers: int | None) -> bool:
    """Return True if the calls are for worker processes of this program, around a private socket."""
    named = transport == "local" or (url is not None and url.partition(":")[0] == "local")
    if mode == "server":
        if named:
            raise CommandError(
                Exit.USAGE,
                "local: is a private socket, which no client finds: give a path, as in unix:///run/app.sock",
            )
        return False
    if workers is not None and mode is None and not named and (url or transport):
        raise CommandError(
            Exit.USAGE,
            f"--workers runs aiomain() with worker processes of its own, and {'--url' if url else '--transport'} "
            f"names {_name(url, '--url') if url else transport}: leave it out, or say --mode server",
        )
    return (named and mode != "loopback") or (workers is not None and mode is None)


def _choose(mode: Mode, url: str | None, transport: str | None) -> tuple[str, str]:
    """The URL and the name of its transport: what was said, else $ATASKS_URL where it fits, else the default."""
    source = "--url"
    if transport is not None and ":" in transport:
        if mode == "loopback":
            raise CommandError(
                Exit.USAGE,
                f"--mode loopback runs every call in this process, and --transport names {transport}: "
                "leave it out, or say --mode server or --mode client",
            )
        return url or "", transport
    if mode == "loopback":
        default = "loopback"
    else:
        default = "amqp"
        environ = os.environ.get("ATASKS_URL")
        if url is None and environ and (transport is None or _name(environ, "$ATASKS_URL") == transport):
            source, url = "$ATASKS_URL", environ
    if url is None:
        if transport is not None and transport not in _DEFAULT_URLS:
            raise CommandError(
                Exit.USAGE, f"--transport {transport} has no default: add --url unix:///run/app.sock"
            )
        url = _DEFAULT_URLS[transport or default]
        source = "--transport" if transport else source
    name = _name(url, source)
    if transport is not None and name != transport:
        raise CommandError(Exit.USAGE, f"--transport {transport} contradicts {source} {name}:...: leave one out")
    if mode == "loopback" and name != "loopback":
        raise CommandError(
            Exit.USAGE,
            f"--mode loopback runs every call in this process, and {source} names {name}: "
            "leave it out, or say --mode server or --mode client",
        )
    if mode != "loopback" and name == "loopback":
        raise CommandError(
            Exit.USAGE,
            f"--mode {mode} needs a transport that reaches other processes, and {source} names loopback: "
            "use amqp, or --mode loopback",
        )
    return url, name


def _name(url: str, source: str) -> str:
    """The name of the URL's transport."""
    try:
        scheme = take_apart(url).scheme
    except InvalidURL:
        raise CommandError(Exit.USAGE, f"{source} is no URL: give one like amqp://user:password@host/") from None
    if scheme in _NAMES:
        return _NAMES[scheme]
    if is_added(scheme):
        return scheme
    known = ", ".join(f"{name}:" for name in _NAMES)
    hint = f"amqp://{url}" if "@" not in url and "://" not in url and url else "amqp://user:password@host:5672/"
    problem = f"begins with {scheme}://, as no transport does" if scheme and "://" in url else "names no transport"
    raise CommandError(Exit.USAGE, f"{source} {problem}: give a URL like {hint} (known: {known})")


def parse_options(pairs: Iterable[str], reserved: Iterable[str]) -> dict[str, Any]:
    """The values of -o key=value: JSON where it parses, else the text. Of a repeated key the last counts."""
    reserved = set(reserved)
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CommandError(Exit.USAGE, f"-o {pair}: not key=value; write -o {key or 'key'}=VALUE")
        if key in reserved:
            raise CommandError(Exit.USAGE, f"-o {key}=...: aiomain() gets {key!r} from --{key}; use that")
        options[key] = parse_value(value)
    return options


def parse_value(text: str) -> Any:
    """Return a value of the command line: parsed as JSON where that works, else the text."""
    try:
        return json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return text


def _not_json(constant: str) -> Any:
    """NaN and Infinity, which Python's parser takes and JSON does not have."""
    raise ValueError(constant)


def _address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, or of :PORT for all addresses. Raises a CommandError."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.port is None or parts.path or parts.username is not None:
            raise ValueError
    except ValueError:
        raise CommandError(Exit.USAGE, f"--http {text}: write HOST:PORT, as in 127.0.0.1:8000, or :8000") from None
    return parts.hostname or "", parts.port
