"""The client's and the worker's process of a system, as the harness sees them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.load import STUCK, BenchmarkFailed

__all__ = ["Child"]

ROOT = Path(__file__).parents[1]
STARTING = 60.0
"""Seconds in which it must be ready."""
ENDING = 15.0
"""Seconds that it has to end by itself."""


class Child:
    """A process that speaks the protocol of child.py, and ends when this one does."""

    def __init__(self, process: asyncio.subprocess.Process, module: str) -> None:
        self._process = process
        self._module = module
        self.pid = process.pid

    async def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a question. Raises BenchmarkFailed if there is none, long after so many seconds."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # that it ended, the answer says
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            await self._process.stdin.drain()
        return await self._answer(seconds + STUCK + ENDING)

    async def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                said = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchmarkFailed(f"`python -m {self._module}` did not answer in {seconds:.0f} s") from None
        if not said:
            raise BenchmarkFailed(f"`python -m {self._module}` ended: see its traceback above")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise BenchmarkFailed(answer["error"])
        return answer

    @classmethod
    @asynccontextmanager
    async def start(
        cls, python: Path, module: str, *arguments: str, environ: Mapping[str, str]
    ) -> AsyncIterator[Child]:
        """Start it, and wait until it is ready.

        URLs travel in the environment, not as arguments, because they hold passwords.
        """
        process = await asyncio.create_subprocess_exec(
            python, "-m", module, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            cwd=ROOT, env={**os.environ, **environ},
            start_new_session=True,  # an interrupt is ours to handle: children end by themselves
        )  # fmt: skip
        try:
            child = cls(process, module)
            await child._answer(STARTING)
            yield child
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(ENDING):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
