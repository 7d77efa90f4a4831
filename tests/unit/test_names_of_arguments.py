"""Arguments may have the names that functions of this package have for their own."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import atasks
from atasks import Limit, atask, event, use
from atasks.namespaces import namespaces
from atasks.testing import soon, until
from tests.unit import middlewares
from tests.unit.middlewares import NAMES, NAMESPACE, Passing

MINE = dict.fromkeys(NAMES, "mine")


def test_no_function_that_hands_on_arguments_takes_one_of_them_for_its_own() -> None:
    package = Path(atasks.__file__).parent
    found = [
        f"{file.relative_to(package)}:{node.lineno} {node.name}"
        for file in sorted(package.rglob("*.py"))
        if file.relative_to(package).parts[0] != "testing" and "commands" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if node.args.vararg and node.args.kwarg and node.args.args
    ]
    assert found == [], "write a slash before *args"


@pytest.mark.parametrize("around", [False, True])
async def test_every_way_to_call_takes_every_name(namespace: str, around: bool) -> None:
    if around:
        use(Passing(), namespace)
    limit = Limit("names", at_once=1, namespace=namespace, key=lambda **given: len(given))
    handled: list[dict[str, str]] = []

    @atask(namespace=namespace, limit=limit)
    async def given(**kwargs: str) -> dict[str, str]:
        return kwargs

    @atask(namespace=namespace, executor="thread")
    def in_thread(**kwargs: str) -> dict[str, str]:
        return kwargs

    @atask(namespace=namespace)
    async def items(**kwargs: str) -> AsyncIterator[dict[str, str]]:
        yield kwargs

    @event(namespace=namespace)
    async def happened(**kwargs: str) -> None: ...

    @happened.on(group="names")
    async def handle(**kwargs: str) -> None:
        handled.append(kwargs)

    async with atasks.connect("loopback:", namespace=namespace):
        assert await soon(given(**MINE)) == MINE
        assert await soon(in_thread(**MINE)) == MINE
        assert await soon(await soon(given.submit(**MINE))) == MINE
        async with given.watch(**MINE) as call:
            assert await soon(call) == MINE
        assert [item async for item in items(**MINE)] == [MINE]
        await soon(happened(**MINE))
        await until(lambda: handled == [MINE], "the event was handled")
        async with limit.of(**MINE):
            pass
        (await soon(limit.take(**MINE))).release()


@pytest.fixture
def used() -> Iterator[None]:
    """Middlewares of the module's namespace are forgotten after the test."""
    use(Passing(), NAMESPACE)
    yield
    namespaces.register(NAMESPACE, around_calls=None, around_runs=None)


@pytest.mark.usefixtures("used")
async def test_a_process_inside_of_middlewares_takes_every_name() -> None:
    async with atasks.connect("loopback:", namespace=NAMESPACE, processes=1):
        assert await soon(middlewares.named(**MINE)) == MINE
