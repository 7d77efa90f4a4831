"""Start a child: forked by the server of this program, or else as an interpreter."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TypeAlias

from atasks import interpreters
from atasks.fork_server.forked import Forked
from atasks.fork_server.server import ask

__all__ = ["Child", "Spawned", "arguments", "start"]


class Spawned(subprocess.Popen[bytes]):
    """A child that is an interpreter which this program has started."""

    def close(self) -> None:
        """Let go of it, which has ended."""


Child: TypeAlias = Forked | Spawned


def start(modules: Sequence[str], text: str, words: Sequence[str], descriptors: Sequence[int]) -> Child:
    """Start it, with an empty stdin; the arguments are those of `ask`. Blocks until it has begun. Raises
    OSError."""
    child = ask(modules, text, words, descriptors, session=False)
    if child is not None and child.begin():
        return child
    return Spawned(arguments(text, words, descriptors), pass_fds=descriptors, stdin=subprocess.DEVNULL)


def arguments(text: str, words: Sequence[str], descriptors: Sequence[int]) -> list[str]:
    """Return the command of an interpreter that runs it."""
    return [*interpreters.command(), "-c", text, " ".join(map(str, descriptors)), *words]
