"""The scenarios do what they show, in this process and over RabbitMQ."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import atasks
from scenarios import classic, stdlib_stats, tour
from scenarios.stdlib_stats import LIBRARY, Counts, survey, table, total

ROOT = Path(__file__).parents[3]
STEPS = (
    ("await add(1, 2)", "3"),
    ("await divide(1, 0)", "ZeroDivisionError('division by zero')"),
    ("for n in range(1000)", "1000 results, from 0 to 1998"),
    ("await fibonacci(12)", "144"),
    ("timeout=0.2", "CallTimeout, a kind of TimeoutError: True"),
    ("call.cancel()", "I began\nI was stopped, and have cleaned up"),
)
"""In each step of the tour: something of its code, and what it prints."""
CLASSIC = "one after the other: 12\nside by side: (6, 10)\nboth at once: 4 (2, 2)\n"


def check_tour(story: str) -> None:
    """Every step of the story shows its code and then, at the margin, what it did."""
    chapters = story.split("\n\n")
    assert len(chapters) == 2 * len(STEPS) + 1, "a title, then the code with what it printed, for each step"
    for number, (code, outcome) in enumerate(STEPS):
        title, shown = chapters[2 * number : 2 * number + 2]
        assert title.lstrip("\n").startswith(f"{number + 1}. ")
        shown_code = [line for line in shown.splitlines() if line.startswith("    ")]
        assert any(code in line for line in shown_code)
        assert outcome in shown
    assert len(story.splitlines()) <= 50, "it fits a screen or so"


async def test_the_tour(capsys: pytest.CaptureFixture[str]):
    async with atasks.connect("loopback:"):
        await tour.aiomain(mode="loopback", url="loopback:")
    check_tour(capsys.readouterr().out)


async def test_the_tour_shows_where_the_worker_raised(capsys: pytest.CaptureFixture[str]):
    async with atasks.connect("loopback:"):
        await tour.an_exception()
    lines = capsys.readouterr().out.splitlines()
    divide = inspect.getsource(tour.divide.local).splitlines()
    line = inspect.getsourcelines(tour.divide.local)[1] + len(divide) - 1
    assert lines == [
        "ZeroDivisionError('division by zero')",
        "Traceback (most recent call last):",
        f'  File "tour.py", line {line}, in divide',
        "    return a / b",
        "ZeroDivisionError: division by zero",
    ]


def test_the_tour_is_short_enough_to_be_read_first():
    assert len(inspect.getsource(tour).splitlines()) < 120


async def test_a_worker_of_the_tour_tells_no_story(capsys: pytest.CaptureFixture[str]):
    await tour.aiomain(mode="server", url="amqp://localhost/")
    assert capsys.readouterr().out == ""


async def test_the_classic_example(capsys: pytest.CaptureFixture[str]):
    async with atasks.connect("loopback:"):
        await classic.aiomain(mode="loopback", url="loopback:")
    assert capsys.readouterr().out == CLASSIC


async def test_a_worker_of_the_classic_example_says_that_it_serves(capsys: pytest.CaptureFixture[str]):
    await classic.aiomain(mode="server", url="amqp://localhost/")
    assert "serves task_one, task_two" in capsys.readouterr().out


def count_tokens(files: list[Path]) -> Counts:
    """Count as `stdlib_stats.count` does for many files, in another way: a keyword is never anything else."""
    counts = Counts(files=len(files))
    for file in files:
        before = ""
        with file.open("rb") as source:
            for token in tokenize.tokenize(source.readline):
                if token.type == tokenize.NAME and token.string == "def":
                    counts.functions += before != "async"
                    counts.async_functions += before == "async"
                counts.classes += token.type == tokenize.NAME and token.string == "class"
                before = token.string
        with tokenize.open(file) as text:
            counts.lines += text.read().count("\n")
    return counts


async def test_the_standard_library_is_counted_right():
    async with atasks.connect("loopback:"):
        counted = await survey(["asyncio", "json", "this"])
    assert list(counted) == ["asyncio", "json", "this"]
    for name, found in counted.items():
        directory = LIBRARY / name
        files = sorted(directory.rglob("*.py")) if directory.is_dir() else [directory.with_suffix(".py")]
        expected = count_tokens(files)
        expected.docstrings = found.docstrings
        assert found == expected
        assert 0 < found.documented <= 100 or name == "this"
    assert counted["asyncio"].async_functions > 0


def make_library(root: Path) -> None:
    """A library with everything that is hard to read."""
    for name, content in {
        "good.py": b'"""Doc."""\n\n\ndef f():\n    """Doc."""\n\n\nclass C:\n    async def g(self): ...\n',
        "empty.py": b"",
        "cookie.py": "# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"),
        "old_escape.py": b"pattern = '\\d'\n",
        "no_cookie.py": "name = 'é'\n".encode("latin-1"),
        "unknown_cookie.py": b"# -*- coding: uft-8 -*-\n",
        "python2.py": b"print 'hello'\n",
        "null.py": b"a = 1\0\n",
        "deep.py": b"-" * 100_000 + b"1\n",
        "note.txt": b"no Python",
        "pkg/__init__.py": b"\n",
        "pkg/sub/mod.py": b"def h(): pass\n",
        "pkg/sub/bad.py": b"def\n",
        "pkg/__pycache__/cached.py": b"\n",
        "site-packages/other/__init__.py": b"\n",
        "dist-packages/other.py": b"\n",
        "data/readme.md": b"\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "pkg" / "loop").symlink_to(root / "pkg")


def use_library(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the statistics count this library, without the processes that do not know of it."""
    monkeypatch.setattr(stdlib_stats, "LIBRARY", root)
    monkeypatch.setattr(stdlib_stats.source_file, "executor", None)


async def test_what_cannot_be_parsed_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_library(tmp_path)
    use_library(tmp_path, monkeypatch)
    async with atasks.connect("loopback:"):
        counted = await survey()

    good = {name: counts for name, counts in counted.items() if not counts.skipped}
    assert set(good) == {"good", "empty", "cookie", "old_escape"}
    assert good["good"] == Counts(files=1, lines=9, functions=1, async_functions=1, classes=1, docstrings=2)
    assert good["good"].documented == 50
    assert good["empty"] == Counts(files=1)

    skipped = dict(total(counted.values()).skipped)
    assert set(skipped) == {
        "deep.py", "no_cookie.py", "null.py", "pkg/sub/bad.py", "python2.py", "unknown_cookie.py"
    }  # fmt: skip
    assert "Missing parentheses in call to 'print'" in skipped["python2.py"]
    assert skipped["unknown_cookie.py"] == "SyntaxError: unknown encoding: uft-8"
    assert skipped["pkg/sub/bad.py"] == "SyntaxError: invalid syntax"
    assert "null bytes" in skipped["null.py"]
    assert counted["pkg"] == Counts(
        files=2, lines=2, functions=1, skipped=(("pkg/sub/bad.py", skipped["pkg/sub/bad.py"]),)
    )

    shown = table(counted, top=100)
    assert all(f"skipped {path}: {reason}" in shown.splitlines() for path, reason in skipped.items())
    assert "-packages" not in shown
    assert "data" not in counted, "a directory without source files has no row"


async def test_a_file_that_is_gone_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use_library(tmp_path, monkeypatch)
    async with atasks.connect("loopback:"):
        counts = await stdlib_stats.source_file("gone.py")
    assert counts == Counts(skipped=(("gone.py", "FileNotFoundError: No such file or directory"),))


def test_the_table_is_sorted_and_adds_up():
    counted = {
        "b": Counts(files=2, lines=2000, functions=1, docstrings=3),
        "a": Counts(files=1, lines=2000, classes=1, skipped=(("a/x.py", "SyntaxError: no"),)),
        "tiny": Counts(files=1, lines=1),
        "small": Counts(files=1, lines=7, async_functions=1),
    }
    lines = [line.split() for line in table(counted, top=2).splitlines()]
    assert lines[0] == ["package", "files", "lines", "functions", "async", "classes", "documented", "skipped"]
    assert lines[2] == ["a", "1", "2,000", "0", "0", "1", "0.0", "%", "1"]
    assert lines[3] == ["b", "2", "2,000", "1", "0", "0", "100.0", "%", "0"]
    assert lines[4] == ["(others:", "2)", "2", "8", "0", "1", "0", "0.0", "%", "0"]
    assert lines[6] == ["total", "5", "4,008", "1", "1", "1", "37.5", "%", "1"]
    assert lines[7:] == [["skipped", "a/x.py:", "SyntaxError:", "no"]]
    assert table(dict(reversed(counted.items())), top=2) == table(counted, top=2)
    assert "others" not in table(counted, top=4)


async def test_a_package_that_does_not_exist_is_named():
    async with atasks.connect("loopback:"):
        with pytest.raises(LookupError, match="no package or module 'jsonn'"):
            await survey(["json", "jsonn"])


async def test_a_worker_of_the_statistics_prints_none(capsys: pytest.CaptureFixture[str]):
    await stdlib_stats.aiomain(mode="server", url="amqp://localhost/")
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("amqp_leaks")
async def test_over_rabbitmq_they_print_the_same(amqp_url: str, prefix: str, capsys: pytest.CaptureFixture[str]):
    async def tell(mode: str) -> str:
        await classic.aiomain(mode=mode)
        await tour.aiomain(mode=mode)
        await stdlib_stats.aiomain(mode=mode, packages="json,logging,xml", top=2)
        return capsys.readouterr().out

    async with atasks.connect("loopback:"):
        here = await tell("loopback")
    async with (
        atasks.serve(amqp_url, prefix=prefix),
        atasks.serve(amqp_url, prefix=prefix),
        atasks.connect(amqp_url, prefix=prefix),
    ):
        there = await tell("client")
    assert here == there
    assert "(others: 1)" in here


def run_command(*arguments: str) -> str:
    """Run `atasks run` with these arguments, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "atasks", "run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_tells_the_tour():
    check_tour(run_command("scenarios/tour.py"))


def test_the_command_line_tells_of_background_work():
    told = run_command("scenarios/background.py").splitlines()
    steps = [line for line in told if not line[0].isdigit()]
    assert steps == [
        "invoice-17.pdf invoice-17.pdf",
        "False invoice-18.pdf",
        "cancelled",
        "True invoice-20.pdf",
        "AlreadySubmitted",
        "order 23 is on its way",
        "the carrier does not answer",
        "order 24 is on its way",
        "True",
        "swept",
        "thank you for order 28",
    ]
    assert [line[:2] for line in told if line[0].isdigit()] == [f"{number}." for number in range(1, 8)]


def test_the_command_line_runs_the_classic_example():
    assert run_command("scenarios/classic.py") == CLASSIC


async def test_the_command_line_prints_the_same_table(capsys: pytest.CaptureFixture[str]):
    printed = run_command("scenarios/stdlib_stats.py", "-o", "top=1", "-o", "packages=asyncio,json")
    async with atasks.connect("loopback:"):
        await stdlib_stats.aiomain(mode="loopback", top=1, packages="asyncio,json")
    assert printed == capsys.readouterr().out
    rows = [line.split()[0] for line in printed.splitlines()]
    assert rows[2:4] == ["asyncio", "(others:"]


def test_scenarios_start_with_what_to_run():
    for module in (tour, classic, stdlib_stats):
        text = ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
        assert f"atasks run scenarios/{module.__name__.rpartition('.')[2]}.py" in text
