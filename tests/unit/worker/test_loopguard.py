"""Exceptions that end the event loop of a worker, and those that do not."""

# Private attributes: `asyncio.events._set_running_loop`: an event loop of another kind calls it, and so does the
# one here.

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

import atasks
from tests.unit.serving import serve


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_the_program_itself_raises_ends_it(namespace: str, error: type[BaseException]) -> None:
    """And no call is answered by a loop that ends."""
    endings: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    @atasks.atask(namespace=namespace)
    async def innocent() -> None:
        await asyncio.sleep(60)

    async def call() -> None:
        try:
            await innocent()
        except BaseException as ending:
            endings.append(type(ending).__name__)
            raise

    async def leave() -> None:
        await asyncio.sleep(0.05)
        raise error

    async def main() -> None:
        async with serve(namespace):
            tasks.extend([asyncio.create_task(call()), asyncio.create_task(leave())])
            await asyncio.wait(tasks)

    with pytest.raises(error):
        asyncio.run(main())
    assert endings == ["CancelledError"]
    assert isinstance(tasks[1].exception(), error)


def test_calls_in_a_loop_that_is_torn_down_are_given_back(script: Callable[..., str]) -> None:
    """The program that serves ends; what it ran for others runs elsewhere, at its first attempt."""
    output = script(
        """
        import asyncio, os, sys, subprocess, tempfile
        import atasks
        from atasks import atask

        @atask
        async def work():
            if await mark():
                await asyncio.sleep(60)
            return atasks.current_call().attempt

        async def mark():
            if os.path.exists("begun"):
                return False
            open("begun", "w").close()
            return True

        async def serve(path):
            async with atasks.serve(f"unix://{path}", hub=False, concurrency=1):
                while not os.path.exists("begun"):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                asyncio.get_running_loop().call_soon(sys.exit, 3)
                await asyncio.Event().wait()

        async def main():
            path = tempfile.mkdtemp(prefix="at-", dir="/tmp") + "/hub"
            async with atasks.connect(f"unix://{path}", hub=True):
                call = asyncio.create_task(work())
                server = subprocess.Popen([sys.executable, "script.py", path])
                code = await asyncio.to_thread(server.wait)
                async with atasks.serve(f"unix://{path}", hub=False):
                    print(code, await call)
            os.rmdir(os.path.dirname(path))

        if __name__ == "__main__":
            asyncio.run(serve(sys.argv[1]) if sys.argv[1:] else main())
        """
    )
    assert output == "3 1"


def test_a_second_interrupt_ends_a_program_that_is_in_a_call(script: Callable[..., str]) -> None:
    output = script(
        """
        import asyncio, os, signal
        import atasks
        from atasks import atask

        @atask
        async def stubborn():
            async def child():
                os.kill(os.getpid(), signal.SIGINT)  # asyncio cancels the main task
                os.kill(os.getpid(), signal.SIGINT)  # and then raises here
            await asyncio.create_task(child())

        async def main():
            async with atasks.serve("loopback:", grace=5):
                await stubborn()

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert output == "interrupted"


class NestedLoop(asyncio.SelectorEventLoop):
    """A loop that makes its turns by itself, as programs do that nest event loops."""

    def run_until_complete(self, future: Any) -> Any:
        task = asyncio.ensure_future(future, loop=self)
        asyncio.events._set_running_loop(self)
        try:
            while not task.done():
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio.events._set_running_loop(None)
        return task.result()


@pytest.mark.parametrize("loop_class", [asyncio.SelectorEventLoop, NestedLoop])
def test_who_makes_the_turns_makes_the_last_one(
    namespace: str, loop_class: type[asyncio.SelectorEventLoop]
) -> None:
    """Also after a call has exited, and with and without a worker in the loop."""

    @atasks.atask(namespace=namespace)
    async def leave() -> str:
        asyncio.get_running_loop().call_soon(sys.exit)
        await asyncio.sleep(0.01)
        return "stayed"

    async def main() -> list[str]:
        said = []
        for _ in range(2):
            async with serve(namespace):
                said.append(await leave())
            await asyncio.sleep(0.01)
        return said

    loop = loop_class()
    try:
        assert loop.run_until_complete(main()) == ["stayed", "stayed"]
        assert loop.run_until_complete(asyncio.sleep(0.01, "over")) == "over"
    finally:
        loop.close()
