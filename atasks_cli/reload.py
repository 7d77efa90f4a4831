"""Files that are watched for changes, for --reload."""

from __future__ import annotations

import asyncio
import glob
import importlib
import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from atasks_cli.exits import CommandError, Exit

__all__ = ["Watcher", "files_of", "project_files"]

INSTALLED = {"site-packages", "dist-packages"}


def project_files() -> list[str]:
    """The source files of the modules that are loaded here, but for the interpreter's and for installed ones."""
    # Not getattr: modules that load lazily would load.
    files = (getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values()))
    return _own(file for file in files if isinstance(file, str))


def files_of(error: BaseException | None) -> list[str]:
    """The source files of that kind that an exception and its causes came through: one of them is to blame."""
    files: set[str] = set()
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, SyntaxError) and error.filename:
            files.add(error.filename)
        trace = error.__traceback__
        while trace is not None:
            files.add(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return _own(files)


def _own(files: Iterable[str]) -> list[str]:
    import sysconfig  # for this alone

    libraries = tuple(
        os.path.join(os.path.realpath(path), "")
        for path in (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    )
    found = {os.path.realpath(file) for file in files if file.endswith(".py")}
    return sorted(
        file for file in found if not file.startswith(libraries) and not INSTALLED & {*file.split(os.sep)}
    )


class Watcher:
    """Knows files, and tells when one of them has changed. For use with `async with`."""

    def __init__(self) -> None:
        """Raises a CommandError where watchfiles is not installed."""
        try:
            self._library: Any = importlib.import_module("watchfiles")
        except ImportError:
            raise CommandError(
                Exit.USAGE, "--reload needs watchfiles, which is not installed: pip install watchfiles"
            ) from None
        self.files: dict[str, int | None] = {}
        """The files that are watched: path -> when it was modified, None if it does not exist."""
        self._folders: set[str] = set()
        self._changed: set[str] = set()
        self._around: dict[str, int | None] = {}
        """The Python files in the folders of these files, and in the folders there, as they were at the last
        change."""
        self._news = asyncio.Event()
        self._more_folders = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(), name="atasks reload")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    def add(self, files: Iterable[str]) -> None:
        """Know of these files too, as they are now."""
        for file in files:
            self.files.setdefault(file, _modified(file))
        folders = {os.path.dirname(file) for file in self.files}
        if not folders <= self._folders:
            self._folders |= folders
            self._around = self._files_around() | self._around
            self._more_folders.set()

    def forget_changes(self) -> None:
        """Take the present state of the files as known: earlier changes are no news."""
        self._look()
        self._changed.clear()
        self._around = self._files_around()

    async def change(self, *, beside: bool = False) -> list[str]:
        """The files that have changed, once there are some; with `beside`, any Python file around them counts,
        because the one that is missing may not have been known."""
        while not (found := self._changed | (self._changed_around() if beside else set())):
            self._news.clear()
            if self._task.done():  # it never ends by itself
                await self._task
            await self._news.wait()
        self.forget_changes()
        return sorted(found)

    async def _watch(self) -> None:
        try:
            while True:
                await self._more_folders.wait()
                self._more_folders.clear()
                folders = filter(os.path.isdir, self._folders)
                # Looks also when nothing was reported: a change while no watch was set would be missed else.
                changes = self._library.awatch(
                    *folders,
                    recursive=False,
                    stop_event=self._more_folders,
                    yield_on_timeout=True,
                    rust_timeout=1000,
                )
                async for _ in changes:
                    self._look()
                    self._news.set()
        finally:
            self._news.set()

    def _files_around(self) -> dict[str, int | None]:
        folders = [glob.escape(folder) for folder in self._folders]
        patterns = [os.path.join(folder, pattern) for folder in folders for pattern in ("*.py", "*/*.py")]
        return {file: _modified(file) for pattern in patterns for file in glob.iglob(pattern)}

    def _changed_around(self) -> set[str]:
        return {file for file, modified in self._files_around().items() if self._around.get(file) != modified}

    def _look(self) -> None:
        for file, before in self.files.items():
            now = _modified(file)
            if now != before:
                self.files[file] = now
                self._changed.add(file)


def _modified(file: str) -> int | None:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return None
