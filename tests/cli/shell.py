"""A directory with module files, and the commands that run them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from tests.cli.command import Command, Done


class Shell:
    """A current directory, and commands that are run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._commands: list[Command] = []

    def write(self, name: str, text: str) -> Path:
        """A file in the directory."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def start(self, *arguments: str, env: dict[str, str] | None = None, read: int | None = None) -> Command:
        """The command with these arguments, running. `read`: how many lines of its stdout to read; None: all."""
        command = Command(*arguments, cwd=self.directory, env=env, read=read)
        self._commands.append(command)
        return command

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Done:
        """The command with these arguments, after it has ended."""
        return self.start(*arguments, env=env).finish()

    def close(self) -> None:
        for command in self._commands:
            command.close()
