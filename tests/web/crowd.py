"""A page over thousands of calls that do not exist: python -m tests.web.crowd PORT."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvicorn

from atasks.web.picture import Picture
from atasks.web.server import make_app

LIVE = 5000
CHANGES = 500
"""Calls that end, and others that begin, each tenth of a second."""


class Crowd:
    async def run(self, picture: Picture) -> None:
        picture.connected = True
        picture.runs = [
            {
                "id": f"{number:032x}.4",
                "task": "app.step",
                "queue": "default",
                "submitted": time.time(),
                "due": 0.0,
            }
            | {"ended": None, "state": "open", "worker": "ann", "stages": (number % 4, 4)}
            for number in range(100)
        ]
        chance = random.Random(7)
        live: list[dict[str, Any]] = []
        while True:
            while len(live) < LIVE:
                parent = chance.choice(live)["id"] if live and chance.random() < 0.6 else None
                call = {
                    "id": f"{chance.getrandbits(128):032x}",
                    "task": "app.step",
                    "parent": parent,
                    "worker": "ann",
                    "note": "8100 of 10000 pages of a long book",
                }
                live.append(call)
                picture.take(call | {"kind": "started", "time": time.time()})
            await asyncio.sleep(0.1)
            for _ in range(CHANGES):
                call = live.pop(chance.randrange(len(live)))
                picture.take(call | {"kind": "ended", "status": "value", "time": time.time()})

    async def act(self, action: str, ids: Sequence[str]) -> str:
        return f"{action} {', '.join(ids)}"

    async def stack(self, call_id: str) -> dict[str, Any]:
        return {"stack": ""}

    async def submitted(self, run_id: str) -> dict[str, Any]:
        return {"id": run_id}


if __name__ == "__main__":
    app = make_app(Crowd(), title="a crowd")
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=1)
