"""`atasks runs`: the history of submitted calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

import atasks
from atasks import Handle, atask
from atasks.pipeline import collect, flat_map, map
from atasks.testing import soon
from atasks_cli.main import main
from tests.brokers.postgres import PASSWORD

pytestmark = pytest.mark.usefixtures("amqp_leaks")

Runs = Callable[..., Result]

broken = True


@atask
async def works(x: int) -> int:
    return x


@atask
async def fails_(secret: str) -> str:
    if broken:
        raise KeyError("no such order")
    return secret


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@pytest.fixture
def runs(amqp_url: str, prefix: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Run `atasks runs` with these arguments."""
    monkeypatch.setenv("ATASKS_RECORDS", postgres_url)

    def run(*arguments: str, json: bool = True) -> Result:
        where = ["--url", amqp_url, "--prefix", prefix, *(["--json"] if json else [])]
        result = CliRunner().invoke(main, ["runs", *where, *arguments])
        assert PASSWORD not in result.output
        return result

    return run


def _listed(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["runs"]
    return found


async def _submitted(amqp_url: str, **options: Any) -> list[str]:
    async with atasks.serve(amqp_url, **options):
        handles: list[Handle[Any]] = [
            await soon(works.submit(1)),
            await soon(fails_.submit("a-secret")),
            await soon((flat_map(upto) | map(works) | collect()).submit(3)),
        ]
        for handle in handles:
            await soon(_ended(handle))
    async with atasks.connect(amqp_url, **options):
        handles.append(await soon(works.submit(2)))
    return [handle.id for handle in handles]


async def _ended(handle: Handle[Any]) -> None:
    with contextlib.suppress(KeyError):
        await handle


def test_history(amqp_url: str, prefix: str, postgres_url: str, runs: Runs) -> None:
    global broken
    broken = True
    names = asyncio.run(_submitted(amqp_url, prefix=prefix, records=postgres_url))
    works_, failed, pipeline, open_ = names
    found = _listed(runs())
    assert [info["id"] for info in found] == names[::-1]
    assert [info["state"] for info in found] == ["open", "value", "raised", "value"]
    assert found[3]["submitted"] <= found[3]["ended"] < found[3]["expires"]
    assert found[3]["worker"]
    assert [info["id"] for info in _listed(runs("--failed"))] == [failed]
    assert [info["id"] for info in _listed(runs("--task", "*works"))] == [open_, works_]
    assert [info["id"] for info in _listed(runs("--task", "*fails?"))] == [failed]
    assert _listed(runs("--task", "*work_")) == []  # no wildcard here
    assert _listed(runs("--since", "0ms")) == []
    assert len(_listed(runs("--since", "1h"))) == 4
    cut = runs("--limit", "1")
    assert (len(_listed(cut)), json.loads(cut.stdout)["cut"]) == (1, True)
    table = runs("--failed", json=False).stdout
    assert failed in table
    assert "raised" in table
    # one of them
    shown = _listed(runs("show", failed, pipeline))
    assert "no such order" in shown[0]["failure"]
    assert "a-secret" not in str(shown)
    assert shown[1]["stages"] == "3 of 3 on record"
    assert "state:      value" in runs("show", works_, json=False).stdout
    # again
    problem = runs("retry", works_, failed)
    assert problem.exit_code == 1
    assert json.loads(problem.stdout)["retried"] == [failed]
    assert [info["id"] for info in _listed(runs("--failed"))] == []
    broken = False

    async def mended() -> Any:
        async with atasks.serve(amqp_url, prefix=prefix, records=postgres_url):
            return await soon(Handle[Any](failed))

    assert asyncio.run(mended()) == "a-secret"
    # away
    assert json.loads(runs("drop", works_, "--yes").stdout) == {"dropped": [works_], "left": []}
    assert runs("show", works_).exit_code == 1
    assert runs("drop", works_, "--yes", json=False).exit_code == 1
    assert len(_listed(runs())) == 3


def test_records_at_the_broker(amqp_url: str, prefix: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    global broken
    broken = True
    monkeypatch.delenv("ATASKS_RECORDS")
    _, failed, _, open_ = asyncio.run(_submitted(amqp_url, prefix=prefix))
    listed = runs()
    assert listed.exit_code == 2
    assert "AMQP lists no queues" in listed.output
    assert "--records" in listed.output
    assert "no such order" in _listed(runs("show", failed))[0]["failure"]
    assert json.loads(runs("retry", failed).stdout)["retried"] == [failed]
    assert json.loads(runs("drop", open_, "--yes").stdout)["dropped"] == [open_]
    assert runs("show", open_).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "abc"], "before an ID"),
        (["show"], "give an ID"),
        (["show", "a", "--failed"], "takes ids"),
        (["show", "what?"], "not the id"),
        (["show", "atasks-run-1:{"], "damaged"),
        (["--limit", "0"], "--limit"),
        (["--limit", "1000000"], "--limit"),
        (["--since", "yesterday"], "no time"),
        (["--records", "postgresql://u:s3cr3t@h/d"], "list of processes"),
        (["--records", "postgresql://h/d?password=s3cr3t"], "list of processes"),
        (["--records", "mysql://h/d"], "names no database"),
        (["--records", "postgresql://[h/d"], "give one like postgresql://"),
        (["--url", "loopback:"], "seen by its own process"),
        (["erase", "a"], "erase"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, runs: Runs) -> None:
    result = runs(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "s3cr3t" not in result.output
    assert len(result.output.splitlines()) == 1
