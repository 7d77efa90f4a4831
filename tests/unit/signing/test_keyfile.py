"""Files of keys: what is read from them, and what is refused."""

# Private attributes: `keyfile._check` is given the owner and the mode of a file that a test cannot make.

from __future__ import annotations

import base64
import logging
import os
import time
from pathlib import Path

import pytest

from atasks import InvalidKeys
from atasks.signing import Keyring, keyfile, keyring

SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
OTHER = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of keys, as it should be."""
    path = tmp_path / "a file.keys"
    path.write_text(f"shop {SECRET}\n")
    path.chmod(0o600)
    return path


def test_keys_of_a_file(file: Path) -> None:
    file.write_text(
        f"# the keys of a worker\n\nw {SECRET} serve\n"
        f"  shop.web-1\t{OTHER} tasks=shop.*,web.index queues=slow max_attempts=3 encrypt\n"
    )
    (worker, shop), _ = keyfile.read(file)
    assert worker.describe() == "w serve"
    assert worker.secret == bytes(range(32))
    assert shop.describe() == "shop.web-1 encrypt tasks=shop.*,web.index queues=slow max_attempts=3"
    assert shop.secret == bytes(range(32, 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("shop", "line 1: a line reads NAME SECRET"),
        (f"Shop {SECRET}", "line 1: the name of a key"),
        (f"{'x' * 33} {SECRET}", "line 1: the name of a key"),
        (f"sh_p {SECRET}", "line 1: the name of a key"),
        ("shop hunter2!", "line 1: the secret is not Base64"),
        (f"shop {SECRET[:-4]}", "line 1: the secret of key 'shop' has 29 bytes: at least 32"),
        (f"shop {'A' * 43}", "line 1: the secret is not random"),
        (f"shop {SECRET} server", r"line 1: .*unknown option follows the secret; did you mean serve\?"),
        (f"shop {SECRET} task=a", r"did you mean tasks\?"),
        (f"shop {SECRET} serve=1", "unknown option"),
        (f"shop {SECRET} tasks", "unknown option"),
        (f"shop {SECRET} tasks=", "tasks takes names"),
        (f"shop {SECRET} tasks=a,,b", "tasks takes names"),
        (f"shop {SECRET} serve serve", "serve is given twice"),
        (f"shop {SECRET} max_attempts=0", "max_attempts is a whole number"),
        (f"shop {SECRET} max_attempts=1000001", "max_attempts is a whole number"),
        (f"shop {SECRET} max_attempts={'1' * 5000}", "max_attempts is a whole number"),
        (f"shop {SECRET} max_attempts=²", "max_attempts is a whole number"),
        (f"shop {SECRET}\n\nshop {OTHER}", "line 3: key 'shop' is given twice"),
    ],
)
def test_lines_that_are_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidKeys, match=message) as caught:
        keyfile.read(file)
    for part in (SECRET, SECRET[:-4], "hunter2", "A" * 43):
        assert part not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_none(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    large = tmp_path / "large"
    large.write_bytes(b"#" * (2**20 + 1))
    for path in (binary, large):
        path.chmod(0o600)
    for path, message in (
        (tmp_path / "no", "No such file"),
        (tmp_path, "Is a directory"),
        (pipe, "no regular file"),
        (binary, "not UTF-8"),
        (large, "more than"),
        ("a\0b", "no file can have this name"),
        ("a\ud800b", "no file can have this name"),
    ):
        with pytest.raises(InvalidKeys, match=message):
            keyfile.read(path)


def test_a_folder_in_the_place_of_the_file_keeps_no_descriptor_open(file: Path) -> None:
    ring = Keyring(file)
    file.unlink()
    file.mkdir()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        ring.reread()
    assert os.listdir("/proc/self/fd") == before
    assert ring.own.name == "shop"


def test_as_many_keys_as_a_file_holds_are_read_in_no_time(file: Path) -> None:
    """A worker reads its file again, between two calls, when anybody names a key that it does not know."""
    secrets = (base64.b64encode(os.urandom(32)).decode() for _ in range(18_000))
    file.write_text("".join(f"k{number} {secret}\n" for number, secret in enumerate(secrets)))
    started = time.process_time()
    assert len(keyfile.read(file)[0]) == 18_000
    assert time.process_time() - started < 3, "comparing each name with all others took 12 s"


def _allowed(file: Path, user: int, mode: int) -> str:
    """The complaint about a file of this owner and mode, as far as the owner and the mode go."""
    status = os.stat_result((0o100000 | mode, 1, 1, 1, user, 0, 0, 0, 0, 0))
    try:
        keyfile._check(str(file), status)
    except InvalidKeys as error:
        return str(error)
    return ""


def test_owner_and_mode(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for mode in (0o600, 0o400, 0o700):
        assert _allowed(file, 1000, mode) == ""
        assert _allowed(file, 0, mode) == ""
    assert _allowed(file, 0, 0o640) == ""
    for mode in (0o644, 0o604, 0o640, 0o620, 0o602, 0o660, 0o601, 0o777):
        assert _allowed(file, 1000, mode).endswith(f"chmod 600 '{file}'")
    for mode in (0o644, 0o660, 0o620, 0o604, 0o777):
        assert _allowed(file, 0, mode).endswith(f"chmod 640 '{file}'")
    assert f"chown 1000 '{file}'" in _allowed(file, 1001, 0o600)


def test_the_mode_of_a_real_file(file: Path) -> None:
    file.chmod(0o644)
    with pytest.raises(InvalidKeys, match=r"others: chmod 6[04]0 '.*a file.keys'"):
        keyfile.read(file)


def test_new_lines_can_be_read() -> None:
    lines = [keyfile.new_line(f"k{number}", "serve", "tasks=a.*") for number in range(20)]
    keys = keyfile.parse("\n".join(lines), "here")
    assert len({key.secret for key in keys}) == 20
    assert {len(key.secret) for key in keys} == {32}
    assert all(key.serve and key.tasks == ("a.*",) for key in keys)
    for name, words in (("a b", ()), ("", ()), ("a", ("sevre",)), ("a", ("max_attempts=x",))):
        with pytest.raises(InvalidKeys):
            keyfile.new_line(name, *words)


def test_the_alphabets_of_base64_are_one() -> None:
    secret = bytes(range(224, 256)) + b"\xfb\xff\xfe"
    texts = [encode(secret).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    keys = [keyfile.parse(f"a {text}", "here")[0] for text in (*texts, *(text.rstrip("=") for text in texts))]
    assert {key.secret for key in keys} == {secret}


def test_a_changed_file_is_read_for_an_unknown_name(file: Path) -> None:
    ring = Keyring(file)
    assert ring.find("new") is None
    file.write_text(f"new {OTHER}\n")
    found = ring.find("new")
    assert found is not None
    assert ring.own is found
    assert ring.mine == {"shop", "new"}
    assert ring.find("shop") is None
    assert ring.known("shop") is not None


def test_an_unchanged_file_is_read_every_ten_seconds_at_most(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(keyring.time, "monotonic", lambda: now)
    reads = []

    def read(path: str) -> object:
        reads.append(path)
        return keyfile.read(path)

    monkeypatch.setattr(keyring, "read", read)
    ring = Keyring(file)
    for _ in range(50):
        assert ring.find("stranger") is None
    now += 9.9
    assert ring.find("stranger") is None
    assert len(reads) == 1
    now += 0.2
    for _ in range(50):
        assert ring.find("stranger") is None
    assert len(reads) == 2


def test_a_file_that_went_wrong_costs_no_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = Keyring(file)
    file.write_text(f"shop {SECRET}\nnew hunter2\n")
    with caplog.at_level(logging.ERROR, "atasks.keys"):
        for _ in range(5):
            assert ring.find("new") is None
        assert len(caplog.records) == 1
        ring.reread()
    assert "hunter2" not in caplog.text
    assert ring.find("shop") is ring.own
    assert SECRET not in repr(ring)
    file.unlink()
    assert ring.find("new") is None
    assert ring.own.name == "shop"
