"""The scenario for all cores draws what it should, in processes, and shows how far it is."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import pty
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import atasks
from scenarios import cores
from tests.unit.conftest import ROOT


def read_png(content: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of numbers of colours; every checksum is looked at."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 3, 0, 0, 0]
    assert len(chunks[b"PLTE"]) == 256 * 3
    lines = zlib.decompress(chunks[b"IDAT"])
    rows = [lines[start : start + width + 1] for start in range(0, len(lines), width + 1)]
    assert {row[0] for row in rows} == {0}
    return width, height, [row[1:] for row in rows]


async def test_the_picture_is_right_across_tiles() -> None:
    done: list[int] = []
    async with atasks.serve("loopback:", processes=2):
        processes, rows = await cores.picture(70, 65, 30, lambda: done.append(1))
    assert len(done) == 4
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in processes
    scale = cores.SPAN / 70
    assert rows == [
        bytes(cores.colour(complex(cores.LEFT + scale * x, cores.TOP - scale * y), 30) for x in range(70))
        for y in range(65)
    ]
    assert read_png(cores.png(rows)) == (70, 65, rows)


@pytest.mark.parametrize(("point", "colour"), [(0j, 255), (-1 + 0j, 255), (1j, 255), (3 + 0j, 25)])
def test_points_have_the_colour_of_their_escape(point: complex, colour: int) -> None:
    assert cores.colour(point, 100) == colour


async def test_a_worker_draws_nothing_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    await cores.aiomain(mode="server")
    assert capsys.readouterr() == ("", "")


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with cores.progress(10) as done:
        for _ in range(10):
            done()
    told = capsys.readouterr().err.splitlines()
    assert told == ["3 of 10 tiles", "5 of 10 tiles", "8 of 10 tiles", "10 of 10 tiles"]


def all_that_was_written(terminal: int) -> str:
    """The text on a terminal whose other end is closed: one read gives 4 KiB of it at most."""
    written = b""
    with contextlib.suppress(OSError):  # that was all
        while chunk := os.read(terminal, 100_000):
            written += chunk
    return written.decode()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_command_line_draws_it(terminal: bool, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    options = ["-o", "width=40", "-o", "height=30", "-o", "depth=20", "-o", f"file={file}"]
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "atasks", "run", "scenarios/cores.py", "--processes", "1", *options],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
            stdout=subprocess.PIPE,
            stderr=theirs if terminal else subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        os.close(theirs)
        written = all_that_was_written(ours)
        os.close(ours)
    shown = written if terminal else done.stderr
    assert done.stdout == f"{file}: 40 x 30 pixels, drawn by 1 process\n"
    assert read_png(file.read_bytes())[:2] == (40, 30)
    if terminal:
        assert "100%" in shown
        assert "━" in shown
    else:
        assert shown.startswith("1 of 1 tiles\n")
    assert shown.rstrip().endswith(" s")


def test_the_scenario_starts_with_what_to_run() -> None:
    text = ast.get_docstring(ast.parse(inspect.getsource(cores))) or ""
    assert "atasks run scenarios/cores.py" in text
