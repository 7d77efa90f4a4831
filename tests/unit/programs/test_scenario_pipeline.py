"""The scenario of pipelines does what it shows: in threads, in this process's worker, and over RabbitMQ."""

from __future__ import annotations

import ast
import asyncio
import gc
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import atasks
from scenarios import pipeline, stdlib_stats
from scenarios.pipeline import Function, Source, Summary, aggregate, files, measure, parse, survey, table
from scenarios.stdlib_stats import LIBRARY

ROOT = Path(__file__).parents[3]


def count_definitions(package: str) -> int:
    """Count `def` in the package: it is a keyword, and never anything else."""
    found = 0
    for path in (LIBRARY / package).rglob("*.py"):
        with path.open("rb") as source:
            found += sum(
                token.type == tokenize.NAME and token.string == "def"
                for token in tokenize.tokenize(source.readline)
            )
    return found


@pytest.mark.parametrize("local", [True, False])
async def test_every_function_is_found(local: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async with atasks.connect("loopback:"):
        summary = await survey(local=local)("json,asyncio").options(progress=True)
    assert summary.files == len(list(files("json,asyncio"))) > 20
    assert len(summary.functions) == count_definitions("json") + count_definitions("asyncio")
    progress = capsys.readouterr().err.splitlines()[-1]
    assert (
        progress
        == "; ".join(
            f"{name}: {count}"
            for name, count in {
                "files": 1,
                "read": summary.files,
                "parse": summary.files,
                "measure": summary.files,
            }.items()
        )
        + "; aggregate: 1"
    )


async def parse_for_ever() -> None:
    """Construct one syntax tree after the other in the thread of the event loop."""
    text = Path(stdlib_stats.__file__).read_text()
    while True:
        ast.parse(text)
        await asyncio.sleep(0)


@pytest.fixture
def collector_that_lets_others_run() -> Iterator[None]:
    """Have the garbage collector come often, and let other threads run each time, as a finalizer may."""

    def let_others_run(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(let_others_run)
    gc.set_threshold(200)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(let_others_run)


@pytest.mark.usefixtures("collector_that_lets_others_run")
@pytest.mark.parametrize("local", [True, False])
async def test_the_program_may_parse_meanwhile(local: bool) -> None:
    async with atasks.connect("loopback:"):
        parsing = asyncio.create_task(parse_for_ever())
        await survey(local=local)("json")
        await stdlib_stats.survey(["json"])
        assert not parsing.done()
        parsing.cancel()


def test_a_function_is_measured() -> None:
    code = b"def f(x):\n    if x and x > 1:\n        return 1\n\n    for y in x: pass\n"
    (found,) = measure.local(parse.local(Source("a.py", code)))  # type: ignore[misc, arg-type]
    assert found == Function("a.py", "f", 5, 3)
    assert parse.local(Source("b.py", b"def")).functions == ()  # type: ignore[attr-defined]


def test_the_table_is_the_same_whatever_comes_first() -> None:
    functions = [Function("a.py", "f", 9, 1), Function("a.py", "g", 2, 5), Function("b.py", "h", 2, 5)]
    summary = aggregate(iter([functions[:2], functions[2:]]))
    assert summary == Summary(2, functions)
    assert table(summary, 2).splitlines() == [
        "3 functions in 2 files",
        "",
        "most lines:",
        "     9  f  a.py",
        "     2  g  a.py",
        "",
        "most decisions:",
        "     5  g  a.py",
        "     5  h  b.py",
    ]
    assert table(Summary(2, functions[::-1]), 2) == table(summary, 2)


async def test_a_worker_of_the_pipeline_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    await pipeline.aiomain(mode="server", url="amqp://localhost/")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("amqp_leaks")
async def test_over_rabbitmq_it_prints_the_same(
    amqp_url: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await pipeline.aiomain(mode="loopback", packages="json,xml", top=3, local=True)
    here = capsys.readouterr().out
    async with atasks.serve(amqp_url, prefix=prefix), atasks.connect(amqp_url, prefix=prefix):
        await pipeline.aiomain(mode="client", packages="json,xml", top=3)
    assert capsys.readouterr().out == here
    assert here.splitlines()[0].endswith(" files")


def test_the_command_line_prints_the_same() -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-m", "atasks", "run", "scenarios/pipeline.py", "-o", "packages=json", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for options in ([], ["-o", "local=true"])
    ]
    assert printed[0] == printed[1]
    assert "json/decoder.py" in printed[0]
    assert "atasks run scenarios/pipeline.py" in (
        ast.get_docstring(ast.parse(Path(pipeline.__file__).read_text())) or ""
    )
