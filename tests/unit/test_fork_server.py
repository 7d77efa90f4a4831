"""The children that a fork server forks are what interpreters are that are started where it cannot be."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from atasks.fork_server import in_loop, server, starting
from atasks.fork_server.forked import Forked
from atasks.fork_server.starting import Child, Spawned
from atasks.fork_server.surroundings import surroundings
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are fork servers on Linux alone")

MODULES = ["atasks.pipeline.flow.child"]
SAYS = "import sys; at, *sys.argv = sys.argv[1:]; import os, socket; channel = socket.socket(fileno=int(at))\n"
"""The beginning of the programs here: `channel` leads to the test."""


def start(text: str, *words: str) -> tuple[Child, socket.socket]:
    """A child that runs the text, and the way to it."""
    here, there = socket.socketpair()
    with there:
        child = starting.start(MODULES, SAYS + textwrap.dedent(text), words, [there.fileno()])
    return child, here


def said(text: str, *words: str) -> str:
    """Return the text that a child sends, whose program this is."""
    child, channel = start(text, *words)
    with channel, channel.makefile() as sent:
        heard = sent.read()
    assert child.wait(30) == 0
    child.close()
    return heard


def server_of(child: Child) -> int:
    """Return the number of the server that has forked it."""
    assert isinstance(child, Forked)
    return psutil.Process(child.pid).ppid()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """That process is stopped meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    """No other file can be opened meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture(params=["forked", "spawned"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a child can be started."""
    if request.param == "spawned":
        monkeypatch.setattr(starting, "ask", lambda *_, **__: None)
    return str(request.param)


def ways(how: str) -> None:
    """Hold the next child to be started so."""
    child, channel = start("")
    with channel:
        assert type(child) is {"forked": Forked, "spawned": Spawned}[how]
        child.wait(30)
        child.close()


def test_two_children_have_one_server(how: str) -> None:
    parents = {said("channel.sendall(str(os.getppid()).encode())") for _ in range(2)}
    assert len(parents) == 1
    assert (parents == {str(os.getpid())}) == (how == "spawned")


@pytest.mark.parametrize("end", ["sys.exit(7)", "os.kill(os.getpid(), 9)", "os.abort()", "raise SystemExit"])
def test_exit_codes(how: str, end: str) -> None:
    child, channel = start(end)
    with channel:
        code = {"sys.exit(7)": 7, "raise SystemExit": 0, "os.abort()": -6}.get(end, -9)
        assert child.wait(30) == child.poll() == child.returncode == code
    child.kill()  # which is too late
    child.close()


def test_a_child_is_waited_for_terminated_and_killed(how: str) -> None:
    child, channel = start("import time; channel.send(b'.'); time.sleep(3600)")
    with channel:
        channel.recv(1)
        assert child.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        child.terminate()
        assert child.wait(30) == -signal.SIGTERM
        child.close()
    child, channel = start("import time; channel.send(b'.'); time.sleep(3600)")
    with channel:
        channel.recv(1)
        child.kill()
        assert child.wait(30) == -signal.SIGKILL
        child.close()


def test_many_threads_start_children(how: str) -> None:
    found: list[str] = []

    def one(number: int) -> None:
        found.append(said("channel.sendall(sys.argv[0].encode())", str(number)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [str(number) for number in range(8)]


def test_a_child_has_what_it_is_sent_and_nothing_else(how: str) -> None:
    """Neither sockets of the program, nor those of other children or of the server."""
    ours, theirs = socket.socketpair()
    other, channel = start("channel.recv(1)")
    with ours, theirs, channel:
        ways(how)
        found = said("kinds = os.popen(f'ls -l /proc/{os.getpid()}/fd').read()\nchannel.sendall(kinds.encode())")
        assert (found.count("socket:"), found.count("/dev/null"), found.count("anon_inode")) == (1, 1, 0), found
        channel.send(b".")
        assert other.wait(30) == 0
        other.close()


def _chdir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def _environ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_TEST", str(folder))


def _zone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")


CHANGES = {"directory": _chdir, "environment": _environ, "time zone": _zone}
LOOK = """
import resource, time
found = [os.getcwd(), os.environ.get("OF_THE_TEST"), time.strftime("%z", time.localtime(0)), os.umask(0)]
found += [resource.getrlimit(resource.RLIMIT_CORE), os.getpgrp(), os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0)]
import signal
found += [signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGINT), os.sched_getaffinity(0)]
found += [signal.getsignal(signal.SIGCHLD), sys.flags, sys.argv, os.read(0, 1)]
channel.sendall(repr(found).encode())
"""


@pytest.mark.parametrize("change", CHANGES)
def test_a_child_has_what_its_starter_has_then(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways("forked")
    CHANGES[change](tmp_path, monkeypatch)
    ways("forked")
    forked = said(LOOK, "a", "b")
    monkeypatch.setattr(starting, "ask", lambda *_, **__: None)
    assert forked == said(LOOK, "a", "b")


def test_a_mask_and_limits_of_its_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    ways("forked")
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    before = os.umask(0o27), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, limit[1]))
        ways("forked")
        forked = said(LOOK)
        monkeypatch.setattr(starting, "ask", lambda *_, **__: None)
        assert forked == said(LOOK)
        assert "SIGUSR1" in forked
    finally:
        os.umask(before[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, before[1])
        signal.signal(signal.SIGINT, handler)
        resource.setrlimit(resource.RLIMIT_CORE, limit)


def test_output_goes_where_that_of_its_starter_goes_then(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    said("print('to stdout'); print('to stderr', file=sys.stderr)")
    assert capfd.readouterr() == ("to stdout\n", "to stderr\n")


def test_modules_that_have_come_meanwhile_are_found(how: str, tmp_path: Path) -> None:
    for name in ("come_first", "come_second"):
        (tmp_path / f"{name}.py").write_text("")
        said(
            "sys.path.insert(0, sys.argv[0]); import importlib; importlib.import_module(sys.argv[1])",
            str(tmp_path),
            name,
        )


def test_a_request_that_is_too_long_starts_an_interpreter() -> None:
    child, channel = start("", *(f"{number}" * 1000 for number in range(100, 130)))
    with channel:
        assert type(child) is Spawned
        child.wait(30)


def test_a_server_that_is_killed_takes_no_child_along() -> None:
    child, channel = start("channel.send(channel.recv(1))")
    with channel:
        assert isinstance(child, Forked)
        pid = server_of(child)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: psutil.Process(child.pid).ppid() != pid, "the server has ended")
        channel.send(b"!")
        assert channel.recv(1) == b"!"
        assert child.wait(30) == 255  # nobody knows
        child.close()
    assert said("channel.sendall(str(os.getppid()).encode())") not in (str(pid), str(os.getpid()))


def test_a_child_for_whose_number_no_descriptor_is_free_is_killed() -> None:
    """And no other one is started, which would have the same channel."""
    ways("forked")
    here, there = socket.socketpair()
    with here, there:
        text = SAYS + "channel.send(b'.'); import time; time.sleep(3600)"
        child = server.ask(MODULES, text, [], [there.fileno()], session=False)
        there.close()
        assert child is not None
        assert here.recv(1) == b"."
        with no_descriptor_free(), pytest.raises(OSError, match="Too many open files"):
            child.begin()
        assert here.recv(1) == b""
    ways("forked")


def test_a_server_that_is_stopped_keeps_no_channel_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed, and an interpreter takes the place of the child."""
    monkeypatch.setattr(server, "_unfit", None)
    child, channel = start("channel.recv(1)")
    with channel:
        os.kill(server_of(child), signal.SIGSTOP)
        monkeypatch.setattr(Forked.begin, "__defaults__", (0.2,))
        ours, there = socket.socketpair()
        with ours, there:
            instead = starting.start(MODULES, "", [], [there.fileno()])
            there.close()
            assert type(instead) is Spawned
            assert instead.wait(30) == 0
            ours.settimeout(10)
            assert ours.recv(1) == b""
    child.wait(30)
    child.close()


def test_a_stopped_server_blocks_nobody() -> None:
    child, channel = start("channel.recv(1)")
    asked = []
    with channel, stopped(server_of(child)):
        while (other := server.ask(MODULES, "", ["long" * 1000], [], session=False)) is not None:
            asked.append(other)
    for each in asked:
        assert each.begin()
        assert each.wait(30) == 0
        each.close()
    child.wait(30)
    child.close()


async def test_the_end_of_a_child_whose_server_is_stopped_blocks_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_loop, "CODE_PATIENCE", 0.3)
    child = await in_loop.fork(MODULES, "import time; time.sleep(3600)", [], [])
    assert child is not None
    with stopped(server_of(child)):
        child.kill()
        ended = asyncio.create_task(in_loop.ended(child))
        turns = 0
        while not ended.done():
            turns += 1
            await asyncio.sleep(0.01)
        assert turns > 5
        assert await ended == 255  # nobody knows
    child.close()


def test_threads_that_wait_for_one_child_have_its_exit_code() -> None:
    child, channel = start("channel.recv(1); sys.exit(7)")
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(child.wait(30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    channel.close()
    for thread in threads:
        thread.join()
    assert codes == [7] * 4
    child.close()


def test_a_child_that_nobody_waits_for_ends_silently(capfd: pytest.CaptureFixture[str]) -> None:
    first, channel = start("channel.recv(1)")
    here, there = socket.socketpair()
    with channel, here:
        with there, stopped(server_of(first)):
            child = server.ask(MODULES, "print('runs')", [], [there.fileno()], session=False)
            assert child is not None
            child.close()
        assert here.recv(1) == b""
    assert first.wait(30) == 0
    first.close()
    assert capfd.readouterr() == ("", "")


def test_a_ctrl_c_ends_no_server_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_TEST", "a server of its own")
    before = server.pids()
    child = server.ask(MODULES, "", [], [], session=False)
    assert child is not None
    (pid,) = server.pids() - before
    os.kill(pid, signal.SIGINT)
    assert child.begin()
    assert child.wait(30) == 0
    child.close()


def test_there_is_no_server_where_none_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_unfit", None)
    monkeypatch.setattr("atasks.fork_server.server._Server.may_be_seen", lambda _: False)
    ways("spawned")
    before = server.pids()
    ways("spawned")
    assert server.pids() <= before


def test_a_server_is_in_no_directory_of_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that file systems can be unmounted."""
    monkeypatch.setenv("OF_THE_TEST", "a server of its own")
    monkeypatch.chdir(tmp_path)
    child, channel = start("channel.recv(1)")
    with channel:
        assert os.readlink(f"/proc/{server_of(child)}/cwd") == "/"
    child.wait(30)
    child.close()


def test_the_surroundings_of_a_thread_with_half_a_character_in_its_name() -> None:
    found = []

    def look() -> None:
        ctypes.CDLL(None).prctl(15, b"x" * 14 + "ü".encode(), 0, 0, 0)  # the kernel keeps 15 bytes
        found.append(surroundings())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [surroundings()]


def test_the_surroundings_tell_of_scheduling_where_the_c_library_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of musl fail."""
    before = surroundings()
    policy = os.sched_getscheduler(0)
    monkeypatch.delattr(os, "sched_getscheduler")
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        assert surroundings() != before
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    assert surroundings() == before


PROGRAM = """
import os, sys, warnings
from atasks.pipeline import map

def parent(_):
    return os.getppid()

def may_make(path):
    try:
        return bool(open(path, 'x'))
    except OSError:
        return False

if __name__ == "__main__":
    warnings.simplefilter("error")
    (found,) = [1] | map(parent, multiprocess=True)
    print(os.getpid(), found, flush=True)
"""


def run(tmp_path: Path, program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "program.py"]
    path = os.pathsep.join([str(tmp_path), str(Path(server.__file__).parents[2])])
    environ = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path / "tmp"), **environ}
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_server_ends_with_its_program(tmp_path: Path) -> None:
    done = run(tmp_path, PROGRAM)
    assert (done.stderr, done.returncode) == ("", 0)
    program, parent = map(int, done.stdout.split())
    assert program != parent
    assert not psutil.pid_exists(parent)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_server_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    done = run(tmp_path, PROGRAM + "    os.kill(os.getpid(), 9)\n")
    assert (done.stderr, done.returncode) == ("", -9)
    parent = int(done.stdout.split()[1])
    wait_until(lambda: not psutil.pid_exists(parent), "the server has ended", 5)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_server_with_threads_forks_nothing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    )
    done = run(tmp_path, PROGRAM)
    assert (done.stderr, done.returncode) == ("", 0)
    program, parent = map(int, done.stdout.split())
    assert program == parent


def test_a_forked_program_has_a_server_of_its_own(tmp_path: Path) -> None:
    fork = """
    if os.fork():
        os.wait()
    (found,) = [1] | map(parent, multiprocess=True)
    print(os.getpid(), found, flush=True)
"""
    done = run(tmp_path, PROGRAM + fork)
    assert (done.stderr, done.returncode) == ("", 0)
    pids = [int(word) for word in done.stdout.split()]
    assert len(set(pids)) == 4
    assert pids[1] == pids[5], "the first server serves its program still"


def test_a_program_that_gives_up_rights_has_no_child_with_them(tmp_path: Path) -> None:
    """Also if the kernel does not say that it has given them up, as with Landlock."""
    confine = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    (found,) = [1] | map(parent, multiprocess=True)
    print(found, flush=True)
    rights = ctypes.c_uint64(1 << 8)  # to make files
    ruleset = libc.syscall(444, ctypes.byref(rights), 8, 0)
    if ruleset < 0 or libc.syscall(446, ruleset, 0):
        sys.exit(77)
    os.close(ruleset)
    (found,) = ['made'] | map(may_make, multiprocess=True)
    print(found)
"""
    done = run(tmp_path, PROGRAM + confine)
    if done.returncode == 77:
        pytest.skip("no Landlock here")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.split()[-1] == "False"


def test_a_file_in_the_place_of_stdout_has_no_output_of_a_child(tmp_path: Path) -> None:
    program = """
from atasks.pipeline import map

def say(_):
    print("said", flush=True)

if __name__ == "__main__":
    os.close(1)
    with open("data", "w") as file:
        assert file.fileno() == 1
        assert list([1] | map(say, multiprocess=True)) == [None]
"""
    done = run(tmp_path, "import os" + program)
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "data").read_text() == ""


def test_a_server_with_a_child_ends_with_its_program(tmp_path: Path) -> None:
    program = """
import socket
from atasks.fork_server import server, starting
here, there = socket.socketpair()
for turn in ("1", "2"):
    os.environ["TURN"] = turn
    text = "import os, socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"
    child = starting.start([], text, [], [there.fileno()])
print(*server.pids())
"""
    done = run(tmp_path, "import os" + program)
    assert (done.stderr, done.returncode) == ("", 0)
    pids = done.stdout.split()
    assert len(pids) == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)
