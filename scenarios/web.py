"""A web service whose work runs in other processes: awaited, streamed, submitted, from async and plain endpoints.

pip install fastapi uvicorn
uvicorn scenarios.web:app                                   two worker processes of its own
ATASKS_URL=amqp://localhost/ uvicorn scenarios.web:app      over RabbitMQ, and on each host:
atasks run scenarios/web.py --mode server

curl --data-binary @README.md localhost:8000/words          upload, and wait for the result
curl -N localhost:8000/primes/30                            a stream; Ctrl-C ends it at the worker too
curl localhost:8000/plain/97                                an endpoint without `async`
curl -X POST localhost:8000/reports/5                       submitted: returns an id at once
curl localhost:8000/reports/ID                              how it is; any process can ask
curl -N localhost:8000/reports/ID/progress                  its progress, as it comes
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

import atasks
from atasks import Handle, UnknownRun, atask, current_call

LONGEST = 1_000_000
"""Bytes of an upload."""


@atask(executor="process")
def words(text: str) -> list[tuple[str, int]]:
    """The most frequent words, and how often they come."""
    return Counter(text.lower().split()).most_common(3)


@atask
async def primes(limit: int) -> AsyncIterator[int]:
    """The primes below a limit, one by one."""
    for number in range(2, limit):
        if await is_prime.local(number):
            await asyncio.sleep(0.05)  # else there is nothing to see
            yield number


@atask
async def is_prime(number: int) -> bool:
    """Return True for a prime."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


@atask
async def report(pages: int) -> str:
    """A report, which takes a while; each page is a call of its own."""
    found = []
    for number in range(pages):
        found.append(await page(number))
        current_call().report(number + 1, pages)
    return "\n".join(found)


@atask
async def page(number: int) -> str:
    """One page of a report."""
    await asyncio.sleep(0.2)
    return f"page {number}"


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    """One connection for all requests, as long as the service runs."""
    url = os.environ.get("ATASKS_URL", "local:")
    options: dict[str, Any] = {"workers": 2, "modules": [__name__]} if url == "local:" else {}
    async with atasks.connect(url, **options):
        yield


app = FastAPI(lifespan=connected)


@app.post("/words")
async def count(request: Request) -> list[tuple[str, int]]:
    """Upload a text, and wait for the result. The call ends if the client goes away meanwhile."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST:
            raise HTTPException(413, f"at most {LONGEST} bytes")
    call = asyncio.ensure_future(words(body.decode(errors="replace")))
    gone = asyncio.ensure_future(until_gone(request))
    try:
        await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            raise HTTPException(499)
        return call.result()
    finally:
        call.cancel()
        gone.cancel()


async def until_gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":  # the body has been read
        pass


@app.get("/primes/{limit}")
async def stream(limit: int) -> StreamingResponse:
    """Server-sent events, straight from a worker. A client that goes away ends the stream there too."""

    async def events() -> AsyncIterator[str]:
        async with primes(limit) as numbers:
            async for number in numbers:
                yield f"data: {number}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/plain/{number}")
def plain(number: int) -> dict[str, bool]:
    """An endpoint without `async` runs in a thread: `.sync` awaits there, over the connection of the service."""
    return {"prime": is_prime.sync(number)}


@app.post("/reports/{pages}", status_code=202)
async def begin(pages: int) -> dict[str, str]:
    """Submit a report: it is made whether anybody waits or not."""
    handle = await report.submit(pages)
    return {"id": handle.id}


@app.get("/reports/{identity}")
async def look(identity: str) -> dict[str, str | None]:
    """Say how a report is; any process that is connected can."""
    handle, done = await find(identity)
    return {"report": await handle if done else None}


@app.get("/reports/{identity}/progress")
async def follow(identity: str) -> StreamingResponse:
    """Server-sent events: how far a report is, until it is made. The report goes on without its viewers."""
    handle, _ = await find(identity)

    async def events() -> AsyncIterator[str]:
        async with aclosing(handle.progress()) as reports:
            async for progress in reports:
                yield f"data: {progress}\n\n"
        yield "event: end\ndata:\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def find(identity: str) -> tuple[Handle[str], bool]:
    """The report of that id, and whether it is made."""
    try:
        handle: Handle[str] = atasks.attach(identity)
        return handle, await handle.done()
    except (UnknownRun, ValueError):
        raise HTTPException(404, "no such report") from None
