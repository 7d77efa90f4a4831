"""Runs the Python blocks of a page, one after the other in one module, as a reader would who types them.

A block with `await` at the top level runs inside `async with atasks.connect("loopback:")`, and every such block in
the same event loop. Started by `python -c`, so that `__main__` is what it is at a prompt.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import linecache
import sys
import traceback
from types import CodeType
from typing import Any

import atasks

__all__ = ["main"]


def main() -> None:
    """Answer each line of the input, a JSON object with `name` and `text`, with one that has `out` and `error`."""
    scope = sys.modules["__main__"].__dict__
    scope.clear()
    scope.update({"__name__": "__main__", "__builtins__": __builtins__})
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            block = json.loads(line)
            out = io.StringIO()
            error = None
            with contextlib.redirect_stdout(out):
                try:
                    _run(runner, block["name"], block["text"], scope)
                except BaseException:
                    error = traceback.format_exc()
            print(json.dumps({"out": out.getvalue(), "error": error}), flush=True)


def _run(runner: asyncio.Runner, name: str, text: str, scope: dict[str, Any]) -> None:
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    code = compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        runner.run(_connected(code, scope))
    else:
        exec(code, scope)


async def _connected(code: CodeType, scope: dict[str, Any]) -> None:
    async with atasks.connect("loopback:"):
        await eval(code, scope)
