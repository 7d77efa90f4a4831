"""The plugin for pytest, in runs of pytest of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest

from atasks.contrib import faults

pytest_plugins = ["pytester"]

TASKS = """
    import asyncio, os
    from atasks import atask

    runs = []

    @atask
    async def add(a, b):
        return a + b

    @atask
    async def pay(amount):
        runs.append(amount)
        await asyncio.sleep(0.01)
        return await add(amount, 1)

    @atask(delivery="at_most_once")
    async def pay_once(amount):
        runs.append(amount)
        await asyncio.sleep(0)
        return amount

    @atask(executor="thread")
    def resize(size):
        runs.append(size)
        return size

    @atask
    async def numbers(count):
        for number in range(count):
            yield number

    @atask
    async def hang():
        await asyncio.Event().wait()

    @atask(namespace="other")
    async def pid():
        return os.getpid()
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs pytest on a file with these tests, in a process of its own."""
    return partial(run_tests, pytester)


def run_tests(pytester: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    """The outcome of a run of pytest on these tests, beside a module `shop` of atasks."""
    pytester.makepyfile(shop=TASKS, test_it=tests)
    pytester.makeini("[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n")
    given = ["-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "asyncio_mode=strict"]
    return pytester.runpytest_subprocess(*given, "--strict-markers", *arguments, timeout=60)


def test_each_loop_scope_and_code_without_a_loop(run: Callable[..., pytest.RunResult]) -> None:
    result = run(
        """
        import asyncio
        import pytest, pytest_asyncio
        import shop
        from atasks import current_call
        from atasks.contrib import faults

        pytestmark = pytest.mark.usefixtures("atasks_loopback")

        @pytest_asyncio.fixture
        async def three():
            yield await shop.add(1, 2)
            assert await shop.add(2, 2) == 4

        @pytest.mark.asyncio
        async def test_function(three, atasks_calls):
            assert three == 3
            assert await shop.pay(3) == 4
            assert [n async for n in shop.numbers(3)] == [0, 1, 2]
            with pytest.raises(TypeError):
                await shop.add(1, None)
            assert atasks_calls.names == ["pay", "add", "numbers", "add"]
            assert [call.args for call in atasks_calls[:3]] == [(3,), (3, 1), (3,)]
            assert [call.result for call in atasks_calls[:3]] == [4, 4, [0, 1, 2]]
            assert isinstance(atasks_calls.of(shop.add)[1].error, TypeError)
            handle = await shop.add.submit(1, 1)
            assert await handle == 2
            assert atasks_calls[-1].submitted

        class TestInOneLoop:
            pytestmark = pytest.mark.asyncio(loop_scope="class")

            @pytest.mark.parametrize("turn", range(2))
            async def test_class(self, turn):
                assert await asyncio.gather(*(shop.add(n, 1) for n in range(3))) == [1, 2, 3]

        @pytest.mark.asyncio(loop_scope="module")
        async def test_module():
            assert await shop.add(1, 2) == 3
            assert await asyncio.to_thread(shop.add.sync, 1, 2) == 3

        @pytest.mark.asyncio(loop_scope="session")
        async def test_session():
            assert await shop.pid() == __import__("os").getpid()

        def test_plain():
            assert shop.pay.sync(1) == 2

        @pytest.mark.atasks(concurrency=1, faults=[faults.kill_worker_during("pay"), faults.delay("add", 0.01)])
        @pytest.mark.asyncio
        async def test_killed():
            shop.runs.clear()
            assert await shop.pay(5) == 6
            assert shop.runs == [5, 5]

        @pytest.mark.atasks(faults=faults.lose_reply(shop.resize, times=2))
        def test_lost():
            shop.runs.clear()
            assert shop.resize.sync(7) == 7
            assert shop.runs == [7, 7, 7]

        @pytest.mark.atasks(faults=[faults.duplicate("pay"), faults.kill_worker_during("pay_once")])
        @pytest.mark.asyncio
        async def test_twice():
            from atasks import WorkerLost
            shop.runs.clear()
            assert await shop.pay(9) == 10
            with pytest.raises(WorkerLost, match="its worker died"):
                await shop.pay_once(1)
            while shop.runs != [9, 1, 9] and shop.runs != [9, 9, 1]:
                await asyncio.sleep(0.001)

        @pytest.mark.atasks(leaks=False)
        @pytest.mark.asyncio
        async def test_may_leave():
            shop.call = asyncio.ensure_future(shop.hang())
            await asyncio.sleep(0.01)
        """
    )
    result.assert_outcomes(passed=10)


def test_what_fails(run: Callable[..., pytest.RunResult]) -> None:
    result = run(
        """
        import asyncio
        import pytest
        import shop
        from atasks.contrib import faults

        @pytest.mark.asyncio
        async def test_leak(atasks_loopback):
            assert await shop.add(1, 2) == 3
            shop.call = asyncio.ensure_future(shop.hang())
            shop.task = asyncio.create_task(asyncio.sleep(60), name="sleeper")
            await asyncio.sleep(0.01)

        @pytest.mark.asyncio
        async def test_submitted(atasks_loopback):
            await shop.hang.submit()

        @pytest.mark.atasks(faults=[faults.lose_reply("pey")])
        def test_misspelt():
            shop.add.sync(1, 2)

        @pytest.mark.atasks(faults=[faults.lose_reply("numbers")])
        @pytest.mark.asyncio
        async def test_stream():
            async for _ in shop.numbers(2): pass

        @pytest.mark.atasks(concurency=3)
        def test_marker(): pass

        @pytest.mark.atasks(faults=["pay"])
        def test_faults(): pass

        @pytest.mark.atasks
        def test_both(atasks_worker): pass
        """
    )
    result.assert_outcomes(passed=3, failed=1, errors=6)
    out = result.stdout.str()
    assert re.search(r"'shop.hang', call \w+ is awaited still", out), out
    assert re.search(r"'shop.hang', call \w+ runs still", out), out
    assert "the task 'sleeper' (sleep) has not ended" in out
    assert "the fault 'lose pey' never happened" in out
    assert "is a stream" in out
    assert "the marker atasks takes concurrency=, faults=, leaks=, not concurency=" in out
    assert "faults= takes a list" in out
    assert "not in both" in out


def test_anyio(run: Callable[..., pytest.RunResult]) -> None:
    result = run(
        """
        import anyio, pytest, shop
        from atasks.contrib import faults

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.fixture
        async def three():
            return await shop.add(1, 2)

        async def test_fixture(atasks_loopback, three):
            assert three == 3

        @pytest.mark.atasks(faults=[faults.lose_reply("add")])
        async def test_group(three):
            async with anyio.create_task_group() as group:
                group.start_soon(shop.add, 1, 2)
                group.start_soon(shop.pay, 1)

        async def test_alone(atasks_loopback, atasks_calls):
            assert await shop.pay(1) == 2
            assert atasks_calls.names == ["pay", "add"]

        async def test_leak(atasks_loopback):
            import asyncio
            shop.call = asyncio.create_task(shop.hang())
            await anyio.sleep(0.01)
        """
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*hang* is awaited still*"])


WORKERS = """
    import os
    import pytest
    import shop

    @pytest.mark.asyncio
    async def test_other_process(atasks_worker, atasks_calls):
        assert await shop.pid() != os.getpid()
        assert [n async for n in shop.numbers(3)] == [0, 1, 2]
        assert atasks_calls.names == ["pid", "numbers"]

    def test_plain(atasks_worker):
        assert shop.add.sync(1, 2) == 3

    def test_without():
        import atasks
        with pytest.raises(atasks.NotConnected):
            shop.add.sync(1, 2)
"""


def test_worker_processes(run: Callable[..., pytest.RunResult]) -> None:
    run(WORKERS).assert_outcomes(passed=3)


LEFT = """
    import asyncio, threading
    import pytest
    import shop

    left = []

    @pytest.mark.asyncio(loop_scope="module")
    async def test_task(atasks_worker):
        left.append(asyncio.create_task(shop.hang()))
        await shop.add(1, 2)

    @pytest.mark.asyncio(loop_scope="module")
    async def test_after(atasks_worker):
        assert await shop.add(1, 2) == 3
        left.pop().cancel()

    @pytest.mark.asyncio
    async def test_cancelled(atasks_worker):
        call = asyncio.create_task(shop.hang())
        await shop.add(1, 2)
        call.cancel()

    @pytest.mark.asyncio
    async def test_submitted(atasks_worker):
        await (await shop.hang.submit()).cancel()
        await shop.pay.submit(1)

    @pytest.mark.asyncio
    async def test_runs(atasks_worker):
        await shop.hang.submit()

    def test_runs_of_code_without_a_loop(atasks_worker):
        shop.hang.submit.sync()

    def test_after_runs(atasks_worker):
        assert shop.add.sync(1, 2) == 3

    def test_thread(atasks_worker, atasks_calls):
        threading.Thread(target=shop.hang.sync, daemon=True).start()
        while not atasks_calls.of(shop.hang):
            pass
        assert shop.add.sync(1, 2) == 3
"""


def test_calls_that_are_left_to_worker_processes(run: Callable[..., pytest.RunResult]) -> None:
    result = run(LEFT)
    result.assert_outcomes(passed=8, errors=4)
    out = result.stdout.str()
    left = ["test_task", "test_runs", "test_runs_of_code_without_a_loop", "test_thread"]
    assert re.findall(r"ERROR at teardown of (\w+)", out) == left
    assert len(set(re.findall(r"'shop.hang', call \w+ runs still", out))) == 2
    assert len(set(re.findall(r"'shop.hang', call \w+ is awaited still", out))) == 2


def test_loading_it_imports_nothing_that_is_not_used(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys, pytest, _pytest.config
        import asyncio, logging
        before = set(sys.modules)
        import atasks.contrib.pytest_plugin
        print(sorted(set(sys.modules) - before))
        """
    )
    assert output == "['atasks', 'atasks.contrib', 'atasks.contrib.pytest_plugin']"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: faults.lose_reply(""), "needs the name"),
        (lambda: faults.lose_reply(3), "for an atask or the name of one, not int"),
        (lambda: faults.lose_reply("pay", times=0), "at least 1"),
        (lambda: faults.delay("pay", -1), "0 to 3600 seconds"),
        (lambda: faults.delay("pay", float("nan")), "not NaN"),
        (lambda: faults.kill_worker_during("pay", after="soon"), "number of seconds"),
    ],
)
def test_a_fault_that_cannot_be(make: Callable[[], faults.Fault], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()
