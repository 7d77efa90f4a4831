"""Somebody who follows a page: creates its files, types its code and its commands, and compares what comes out."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.busy import without_warnings
from tests.cli.command import PATIENCE, Command
from tests.docs.pages import ROOT, Block

__all__ = ["DATABASE", "URL", "Reader"]

URL = re.compile(r"amqp://(guest:guest@)?localhost(:5672)?/(?=[\"'\s,)]|$)", re.MULTILINE)
"""The broker of the reader, as pages name it."""
DATABASE = "postgresql://user:password@db/app"
"""The name that pages have for the database of the reader."""
SHOWN_URL = "amqp://localhost/"
INTERRUPT = "^C"
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)

PYTEST = ["-p", "no:cacheprovider", "-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function"]
"""Arguments in place of a reader's own configuration."""

NOT_RUN = {
    "docker compose up -d --wait": "needs a Docker engine",
    "python3 -m venv .venv": "tests run in a virtual environment already",
    ". .venv/bin/activate": "tests run in a virtual environment already",
    'pip install -e ".[django,reload]"': "the tests run against an installed package, and need no network",
    "pip install -e .": "the tests run against an installed package, and need no network",
    "sudo apt-get install rabbitmq-server": "changes the machine",
}
"""Commands of the pages that are not run, and why."""


class Reader:
    """Has a directory, a broker if the page needs one, a Python prompt, and terminals with servers in them."""

    def __init__(self, directory: Path, url: str | None, database: str | None = None) -> None:
        self.directory = directory
        self.database = database
        self.url = url
        self._prompt: subprocess.Popen[str] | None = None
        self._servers: list[Command] = []
        self._environ = {
            **{name: value for name, value in os.environ.items() if name != "ATASKS_URL"},
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "100",
            **({"ATASKS_URL": url} if url else {}),
        }

    def follow(self, block: Block) -> None:
        """Do what the block says, and fail if what comes out is not what the page says."""
        if block.file is not None:
            path = self.directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._localize(block.text))
        elif block.language == "python":
            self._type(block)
        elif block.language == "console":
            self._execute(block)

    def close(self) -> None:
        """End what still runs; every server has to drain and exit with 0."""
        if self._prompt is not None:
            assert self._prompt.stdin is not None
            self._prompt.stdin.close()
            assert self._prompt.wait(PATIENCE) == 0
        for server in self._servers:
            if server.process.poll() is None:
                server.signal(signal.SIGTERM)
        codes = [server.finish().code for server in self._servers]
        assert codes == [0] * len(codes), f"servers ended with {codes}"

    def kill(self) -> None:
        """End what still runs, after a failure."""
        if self._prompt is not None:
            with self._prompt:  # closes its pipes, and waits
                self._prompt.kill()
        for server in self._servers:
            server.close()

    # -- Python

    def _type(self, block: Block) -> None:
        if self._prompt is None:
            self._prompt = subprocess.Popen(
                [sys.executable, "-c", "from tests.docs.prompt import main; main()"],
                cwd=self.directory,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._prompt.stdin is not None
        assert self._prompt.stdout is not None
        name = f"<{block.page}-{block.line}>"  # as at a prompt: a later definition replaces an earlier one
        self._prompt.stdin.write(json.dumps({"name": name, "text": self._localize(block.text)}) + "\n")
        self._prompt.stdin.flush()
        answer = json.loads(self._prompt.stdout.readline())
        assert answer["error"] is None, f"{block} raised\n{answer['error']}"
        expected = PRINTED.findall(block.text)
        if expected:
            self._compare(block, expected, answer["out"].splitlines())

    # -- commands

    def _execute(self, block: Block) -> None:
        """Lines that begin with `$ ` are commands; what follows is all that one prints, `...` being anything."""
        command, expected = "", []
        for line in [*block.text.splitlines(), "$ "]:
            if line.startswith("$ "):
                if command:
                    self._command(block, command, expected)
                command, expected = line[2:].split("  #")[0].strip(), []
            else:
                assert command, f"{block}: output without a command"
                expected.append(line)

    def _command(self, block: Block, command: str, expected: list[str]) -> None:
        if command in NOT_RUN:
            return
        program, *arguments = shlex.split(command)
        match program:
            case "make":
                subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
            case "atasks" if "server" in arguments:
                self._serve(block, arguments, expected)
            case "atasks":
                self._run(block, ["-m", "atasks", *arguments], expected)
            case "python" if "run_atask" in arguments:
                self._serve(block, arguments, expected, program=())
            case "python":
                self._run(block, arguments, expected)
            case "pytest":
                self._run(block, ["-m", "pytest", *PYTEST, *arguments], expected)
            case _:
                raise AssertionError(f"{block}: nobody knows how to check {command!r}")

    def _run(self, block: Block, arguments: list[str], expected: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, *map(self._localize, arguments)],
            cwd=self.directory,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        fails = any("error:" in line for line in expected)
        assert bool(done.returncode) == fails, f"{block}: exit code {done.returncode}\n{done.stdout}"
        self._compare(block, expected, done.stdout.splitlines())

    def _serve(
        self,
        block: Block,
        arguments: list[str],
        expected: list[str],
        program: Sequence[str] = ("-m", "atasks"),
    ) -> None:
        """A terminal with a server in it, which goes on running unless the page shows a Ctrl-C."""
        interrupted = INTERRUPT in expected
        before = expected[: expected.index(INTERRUPT)] if interrupted else expected
        server = Command(
            *map(self._localize, arguments), cwd=self.directory, env=self._environ, merged=True, program=program
        )
        self._servers.append(server)
        ready = [server.wait_for("\n") for _ in before] or [server.wait_for("atasks: serving")]
        self._compare(block, before or ready, ready)
        if interrupted:
            server.signal(signal.SIGINT)
            done = server.finish()
            assert done.code == 0, f"{block}: exit code {done.code}\n{done.out}"
            self._compare(block, [*before, *expected[len(before) + 1 :]], done.out.splitlines())

    # -- what is the same for the reader and for the page

    def _localize(self, text: str) -> str:
        if self.database:
            text = text.replace(DATABASE, self.database)
        return URL.sub(self.url, text) if self.url else text

    def _compare(self, block: Block, expected: list[str], found: list[str]) -> None:
        if self.url is not None:
            parts = urlsplit(self.url)
            shown = f"amqp://{parts.netloc.rpartition('@')[2]}{parts.path or '/'}"
            found = [line.replace(self.url, SHOWN_URL).replace(shown, SHOWN_URL) for line in found]
        if without_warnings(block.text) == block.text:
            found = without_warnings("\n".join(line.rstrip("\n") for line in found)).splitlines()
        pattern = "\n".join(re.escape(line).replace(r"\.\.\.", "(.|\n)*?") for line in expected)
        text = "\n".join(line.rstrip() for line in found)
        says = "\n".join(expected)
        assert re.fullmatch(pattern, text.rstrip("\n")), f"{block} says\n{says}\nand it is\n{text}"
