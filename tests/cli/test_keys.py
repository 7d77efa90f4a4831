"""`atasks keys`: what it prints, and what it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from atasks.signing import keyfile
from tests.cli.app import App
from tests.cli.shell import Shell
from tests.keys import KeyFiles


def test_a_new_key_is_a_line_for_a_file(shell: Shell) -> None:
    first, second = (shell.run("keys", "new", "shop", "serve", "tasks=shop.*") for _ in range(2))
    assert (first.code, first.err) == (0, "")
    assert first.out != second.out
    ((key,)) = keyfile.parse(first.out, "here")
    assert key.describe() == "shop serve tasks=shop.*"
    assert shell.run("keys", "new", "Shop").line() == "the name of a key has 1 to 32 of a-z, 0-9, dot and hyphen"
    refused = shell.run("keys", "new", "shop", "sevre")
    assert refused.code == 2
    assert refused.line().endswith("did you mean serve?")


def test_a_file_is_checked(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "shop.keys"
    path.write_text(f"{keyfile.new_line('w', 'serve')}\n{keyfile.new_line('shop', 'queues=a,b')}\n")
    path.chmod(0o600)
    checked = shell.run("keys", "check", str(path))
    assert (checked.code, checked.err) == (0, "")
    assert checked.out == "w serve  (seals)\nshop queues=a,b\n"
    path.chmod(0o644)
    refused = shell.run("keys", "check", str(path))
    assert refused.code == 2
    assert refused.line().endswith(f"chmod 6{0 if os.geteuid() else 4}0 {path}")
    path.chmod(0o600)
    path.write_text("shop hunter2!")
    refused = shell.run("keys", "check", str(path))
    assert refused.code == 2
    assert "line 1: the secret is not Base64" in refused.line()
    assert "hunter2" not in refused.err


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    folder = tmp_path / "keys"
    folder.mkdir()
    return KeyFiles(folder, shop="", bank="")


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one", "two"])
def test_a_server_and_its_clients_have_keys(app: App, keys: KeyFiles, options: tuple[str, ...]) -> None:
    server = app.start("--keys", str(keys.worker), "-v", *options)
    server.wait_for("Ctrl-C to drain")
    add = ("add", "-o", "args=[1, 2]")
    done = app.call(*add, "--keys", str(keys.caller("shop"))).finish()
    assert (done.code, done.out) == (0, "3\n")
    app.env["ATASKS_KEYS"] = str(keys.caller("bank"))
    assert app.call(*add).finish().out == "3\n"
    stranger = app.call(*add, "--keys", str(keys.stranger))
    stranger.wait_for("has answered the key 'stranger'")
    stranger.close()
    # a line that is removed counts until the file is read again
    bank = keys.lines.pop("bank")
    keys.update()
    assert app.call(*add).finish().out == "3\n"
    server.signal(signal.SIGHUP)
    for _ in range(max(1, len(options))):
        server.wait_for("2 keys were read")
    former = app.call(*add)
    former.wait_for("has answered the key 'bank'")
    former.close()
    assert app.call(*add, "--keys", str(keys.caller("shop"))).finish().out == "3\n"
    err = app.end(server)
    for line in (keys.own, bank, *keys.lines.values()):
        assert line.split()[1] not in err


def test_a_server_without_a_worker_s_key_says_what_to_do(app: App, keys: KeyFiles) -> None:
    path = keys.caller("shop")
    refused = app.start("--keys", str(path)).finish()
    assert refused.code == 2
    assert "put the worker's own key first, with the word serve" in refused.line()
    refused = app.start("--keys", str(keys.folder / "no.keys")).finish()
    assert refused.code == 2
    assert "No such file" in refused.line()
    refused = app.call("add", "--unsealed", "accept").finish()
    assert refused.code == 2
    assert refused.line() == "--unsealed is for --mode server, and this is --mode client: leave it out"


def test_a_server_may_accept_what_has_no_seal(app: App, keys: KeyFiles) -> None:
    server = app.start("--keys", str(keys.worker), "--unsealed", "accept")
    server.wait_for("Ctrl-C to drain")
    add = ("add", "-o", "args=[1, 2]")
    assert app.call(*add).finish().out == "3\n"
    assert app.call(*add, "--keys", str(keys.caller("shop"))).finish().out == "3\n"
    app.end(server)
