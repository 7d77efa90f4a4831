"""`python -m tests.amqp.serving MODULE URL JSON`: a worker process for the atasks of one module.

It says "ready" when it serves, and drains when its input ends (as it does when the test's process is gone) or when
SIGTERM arrives. JSON: the keyword arguments of `atasks.serve`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys

import atasks


async def main(module: str, url: str, options: str) -> None:
    importlib.import_module(module)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin, stop.set)
    async with atasks.serve(url, **json.loads(options)):
        print("ready", flush=True)
        await stop.wait()
        loop.remove_reader(sys.stdin)
    print("drained", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
