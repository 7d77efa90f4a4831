"""A worker process for the tests of supervisors: does what its arguments say, and needs no broker."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from atasks.supervisor import running_calls
from atasks.supervisor.tether import Tether
from atasks.wire import Call


async def serve(tether: Tether) -> None:
    """Be ready, and drain when released."""
    tether.ready(f"as {tether.number}")
    await tether.released()
    tether.report("drained", os.getpid())


async def hold(tether: Tether, *names: str) -> None:
    """Run calls that never end: one of each of these atasks, in this order."""
    notes = running_calls.installed()
    assert notes is not None
    for number, name in enumerate(names, 1):
        notes.enter(Call(1, f"call-{number}", f"app.{name}", b"", "pickle"))
    await serve(tether)


async def serve_alone(tether: Tether, mark: str) -> None:
    """The first process serves; another one is never ready."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        tether.report("not ready", os.getpid())
        await tether.released()
    else:
        await serve(tether)


async def retire(tether: Tether, mark: str) -> None:
    """Want to be replaced, unless somebody did before."""
    if not Path(mark).exists():
        Path(mark).touch()
        tether.retire("it is old")
        tether.retire("it is older still")
    await serve(tether)


async def refuse(tether: Tether) -> None:
    """Say that no process can serve."""
    tether.failed("there is no broker", 4)
    sys.exit(4)


async def die_once(tether: Tether, mark: str) -> None:
    """The first process dies before it serves."""
    if not Path(mark).exists():
        Path(mark).touch()
        os._exit(9)
    await serve(tether)


async def die(tether: Tether) -> None:
    """Die before it serves."""
    os._exit(9)


async def die_with_a_call(tether: Tether, mark: str) -> None:
    """The first processes die of a call that came before they were ready."""
    path = Path(mark)
    path.write_text("." + (path.read_text() if path.exists() else ""))
    if path.stat().st_size > 6:
        await serve(tether)
    notes = running_calls.installed()
    assert notes is not None
    notes.enter(Call(1, "call-1", "app.early", b"", "pickle"))
    os._exit(9)


async def ready_and_die(tether: Tether) -> None:
    """Die as soon as it serves."""
    tether.ready("for a moment")
    os._exit(9)


async def ignore(tether: Tether) -> None:
    """Do not drain."""
    tether.ready("forever")
    await tether.released()
    tether.report("ignored", os.getpid())
    while True:
        time.sleep(3600)  # noqa: ASYNC251 - this is what it is about


async def write(tether: Tether, lines: str, length: str) -> None:
    """Write long lines to stderr, in pieces, and one that has no end."""
    tether.ready("to write")
    for _ in range(int(lines)):
        for _ in range(int(length)):
            os.write(2, str(tether.number).encode() * 100)
        os.write(2, b"\n")
    os.write(2, b"end")
    tether.report("written")
    await tether.released()


def main() -> None:
    name, *arguments = sys.argv[1:]
    tether = Tether.inherited()
    assert tether is not None
    assert Tether.inherited() is None
    asyncio.run(globals()[name](tether, *arguments))


if __name__ == "__main__":
    main()
