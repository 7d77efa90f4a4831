"""The scenario for web services, served by a real server, with all its work in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from atasks import atask, tracking
from atasks.testing import until
from scenarios import web


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setenv("ATASKS_URL", "loopback:")
    config = uvicorn.Config(web.app, port=0, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # they are of pytest
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    server.should_exit = True
    await serving


def running() -> int:
    return sum(worker.running + worker.parked for worker in tracking.snapshot().workers)


async def test_upload_and_wait(client: httpx.AsyncClient) -> None:
    answer = await client.post("/words", content="b a b c b a")
    assert answer.json() == [["b", 3], ["a", 2], ["c", 1]]
    too_long = await client.post("/words", content=b"x" * (web.LONGEST + 1))
    assert too_long.status_code == 413


@atask
async def hang(text: str) -> None:
    await asyncio.Event().wait()


async def test_a_call_ends_at_the_worker_when_its_client_goes_away(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "words", hang)
    request = asyncio.create_task(client.post("/words", content="a"))
    await until(lambda: running() == 1)
    request.cancel()
    await until(lambda: running() == 0)


async def test_a_stream_ends_at_the_worker_when_its_client_goes_away(client: httpx.AsyncClient) -> None:
    found = []
    async with client.stream("GET", "/primes/1000000") as answer:
        async for line in answer.aiter_lines():
            if line:
                found.append(line)
            if len(found) == 3:
                assert running() == 1
                break
    assert found == ["data: 2", "data: 3", "data: 5"]
    await until(lambda: running() == 0)


async def test_an_endpoint_without_async(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.get(f"/plain/{number}") for number in range(20)))
    primes = [number for number, answer in enumerate(answers) if answer.json()["prime"]]
    assert primes == [2, 3, 5, 7, 11, 13, 17, 19]


async def test_submit_and_look(client: httpx.AsyncClient) -> None:
    began = await client.post("/reports/3")
    assert began.status_code == 202
    path = f"/reports/{began.json()['id']}"
    assert (await client.get(path)).json() == {"report": None}
    async with asyncio.timeout(30):
        while (shown := (await client.get(path)).json())["report"] is None:
            await asyncio.sleep(0.05)
    assert shown == {"report": "page 0\npage 1\npage 2"}
    assert (await client.get("/reports/nothing")).status_code == 404
    assert (await client.get(f"/reports/{'0' * 32}")).status_code == 404


async def test_the_progress_of_what_was_submitted(client: httpx.AsyncClient) -> None:
    began = await client.post("/reports/3")
    path = f"/reports/{began.json()['id']}/progress"
    async with client.stream("GET", path) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-3:] == ["data: 3/3", "event: end", "data:"]
    assert set(lines[:-3]) <= {"data: 1/3", "data: 2/3"}
    assert (await client.get(f"/reports/{'0' * 32}/progress")).status_code == 404
