"""`atasks keys`: what it prints, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

from atasks.signing import keyfile
from tests.cli.shell import Shell


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
