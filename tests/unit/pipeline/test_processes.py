"""`multiprocess=True`: a process for each worker, which dies with the run."""

from __future__ import annotations

import asyncio
import atexit
import builtins
import contextlib
import gc
import importlib
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from atasks.errors import PipelineError, RemoteTraceback
from atasks.fork_server import server as fork_server
from atasks.fork_server import starting
from atasks.pipeline import WorkerInfo, bind, each, filter, flat_map, group, map, ordered, stage
from atasks.pipeline.flow.processes import Process
from atasks.testing import until
from tests.unit.pipeline.kinds import consume
from tests.unit.pipeline.noted import identity


class Sour(Exception):
    def __init__(self, degree: int, where: str) -> None:
        super().__init__(f"sour in {where}")
        self.degree = degree


def sour_at_five(x: int) -> int:
    if x == 5:
        raise Sour(5, "a process")
    return x


def children() -> list[int]:
    """The processes of stages that there are, those included that nobody has waited for yet."""
    return [child.pid for child in psutil.Process().children(recursive=True) if is_of_a_stage(child)]


def is_of_a_stage(child: psutil.Process) -> bool:
    servers = fork_server.pids()
    if child.pid in servers:
        return False
    try:
        if child.ppid() in servers:
            return child.status() != psutil.STATUS_ZOMBIE  # its server waits for it right behind the program
        return any("atasks.pipeline.flow.child" in word for word in child.cmdline())
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
async def no_processes_left() -> Any:
    yield
    await until(lambda: children() == [])


async def test_each_worker_has_a_process(how: str, tmp_path: Path) -> None:
    def pid(x: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        return os.getpid()

    pids = set(await consume(range(4) | map(pid, multiprocess=True, workers=2), how))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert children() == []


async def test_all_roles_work_in_processes(how: str) -> None:
    seen = range(6) | each(print, multiprocess=True, bind=bind(end=""))
    assert await consume(seen, how) == []
    run = (
        range(6)
        | map(lambda x: x + 1, multiprocess=True, workers=2)
        | filter(lambda x: x % 2, multiprocess=True)
        | flat_map(range, multiprocess=True)
        | ordered()
    )
    assert await consume(run, how) == [0, 0, 1, 2, 0, 1, 2, 3, 4]


def total(items: Iterator[int]) -> int:
    return sum(items)


def running(items: Iterator[int]) -> Iterator[int]:
    yield from itertools.accumulate(items)


async def test_a_join_in_a_process_gets_the_stream(how: str) -> None:
    assert await consume(range(10) | stage(total, join=True, multiprocess=True), how) == [45]
    run = range(5) | map(int) | stage(running, join=True, branch=True, multiprocess=True)
    assert await consume(run, how) == [0, 1, 3, 6, 10]


async def test_an_error_upstream_of_a_join_in_a_process_is_the_same() -> None:
    with pytest.raises(Sour) as raised:
        await (range(10) | map(sour_at_five) | stage(total, join=True, multiprocess=True))
    assert raised.value.__notes__ == ["in stage 'sour_at_five', at item (5,)"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_exception_arrives_as_it_was_raised(how: str, workers: int) -> None:
    with pytest.raises(Sour, match="sour in a process") as raised:
        await consume(range(50) | map(sour_at_five, multiprocess=True, workers=workers), how)
    assert raised.value.degree == 5
    assert raised.value.__notes__[-1] == "in stage 'sour_at_five', at item (5,)"
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    assert "in sour_at_five" in str(raised.value.__cause__)


async def test_skip_errors_keeps_the_process() -> None:
    run = range(8) | map(sour_at_five, multiprocess=True, skip_errors=True)
    assert await run == [0, 1, 2, 3, 4, 6, 7]


async def test_two_throttled_process_stages_do_not_hang() -> None:
    run = range(200) | map(identity, multiprocess=True, workers=2, throttle=1)
    run = run | map(identity, multiprocess=True, workers=2, throttle=1)
    async with asyncio.timeout(60):
        assert await run == list(range(200))


async def test_leaving_ends_processes(how: str) -> None:
    def leave() -> None:
        for _ in itertools.count() | map(identity, multiprocess=True, workers=2):
            break

    if how == "for":
        await asyncio.to_thread(leave)
    else:
        async for _ in itertools.count() | map(identity, multiprocess=True, workers=2):
            break


async def test_cancelling_ends_a_process_that_is_busy() -> None:
    task = asyncio.ensure_future(consume([3600] | map(time.sleep, multiprocess=True), "await"))
    await until(lambda: len(children()) == 1)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    assert children() == []


async def test_a_process_that_takes_too_long_is_replaced() -> None:
    run = [0, 3600, 0] | map(time.sleep, multiprocess=True, timeout=3, skip_errors=True)
    assert await run == [None, None]
    with pytest.raises(TimeoutError):
        await ([3600] | map(time.sleep, multiprocess=True, timeout=0.5))


def die(x: int) -> int:
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


async def test_a_process_that_dies_is_an_error_and_is_replaced() -> None:
    with pytest.raises(
        PipelineError, match=r"the process of stage 'die' ended during a call \(exit code -9\)"
    ) as raised:
        await (range(4) | map(die, multiprocess=True))
    assert raised.value.__notes__ == ["in stage 'die', at item (2,)"]
    assert await (range(4) | map(die, multiprocess=True, skip_errors=True)) == [0, 1, 3]


async def test_hooks_run_in_the_process_also_when_it_is_ended(tmp_path: Path) -> None:
    def start(worker_info: WorkerInfo) -> dict[str, Any]:
        (tmp_path / f"start-{worker_info.index}").touch()
        return {"pid": os.getpid()}

    def end(worker_info: WorkerInfo, pid: int) -> None:
        assert pid == os.getpid()
        with (tmp_path / f"end-{worker_info.index}").open("x"):
            pass

    def work(x: int, pid: int) -> int:
        assert pid == os.getpid()
        if x < 0:
            time.sleep(3600)
        return x

    options: dict[str, Any] = {"multiprocess": True, "workers": 2, "on_start": start, "on_done": end}
    assert await (range(5) | map(work, **options)) == list(range(5))
    names = ["end-0", "end-1", "start-0", "start-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in tmp_path.iterdir():
        path.unlink()
    task = asyncio.ensure_future(consume([-1, -1] | map(work, **options), "await"))
    await until(lambda: len(list(tmp_path.iterdir())) == 2)
    await asyncio.sleep(0.2)  # so that they are most likely amid their calls
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


async def test_what_cannot_be_pickled_on_the_way_is_an_error_of_the_item() -> None:
    with pytest.raises(TypeError, match="cannot pickle 'generator'") as raised:
        await ([1, (n for n in range(3))] | map(identity, multiprocess=True))
    # from 3.14 on, Python's own notes of where it was in the pickle come before
    assert raised.value.__notes__[-1] == "in stage 'identity', at item (1,)"
    assert [note for note in raised.value.__notes__[:-1] if not note.startswith("when serializing")] == []
    with pytest.raises(TypeError, match="cannot pickle 'generator'"):
        await ([1] | map(lambda x: (n for n in range(x)), multiprocess=True))


async def test_a_branch_over_what_cannot_be_iterated_names_the_function() -> None:
    for options in ({"multiprocess": True}, {"inline": True}, {}):
        with pytest.raises(TypeError, match="'len' is a branch and returned int"):
            await (["x"] | flat_map(len, **options))


async def test_a_member_of_a_group_may_run_in_a_process() -> None:
    run = range(3) | group(stage(identity, multiprocess=True), str)
    assert await run == [(0, "0"), (1, "1"), (2, "2")]


async def test_a_child_ends_with_its_parent(script: Any, tmp_path: Path) -> None:
    output = await asyncio.to_thread(
        script,
        """
        import os, signal, subprocess, sys, time
        program = '''
        import os, time
        from atasks.pipeline import map
        def pid(x):
            print(os.getpid(), flush=True)
            return x
        if __name__ == "__main__":
            for _ in [1, 2] | map(pid, multiprocess=True):
                time.sleep(60)
        '''
        import textwrap
        parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
        print(parent.stdout.readline().decode().strip())
        parent.kill()
        parent.communicate()
        """,
    )
    await until(lambda: not psutil.pid_exists(int(output)))


def test_a_script_without_a_guard_works(script: Any) -> None:
    output = script(
        """
        from atasks.pipeline import map

        class Point:
            def __init__(self, x):
                self.x = x

        def move(point):
            return Point(point.x + 1)

        print([type(p) is Point and p.x for p in [Point(1), Point(2)] | map(move, multiprocess=True)])
        """
    )
    assert output == "[2, 3]"


def slow_start() -> dict[str, Any]:
    time.sleep(1.2)
    return {}


def nap_on_zero(x: int) -> int:
    if x % 3 == 0:
        time.sleep(60)
    return x


def naps_on_zero(x: int) -> Iterator[int]:
    yield nap_on_zero(x)
    yield x


async def test_the_start_of_another_process_is_not_the_time_of_the_next_item() -> None:
    options: dict[str, Any] = {"multiprocess": True, "timeout": 0.8, "skip_errors": True, "on_start": slow_start}
    assert await (range(7) | map(nap_on_zero, **options)) == [1, 2, 4, 5]
    assert await (range(4) | flat_map(naps_on_zero, **options)) == [1, 1, 2, 2]
    member = stage(nap_on_zero, multiprocess=True, timeout=0.8, on_start=slow_start)
    assert await (range(3) | group(member, str, skip_errors=True)) == [(None, "0"), (1, "1"), (2, "2")]


async def test_another_process_that_does_not_start_ends_the_run(tmp_path: Path) -> None:
    def starts_once() -> None:
        with (tmp_path / "started").open("x"):
            pass

    run = range(4) | map(nap_on_zero, multiprocess=True, timeout=1, skip_errors=True, on_start=starts_once)
    with pytest.raises(FileExistsError) as raised:
        await run
    assert raised.value.__notes__[-1] == "in stage 'nap_on_zero'"


async def test_no_item_is_lost_to_a_process_that_died_between_two() -> None:
    items = aiter([1, 2, 3] | map(identity, multiprocess=True, throttle=1, skip_errors=True))
    assert await anext(items) == 1
    await asyncio.sleep(0.2)  # the second one waits for room behind the first
    found = [await anext(items)]
    await asyncio.sleep(0.2)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    found += [item async for item in items]
    assert found == [2, 3]


def interrupted(number: int) -> int:
    with subprocess.Popen(["sleep", "10"]) as program:
        program.send_signal(number)
        return program.wait()


async def test_programs_that_a_function_starts_can_be_interrupted() -> None:
    """A process of a stage does nothing at a Ctrl-C, but what it starts does not inherit that."""
    assert await ([signal.SIGINT, signal.SIGTERM] | map(interrupted, multiprocess=True)) == [-2, -15]


class Unreadable:
    """Can be pickled, and not read again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def unreadable_at_150(x: int) -> Any:
    return Unreadable() if x == 150 else x


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_result_that_cannot_be_read_costs_its_own_item(workers: int) -> None:
    run = range(300) | map(unreadable_at_150, multiprocess=True, workers=workers, skip_errors=True)
    assert await run == [x for x in range(300) if x != 150]


class Memory:
    """An object that pickles its memory as arrays do: without a copy, and as writable as it is."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Memory, (pickle.PickleBuffer(self.memory),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and bytes(self.memory) == bytes(other.memory)

    __hash__ = None  # type: ignore[assignment]


LARGE = os.urandom(200_000)
LARGE_VALUES = [
    LARGE,
    bytearray(LARGE),
    [LARGE, {"a": bytearray(LARGE)}, LARGE[:10]],
    "\u00e4" * 200_000,
    Memory(LARGE),
    [Memory(bytearray(LARGE)), Memory(LARGE[:100]), Memory(memoryview(LARGE).cast("B", (1000, 200)))],
]


async def test_large_values_come_back_as_they_went() -> None:
    found = await consume(LARGE_VALUES | map(identity, multiprocess=True), "await")
    assert found == LARGE_VALUES
    assert list(builtins.map(type, found)) == list(builtins.map(type, LARGE_VALUES))
    assert type(found[5][0].memory) is bytearray  # writable
    assert type(found[4].memory) is bytes


class LargeUnreadable:
    """Large, and refuses to be read in another process, before all of it was read."""

    def __init__(self, refuse: bool) -> None:
        if refuse:
            raise ValueError("not here")

    def __reduce__(self) -> Any:
        return (first, (Refusing(), LARGE, LARGE))


class Refusing:
    def __reduce__(self) -> Any:
        return LargeUnreadable, (True,)


def first(*values: Any) -> Any:
    return values[0]


async def test_what_cannot_be_read_leaves_the_next_item_readable() -> None:
    """Behind the part that raises 400 000 bytes are still to come."""
    items = [1, LargeUnreadable(False), LARGE, LargeUnreadable(False), 2]
    found = await consume(items | map(identity, multiprocess=True, skip_errors=True), "await")
    assert found == [1, LARGE, 2]


def answer_by_half(x: Any) -> Any:
    """End this process in the middle of its answer."""
    if x == 2:
        for descriptor in range(3, 50):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as link:
                link.sendall((10_000_000).to_bytes(8, "big") + bytes(300_000))
                os._exit(3)  # the first one is the way to the worker
    return x


async def test_a_process_that_dies_in_the_middle_of_its_answer() -> None:
    with pytest.raises(PipelineError, match="ended during a call"):
        await asyncio.wait_for(consume([1, 2, 3] | map(answer_by_half, multiprocess=True), "await"), 60)


async def test_a_process_imports_little_before_its_first_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "ask", lambda *_, **__: None)  # which imports more, once for all processes
    (tmp_path / "imports_little.py").write_text("import sys\n\ndef loaded(_):\n    return list(sys.modules)\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("imports_little").loaded
    (found,) = await ([1] | map(function, multiprocess=True))
    names = set(found)
    assert "atasks.pipeline.flow.child" in names
    slow = {"asyncio", "inspect", "dataclasses", "json", "msgspec", "cloudpickle", "atasks.codecs.base"}
    # The log of a process takes them with Python 3.14.
    program = "import logging, sys; print(*sys.modules)"
    logs = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", program], text=True)
    assert not names & slow - {*logs.split()}


def collects(_: int) -> tuple[bool, bool]:
    return gc.isenabled(), gc.get_freeze_count() > 0


async def test_the_garbage_collector_of_a_process_looks_at_what_calls_make_alone() -> None:
    assert await ([1] | map(collects, multiprocess=True)) == [(True, True)]


async def test_a_process_whose_python_begins_without_a_garbage_collector_stays_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import gc\n\ngc.disable()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert await ([1] | map(collects, multiprocess=True)) == [(False, True)]


async def test_the_end_of_a_process_does_not_hold_up_the_stage_behind_it(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    seen = tmp_path / "seen"

    def linger() -> None:
        def leave() -> None:
            time.sleep(0.5)
            gone.touch()

        atexit.register(leave)

    def look() -> None:
        seen.write_text(str(gone.exists()))

    first = map(identity, multiprocess=True, on_start=linger)
    assert await ([1] | first | map(identity, on_done=look)) == [1]
    assert seen.read_text() == "False"
    assert gone.exists(), "the run waits for its processes"


def linger_long() -> None:
    atexit.register(time.sleep, 1)


def ended_badly() -> None:
    raise ValueError("ended badly")


@pytest.mark.parametrize("how", ["alone", "in a group"])
def test_the_end_of_the_loop_waits_for_a_process_that_ends(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Also if the run is cancelled when it has nothing else to wait for."""
    reaping = threading.Event()
    reap = Process.reap

    def told(process: Process) -> None:
        reaping.set()
        reap(process)

    monkeypatch.setattr(Process, "reap", told)
    slow = map(identity, workers=1, multiprocess=True, on_done=linger_long)

    async def run() -> None:
        stages = slow if how == "alone" else group(slow)
        task = asyncio.ensure_future(consume([1] | stages, "await"))
        await until(reaping.is_set)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert not children()


@pytest.mark.parametrize("how", ["first", "last"])
def test_a_member_of_a_group_that_ends_badly_leaves_no_process_of_another(how: str) -> None:
    members = [
        map(identity, multiprocess=True, on_done=linger_long),
        map(identity, multiprocess=True, on_done=ended_badly),
    ]

    async def run() -> None:
        with pytest.raises(ValueError, match="ended badly"):
            await ([1] | group(*(members if how == "last" else members[::-1])))
        assert not children()

    asyncio.run(run())


CONFINED = """
import resource, sys

def stop_imports():
    sys.meta_path.clear()

def stop_opening():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def as_list(x):
    return [x]

def divide(x):
    return x / 0

def as_list_without_imports(x):
    stop_imports()
    return [x]

def as_list_without_opening(x):
    stop_opening()
    return [x]
"""


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that imports nothing of atasks."""
    (tmp_path / "confined.py").write_text(CONFINED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "confined", raising=False)
    return importlib.import_module("confined")


@pytest.mark.parametrize("confine", ["stop_imports", "stop_opening"])
async def test_a_process_that_on_start_confines_answers_as_others_do(confined: Any, confine: str) -> None:
    options: Any = {"multiprocess": True, "workers": 1, "on_start": getattr(confined, confine)}
    assert await (range(2) | map(confined.as_list, **options)) == [[0], [1]]
    with pytest.raises(ZeroDivisionError):
        await ([5] | map(confined.divide, **options))


@pytest.mark.parametrize("function", ["as_list_without_imports", "as_list_without_opening"])
async def test_a_process_that_its_function_confines_says_what_it_cannot_do(confined: Any, function: str) -> None:
    with pytest.raises(PipelineError, match=r"cannot import what it needs to answer: (ModuleNotFound|OS)Error"):
        await ([1] | map(getattr(confined, function), multiprocess=True, workers=1))
