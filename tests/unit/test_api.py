"""The first page of the documentation, as a program: what a user writes, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import pytest

import atasks
from atasks import atask

SPACE = "tests-api"
tenant: ContextVar[str] = ContextVar("tests-api-tenant")


class OutOfStock(Exception):
    def __init__(self, item: str, *, left: int) -> None:
        super().__init__(item)
        self.item = item
        self.left = left


@dataclass
class Order:
    item: str
    count: int


@atask(namespace=SPACE)
async def add(a: int, b: int) -> int:
    return a + b


@atask(namespace=SPACE)
async def price(order: Order) -> int:
    if order.count > 10:
        raise OutOfStock(order.item, left=10)
    return 5 * order.count


@atask(namespace=SPACE, timeout=30, max_attempts=1)
async def total(*orders: Order) -> int:
    """Calls that make calls, together."""
    async with asyncio.TaskGroup() as group:
        prices = [group.create_task(price(order)) for order in orders]
    return sum(task.result() for task in prices)


@atask(namespace=SPACE)
async def whose() -> tuple[str, object]:
    return tenant.get("nobody"), atasks.current_call().state


@pytest.fixture
async def connected() -> AsyncIterator[None]:
    async with atasks.connect("loopback:", namespace=SPACE):
        yield


async def test_the_first_page(connected: None) -> None:
    assert await add(1, 2) == 3
    async with asyncio.TaskGroup() as group:
        task = group.create_task(add(3, 4))
    assert task.result() == 7
    async with asyncio.timeout(60):
        assert await add.options(queue="gpu", priority=3)(5, 6) == 11
    assert await add.local(1, 2) == 3


async def test_arguments_are_objects(connected: None) -> None:
    assert await price(Order("tea", 3)) == 15
    assert await total(Order("tea", 3), Order("milk", 1)) == 20


async def test_exceptions_are_those_that_were_raised(connected: None) -> None:
    with pytest.raises(OutOfStock) as caught:
        await price(Order("tea", 11))
    error = caught.value
    assert (type(error), error.item, error.left, error.args) == (OutOfStock, "tea", 10, ("tea",))
    assert isinstance(error.__cause__, atasks.RemoteTraceback)
    assert "raise OutOfStock(order.item, left=10)" in str(error.__cause__)
    assert "price" in error.__notes__[0]


async def test_except_star_over_remote_groups(connected: None) -> None:
    left: list[int] = []
    try:
        await total(Order("tea", 1), Order("milk", 11), Order("salt", 12))
    except* OutOfStock as group:
        left.extend(error.left for error in group.exceptions if isinstance(error, OutOfStock))
    assert left
    assert set(left) == {10}


async def test_except_clauses_of_local_code_work(connected: None) -> None:
    """`TimeoutError`, `ConnectionError`, `LookupError`: code that knows nothing of atasks catches the endings."""

    @atask(namespace=SPACE, name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await forever.options(timeout=0.01)()
    with pytest.raises(LookupError):
        await atasks.get_router(SPACE).send_request("nobody knows this one")
    async with atasks.connect("loopback:", namespace=SPACE) as transport:
        lost = asyncio.create_task(forever())
        await asyncio.sleep(0)
        await transport.disconnect()
        with pytest.raises(ConnectionError):
            await lost
    atasks.get_router(SPACE).registry.unregister("forever")


async def test_what_travels_with_a_call() -> None:
    atasks.carry(tenant)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        yield "a database pool"

    async with atasks.serve("loopback:", namespace=SPACE, lifespan=lifespan):
        assert await whose() == ("nobody", "a database pool")
        tenant.set("ours")
        assert await whose() == ("ours", "a database pool")


async def test_recursion_needs_no_slots(connected: None) -> None:
    @atask(namespace=SPACE, name="fib")
    async def fib(n: int) -> int:
        return n if n < 2 else sum(await asyncio.gather(fib(n - 1), fib(n - 2)))

    async with atasks.serve("loopback:", namespace=SPACE, concurrency=1):
        assert await fib(10) == 55
    atasks.get_router(SPACE).registry.unregister("fib")


async def test_a_block_that_is_left_early_leaves_nothing(connected: None) -> None:
    @atask(namespace=SPACE, name="endless")
    async def endless() -> None:
        await asyncio.Event().wait()

    for _ in range(20):
        async with atasks.connect("loopback:", namespace=SPACE):
            call = asyncio.create_task(endless())
            await asyncio.sleep(0)
        with pytest.raises(atasks.CallConnectionLost):
            await call
    atasks.get_router(SPACE).registry.unregister("endless")


def test_the_readme_program(script: Callable[..., str]) -> None:
    output = script(
        """
        import asyncio
        import atasks
        from atasks import atask

        @atask
        async def add(a: int, b: int) -> int:
            return a + b

        @atask
        async def twice(n: int) -> int:
            return await add(n, n)

        async def main():
            async with atasks.connect("loopback:"):
                print(await add(1, 2), await twice(4), *await asyncio.gather(add(1, 1), twice(1)))
                try:
                    add(1)
                except TypeError as error:
                    print(error)
                try:
                    await add(1, None)
                except TypeError as error:
                    print(error)

        asyncio.run(main())
        """
    )
    assert output.splitlines() == [
        "3 8 2 2",
        "add() missing 1 required positional argument: 'b'",
        "unsupported operand type(s) for +: 'int' and 'NoneType'",
    ]
