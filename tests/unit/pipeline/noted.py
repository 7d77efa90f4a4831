"""Functions for the processes of stages: what the tests import a process of theirs does without."""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atasks.pipeline.flow import child
from atasks.pipeline.flow.messages import ChildMessage

__all__ = [
    "Counted",
    "Noted",
    "Random",
    "Unreadable",
    "Unsendable",
    "identity",
    "kind",
    "of_module",
    "place",
    "slow_from",
]


def kind(x: Any) -> type:
    return type(x)


def identity(x: Any) -> Any:
    """Give back the item."""
    return x


def place(x: int, element_index: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Give the item and its lineage."""
    return x, element_index


def slow_from(first: int, x: int) -> int:
    """Give the process, which is slow for this item and those behind it."""
    if x >= first:
        time.sleep(0.02)
    return os.getpid()


class Counted:
    """Counts its calls in a file, of one process, at next to no cost."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "count"
        self.file.write_bytes(bytes(8))
        self.__name__ = "counted"

    def __call__(self, x: int) -> int:
        memory = self.__dict__.get("memory")
        if memory is None:
            with self.file.open("r+b") as file:
                memory = self.__dict__["memory"] = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
        memory[0] += 1
        return x

    def count(self) -> int:
        """The calls so far."""
        return int.from_bytes(self.file.read_bytes(), "little")


class Unreadable:
    """Can be pickled, and not read again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Unsendable:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("unsendable")


class Noted:
    """Notes each call in a file, and does something at some of the items."""

    def __init__(self, folder: Path, **at: int) -> None:
        self.begun = folder / "begun"
        self.gate = folder / "gate"
        self.died = folder / "died"
        self.at = {number: what for what, number in at.items()}
        self.__name__ = "noted"

    def __call__(self, x: int) -> Any:
        descriptor = os.open(self.begun, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{x}\n".encode())
        os.close(descriptor)
        return self.result(self.at.get(x), x)

    def result(self, what: str | None, x: int) -> Any:
        if what == "fails":
            raise ValueError(x)
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "dies_behind":
            self.die_behind()
        while what == "waits" and not self.gate.exists():
            time.sleep(0.01)
        return {"unreadable": Unreadable(), "unsendable": Unsendable()}.get(what or "", x)

    def die_behind(self) -> None:
        """Have this process die when all results of calls that were sent together are there, before it says so."""
        original = child.message

        def message(kind: ChildMessage, *args: Any) -> Any:
            if kind is ChildMessage.DONE:
                self.died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(kind, *args)

        child.message = message

    def calls(self) -> list[int]:
        return [int(line) for line in self.begun.read_text().split()] if self.begun.exists() else []


class Random:
    """Does with an item what follows from the item alone."""

    def __init__(self, folder: Path, salt: int, rare: int) -> None:
        self.folder, self.salt, self.rare = folder, salt, rare
        self.__name__ = "random"

    def what(self, x: int) -> str | None:
        number = (x * 7919 + self.salt * 104_729 + 13) % 1_000_003
        return (
            ("fails", "dies", "unreadable", "unsendable", "sleeps", "naps", "large", "larger")[number % 8]
            if number % self.rare == 0
            else None
        )

    def __call__(self, x: int) -> Any:
        what = self.what(x)
        if what in ("sleeps", "naps"):
            time.sleep(0.05 if what == "sleeps" else 0.001)
        if what in ("large", "larger"):
            return bytes(10_000 if what == "large" else 100_000)
        return Noted.__call__(Noted(self.folder, **({} if what is None else {what: x})), x)

    def expected(self, items: Iterator[int]) -> list[Any]:
        lost = ("fails", "dies", "unreadable", "unsendable")
        sizes = {"large": 10_000, "larger": 100_000}
        return [
            bytes(sizes[what]) if (what := self.what(x)) in sizes else x for x in items if self.what(x) not in lost
        ]


def of_module(name: str, x: Any) -> Any:
    """Give what a module gives that the process of the stage alone imports."""
    return importlib.import_module(name).work(x)
