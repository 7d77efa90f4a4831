"""Files of keys for tests: of a worker, and of callers that it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from atasks import Transport
from atasks.signing import Key, keyfile
from atasks.transport.backends.amqp import AMQPTransport

__all__ = ["KeyFiles", "caller_first"]


class KeyFiles:
    """A directory of key files. `worker` has the worker's own key, `w`, and one for each caller; a caller's file
    has its key only. `stranger` is known to no worker."""

    def __init__(self, folder: Path, **callers: str) -> None:
        """`callers`: name -> the words of its line."""
        self.folder = folder
        self.lines = {name: keyfile.new_line(name, *words.split()) for name, words in callers.items()}
        self.own = keyfile.new_line("w", "serve")
        self.stranger = self.write("stranger", keyfile.new_line("stranger", "serve"))
        self.update()

    def write(self, name: str, *lines: str) -> Path:
        """A file of these lines, which takes the place of an earlier one at once."""
        path, new = self.folder / f"{name}.keys", self.folder / f".{name}.new"
        new.touch(0o600)
        new.write_text("".join(f"{line}\n" for line in lines))
        return new.rename(path)

    def update(self) -> None:
        """Write the worker's file as the lines are now."""
        self.worker = self.write("worker", self.own, *self.lines.values())

    def caller(self, name: str) -> Path:
        """The file of a caller."""
        return self.write(name, self.lines[name])

    def key(self, name: str) -> Key:
        """The key of a caller, or the worker's own, `w`."""
        return keyfile.parse(self.own if name == "w" else self.lines[name], name)[0]


def caller_first(url: str, prefix: str, keys: KeyFiles, caller: str, **options: Any) -> Callable[[str], Transport]:
    """Makes transports: the first one for a caller with its own key, the others for workers."""
    made: list[Transport] = []

    def new_transport(namespace: str) -> Transport:
        path = keys.worker if made else keys.caller(caller)
        made.append(AMQPTransport(url, namespace, prefix=prefix, keys=path, **options))
        return made[-1]

    return new_transport
