"""The `aiomain` of the modules that were loaded: what it is given, and several of them at once."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from atasks.errors import closest
from atasks_cli.exits import CommandError, Exit

__all__ = ["Aiomain", "AiomainFailed", "find", "run_all"]

logger = logging.getLogger("atasks.cli")


class AiomainFailed(Exception):
    """An aiomain raised `error`, or ended by itself with a CancelledError."""

    def __init__(self, module: str, error: BaseException) -> None:
        super().__init__(module, error)
        self.module = module
        self.error = error


class Aiomain:
    """The aiomain of one module, with the options that it accepts."""

    def __init__(self, module: ModuleType, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """`settings` are those of the command line, `given` those of -o. Both are left out where not accepted."""
        self.module = module.__name__
        self._function: Callable[..., Any] = module.aiomain
        if not callable(self._function):
            raise CommandError(Exit.USAGE, f"aiomain in {self.module} is no function: define async def aiomain()")
        if inspect.isasyncgenfunction(self._function) or inspect.isgeneratorfunction(self._function):
            raise CommandError(Exit.USAGE, f"aiomain() of {self.module} is a generator: it may not yield")
        parameters = inspect.signature(self._function).parameters.values()
        by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.accepted = list(by_name)
        """The options that it takes by name."""
        offered = {**settings, **given}
        self.options = {name: value for name, value in offered.items() if self.takes_any or name in by_name}
        missing = [p.name for p in by_name.values() if p.default is p.empty and p.name not in offered]
        for p in parameters:
            if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
                raise CommandError(
                    Exit.USAGE,
                    f"aiomain() of {self.module} has the positional-only parameter {p.name!r}: "
                    "options are passed by name; remove the /",
                )
        if missing:
            raise CommandError(
                Exit.USAGE, f"aiomain() of {self.module} needs {missing[0]!r}: add -o {missing[0]}=VALUE"
            )

    async def run(self) -> None:
        """Call it, and await what it returns if that can be awaited. Raises AiomainFailed for what it raises."""
        try:
            result = self._function(**self.options)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise AiomainFailed(self.module, error) from error
        except BaseException as error:  # a SystemExit too: out of a task it would tear the event loop down
            raise AiomainFailed(self.module, error) from error


def find(modules: Sequence[ModuleType], settings: Mapping[str, Any], given: Mapping[str, Any]) -> list[Aiomain]:
    """The aiomain of every module that has one. A CommandError for a -o that none of them accepts."""
    found = [Aiomain(module, settings, given) for module in modules if hasattr(module, "aiomain")]
    if any(aiomain.takes_any for aiomain in found):
        return found
    accepted = [name for aiomain in found for name in aiomain.accepted if name not in settings]
    for name in given:
        if name not in accepted:
            where = ", ".join(aiomain.module for aiomain in found) or "any of these modules"
            near = closest(name, accepted, limit=1)
            if near:
                hint = f"did you mean -o {near[0]}=...?"
            elif accepted:
                hint = f"accepted: {', '.join(accepted)}"
            else:
                hint = "it takes no options; give aiomain() a parameter of that name, or **options"
            raise CommandError(Exit.USAGE, f"-o {name}: no such option of aiomain() in {where}; {hint}")
    return found


async def run_all(aiomains: Sequence[Aiomain]) -> None:
    """Run them together until all have returned. The first one that raises cancels the others.

    Guarantees: none of them runs any more when this ends, also when it is cancelled itself.

    Raises the AiomainFailed of the one that raised first; what others raise while they are cancelled is logged.
    """
    if not aiomains:
        return
    tasks = [asyncio.create_task(aiomain.run(), name=f"aiomain of {aiomain.module}") for aiomain in aiomains]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failures = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        first = next(filter(None, failures), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, AiomainFailed) and failure is not first:
            logger.warning(
                "aiomain() of %s raised %s while it was stopped", failure.module, type(failure.error).__name__
            )
    if first is not None:
        raise first
