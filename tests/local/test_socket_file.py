"""The place where a hub listens, and obstacles there."""

# Private attributes: `_peer_uid` is replaced: a test has no second user.

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

import atasks
from atasks import AccessRefused, ConnectFailed, InvalidURL, ListenFailed
from atasks.testing import until
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.hub.socket_file import SocketFile, trusts
from tests.faults.history import settled


def test_only_its_user_may_connect(path: str) -> None:
    file = SocketFile(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    file.close()


def test_nothing_is_left_when_it_is_closed(path: str, run_dir: Path) -> None:
    SocketFile(path).close()
    assert list(run_dir.iterdir()) == []


def test_two_hubs_at_one_path(path: str) -> None:
    file = SocketFile(path)
    with pytest.raises(ListenFailed, match=r"hub\.sock: another process serves there; stop it"):
        SocketFile(path)
    assert os.path.exists(path)
    file.close()
    SocketFile(path).close()


def test_a_socket_that_a_dead_process_left_is_taken_over(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    Path(f"{path}.lock").touch()
    file = SocketFile(path)
    file.socket.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    file.close()


def test_a_file_that_is_no_socket_stays(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ListenFailed, match="is no socket; remove it"):
        SocketFile(path)
    assert Path(path).read_text() == "precious"
    assert not os.path.exists(f"{path}.lock")


def test_a_directory_that_does_not_exist(run_dir: Path) -> None:
    with pytest.raises(ListenFailed, match=r"there is no directory .*nowhere; make it"):
        SocketFile(str(run_dir / "nowhere" / "hub.sock"))


def test_a_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def refuse(*_: object) -> int:  # root may write everywhere, so a mode would not do
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ListenFailed, match="is not writable for this user"):
            SocketFile(path)


def test_a_lock_of_another_user(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    Path(f"{path}.lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ListenFailed, match=rf"hub.sock.lock is of another user \(uid {os.getuid()}\)"):
            SocketFile(path)


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "file"])
def test_what_is_no_lock(path: str, kind: str, tmp_path: Path) -> None:
    lock = Path(f"{path}.lock")
    match kind:
        case "link":
            lock.symlink_to(tmp_path / "elsewhere")
        case "directory":
            lock.mkdir()
        case "pipe":
            os.mkfifo(lock)
        case _:
            lock.write_text("of another program")
    with pytest.raises(ListenFailed, match=r"hub.sock.lock is no lock of a server; remove it"):
        SocketFile(path)
    assert lock.exists() or lock.is_symlink(), "it is left alone"


async def test_a_path_that_is_too_long(run_dir: Path) -> None:
    for enter in (atasks.connect, atasks.serve):
        with pytest.raises(InvalidURL, match=r"at most 10[37] bytes on this system, and this one has"):
            async with enter(f"unix://{run_dir}/{'x' * 108}.sock"):
                pass


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("unix://run/app.sock", "three slashes: unix:///run/app.sock"),
        ("unix://", "needs its path"),
        ("unix:///", "needs its path"),
        ("local:///run/app.sock", "did you mean unix:///run/app.sock"),
        ("unix:///run/app.sock?quue=a", "unknown option 'quue'"),
        ("local:?workers=many", "not a number"),
    ],
)
async def test_urls_that_make_no_sense(url: str, message: str) -> None:
    with pytest.raises(InvalidURL, match=message.replace("?", r"\?")):
        async with atasks.connect(url):
            pass


async def test_several_urls_make_no_sense() -> None:
    with pytest.raises(InvalidURL, match="give one URL"):
        async with atasks.connect(["unix:///run/a.sock", "unix:///run/b.sock"]):
            pass


async def test_serving_twice_at_one_path(path: str) -> None:
    async with atasks.serve(f"unix://{path}"):
        with pytest.raises(ListenFailed, match="another process serves there"):
            async with atasks.serve(f"unix://{path}"):
                pass
        async with atasks.serve(f"unix://{path}", hub=False) as second:
            assert second.tasks is not None


async def test_connecting_to_nobody(path: str) -> None:
    with pytest.raises(ConnectFailed, match=r"nothing serves at .*hub.sock: start a server"):
        async with atasks.connect(f"unix://{path}"):
            pass
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with pytest.raises(ConnectFailed, match="nothing serves at"):
        async with atasks.connect(f"unix://{path}"):
            pass


async def test_connecting_to_a_hub_that_does_not_answer(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        with pytest.raises(ConnectFailed, match="does not answer"):
            async with atasks.connect(f"unix://{path}", timeout=0.2):
                pass


async def test_a_socket_that_may_not_be_opened(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", refuse)
    with pytest.raises(AccessRefused, match="belongs to another user"):
        async with atasks.connect(f"unix://{path}"):
            pass


def test_processes_of_this_user_are_trusted() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert trusts(here)


def test_processes_of_other_users_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.getuid()
    monkeypatch.setattr("atasks.transport.backends.local.hub.socket_file._peer_uid", lambda _: mine + 1)
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert not trusts(here)


@pytest.mark.parametrize("side", ["hub.listener", "transport"])
async def test_nothing_is_said_to_other_users(
    monkeypatch: pytest.MonkeyPatch, host: Host, path: str, side: str
) -> None:
    monkeypatch.setattr(f"atasks.transport.backends.local.{side}.trusts", lambda _: False)
    with pytest.raises(ConnectFailed):
        await settled(atasks.connect(f"unix://{path}").__aenter__(), "connecting")
    await until(lambda: host.hub.peers == [], "nobody is connected")
