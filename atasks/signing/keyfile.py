"""The file of keys: its syntax, and what is required of its owner and mode."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
import stat
from typing import Any, Final

from atasks.errors import InvalidKeys, closest
from atasks.signing.cipher import can_encrypt
from atasks.signing.keys import MIN_SECRET, Key

__all__ = ["new_line", "parse", "read"]

MAX_BYTES: Final = 2**20
"""Bytes of a file of keys."""
MAX_ATTEMPTS: Final = 1_000_000
MIN_DISTINCT: Final = 8
"""Different bytes of a secret: fewer are no random ones."""
WORDS: Final = ("serve", "encrypt")
VALUES: Final = ("tasks", "queues", "max_attempts")
PATTERN: Final = re.compile(r"[^\s,=]+")


def new_line(name: str, *words: str) -> str:
    """A line for a new key of this name, with a secret of 32 random bytes. Raises InvalidKeys."""
    secret = base64.urlsafe_b64encode(os.urandom(MIN_SECRET)).decode().rstrip("=")
    try:
        _key([name, secret, *words])
    except ValueError as error:
        raise InvalidKeys(str(error)) from None
    return " ".join((name, secret, *words))


def read(path: str | os.PathLike[str]) -> tuple[list[Key], tuple[int, ...]]:
    """The keys of a file, the one that seals first, and what tells the file from a later version of it.

    Raises InvalidKeys if it cannot be read, if somebody else than this user and root could have written it, if
    others can read it, or if a line is not a key's. No message of the error quotes a line.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            _check(name, status)
            content = file.read(MAX_BYTES + 1)
    except InvalidKeys:
        raise
    except (OSError, ValueError) as error:  # the latter one for a zero byte, or a surrogate
        reason = error.strerror if isinstance(error, OSError) else "no file can have this name"
        raise InvalidKeys(f"the keys in {name!r} cannot be read ({reason}): give the path of a file") from None
    if len(content) > MAX_BYTES:
        raise InvalidKeys(f"{name!r} has more than {MAX_BYTES} bytes: it is no file of keys")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidKeys(f"{name!r} is not UTF-8: it is no file of keys") from None
    return parse(text, name), version(status)


def _without_waiting(path: str, flags: int) -> int:
    """Open the file, also where the path leads to a pipe, which would wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def version(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that differ between a file and any later version of it."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check(name: str, status: os.stat_result) -> None:
    quoted = shlex.quote(name)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidKeys(f"{name!r} is no regular file: give the path of a file of keys")
    user = os.geteuid()
    if status.st_uid not in (user, 0):
        raise InvalidKeys(
            f"{name!r} is owned by user {status.st_uid}, who could change the keys: chown {user} {quoted}"
        )
    # A group may read a file of root's: that is how an account other than root gets its keys.
    mode, right = (0o027, "640") if status.st_uid == 0 else (0o077, "600")
    if status.st_mode & mode:
        raise InvalidKeys(f"{name!r} can be read or written by others: chmod {right} {quoted}")


def parse(text: str, source: str) -> list[Key]:
    """The keys of the text of a file; `source` is what errors call it. Raises InvalidKeys."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key = _key(words)
            if key.name in keys:
                raise ValueError(f"key {key.name!r} is given twice: give each key a name of its own")
        except ValueError as error:
            raise InvalidKeys(f"{source}, line {number}: {error}") from None
        keys[key.name] = key
    if not keys:
        raise InvalidKeys(f"{source} holds no key: make one with `atasks keys new NAME`")
    return list(keys.values())


def _key(words: list[str]) -> Key:
    """The key of a line. Raises ValueError."""
    if len(words) < 2:
        raise ValueError("a line reads NAME SECRET [serve] [encrypt] [tasks=...] [queues=...] [max_attempts=N]")
    name, secret, *rest = words
    options: dict[str, Any] = {}
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in (VALUES if equals else WORDS):
            # The word is not quoted: it may be a secret that was broken in two.
            near = closest(option, WORDS + VALUES, limit=1)
            raise ValueError(f"an unknown option follows the secret{f'; did you mean {near[0]}?' if near else ''}")
        if option in options:
            raise ValueError(f"{option} is given twice")
        options[option] = _value(option, value) if equals else True
    key = Key(name, _secret(secret), **options)
    if key.encrypt and not can_encrypt():
        raise ValueError(f"key {name!r} says encrypt, which needs cryptography: pip install cryptography")
    return key


def _secret(text: str) -> bytes:
    try:
        # Both alphabets, with and without padding: `openssl rand -base64 32` makes good secrets too.
        padded = text.rstrip("=").replace("-", "+").replace("_", "/")
        secret = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except binascii.Error:
        raise ValueError("the secret is not Base64: make one with `atasks keys new NAME`") from None
    if len(secret) >= MIN_SECRET and len(set(secret)) < MIN_DISTINCT:
        raise ValueError("the secret is not random: make one with `atasks keys new NAME`")
    return secret


def _value(option: str, text: str) -> Any:
    if option == "max_attempts":
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:8]) <= MAX_ATTEMPTS and len(text) <= 7):
            raise ValueError(f"max_attempts is a whole number from 1 to {MAX_ATTEMPTS}")
        return int(text)
    patterns = text.split(",")
    if not all(PATTERN.fullmatch(pattern) for pattern in patterns):
        raise ValueError(f"{option} takes names or patterns with commas between them, as in {option}=shop.*,web")
    return patterns
