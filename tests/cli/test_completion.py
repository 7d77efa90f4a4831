"""Completion of commands and options, by a real shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from atasks_cli.main import main

COMPLETE = """
eval "$(atasks completion bash)"
COMP_WORDS=({words}) COMP_CWORD={last}
_atasks_completion atasks
printf "%s\\n" "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("line", "offered", "other"),
    [("atasks com", "completion", "run"), ("atasks run --max-m", "--max-memory-per-worker", "--mode")],
)
def test_bash_completes(line: str, offered: str, other: str, tmp_path: Path) -> None:
    command = tmp_path / "atasks"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m atasks "$@"\n')
    command.chmod(0o755)
    words = line.split()
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE.format(words=line, last=len(words) - 1)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert offered in done.stdout.splitlines(), done.stderr
    assert other not in done.stdout.splitlines()


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "app.py"],
        ["run", "--keys"],
        ["run", "--log-config"],
        ["call"],
        ["call", "--keys"],
        ["ps", "--keys"],
        ["top", "--keys"],
        ["keys", "check"],
    ],
    ids=" ".join,
)
def test_files_are_completed_by_the_shell(words: list[str]) -> None:
    (offered,) = ShellComplete(main, {}, "atasks", "").get_completions(words, "ap")
    assert (offered.type, offered.value) == ("file", "ap")


def test_fish_shows_descriptions_behind_a_comma() -> None:
    script = CliRunner().invoke(main, ["completion", "fish"]).stdout
    assert 'string split --max 1 "," $completion' in script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert f"_ATASKS_COMPLETE={shell}_complete" in done.stdout


def test_another_shell() -> None:
    done = CliRunner().invoke(main, ["completion", "tcsh"])
    assert done.exit_code == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
