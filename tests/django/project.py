"""A copy of scenarios/django_shop, and its commands in processes of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.cli.command import Command, Done

SHOP = Path(__file__).parents[2] / "scenarios" / "django_shop"

SETTINGS = """
    from settings import *

    ATASKS = {atasks!r}
    DATABASES = {databases!r} or DATABASES
    DEBUG = {debug!r}
"""


class Project:
    """The files of the shop in a directory, with settings for a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "shop"
        shutil.copytree(SHOP, self.directory, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"))
        self.socket = directory / "app.sock"
        self.running: list[Command] = []
        self.configure()

    def configure(
        self, atasks: dict[str, Any] | None = None, databases: dict[str, Any] | None = None, debug: bool = False
    ) -> None:
        """Write the settings; ATASKS names a socket, unless told otherwise."""
        atasks = {"default": {"URL": f"unix://{self.socket}"}} if atasks is None else atasks
        self.write("test_settings.py", SETTINGS.format(atasks=atasks, databases=databases or {}, debug=debug))

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(dedent(text))

    def start(self, *arguments: str, program: str = "manage.py") -> Command:
        """Begin `python manage.py ARGUMENTS`."""
        command = Command(
            *arguments,
            cwd=self.directory,
            env={"DJANGO_SETTINGS_MODULE": "test_settings", "PYTHONDONTWRITEBYTECODE": "1"},
            program=(program,),
        )
        self.running.append(command)
        return command

    def manage(self, *arguments: str, program: str = "manage.py") -> Done:
        """Run it, and return how it ended."""
        return self.start(*arguments, program=program).finish()

    def serve(self, *arguments: str) -> Command:
        """Begin `python manage.py run_atask ARGUMENTS`, and return when it serves."""
        command = self.start("run_atask", *arguments)
        command.wait_for("; Ctrl-C to drain")
        return command

    def close(self) -> None:
        for command in self.running:
            command.close()
