"""`atasks run --http HOST:PORT`: /healthz, /readyz and /metrics, from a thread beside the event loop."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from atasks_cli.exits import CommandError, Exit
from atasks_cli.health import notes, problems
from atasks_cli.messages import say

__all__ = ["serve_probes"]


@contextmanager
def serve_probes(address: tuple[str, int]) -> Iterator[int]:
    """Answer probes about this process, or the processes that it supervises, while the block runs; gives the port.

    It works while the event loop is blocked. Raises a CommandError where the address cannot be had.
    """
    try:
        server = ThreadingHTTPServer(address, _Handler)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CommandError(Exit.USAGE, f"--http cannot listen on {address[0]}:{address[1]}: {reason}") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="atasks probes", daemon=True)
    thread.start()
    say(f"probes at http://{address[0] or '0.0.0.0'}:{server.server_port}/healthz, /readyz and /metrics")
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self) -> None:
        match urlsplit(self.path).path:
            case "/healthz":
                self._state(ready=False)
            case "/readyz":
                self._state(ready=True)
            case "/metrics":
                self._metrics()
            case _:
                self._send(404, "text/plain; charset=utf-8", b"/healthz, /readyz and /metrics are here\n")

    def _state(self, *, ready: bool) -> None:
        found = [(note, problems(note, ready=ready)) for note in notes(os.getpid())]
        good = [not reasons for _, reasons in found]
        well = any(good) if ready else all(good) and bool(good)
        body: dict[str, Any] = {"ok": well, "workers": [note | {"problems": reasons} for note, reasons in found]}
        self._send(200 if well else 503, "application/json", json.dumps(body).encode() + b"\n")

    def _metrics(self) -> None:
        try:
            from atasks.contrib.prometheus import exposition
        except ImportError:
            text = "metrics need the package prometheus-client: pip install prometheus-client\n"
            self._send(501, "text/plain; charset=utf-8", text.encode())
            return
        kind, body = exposition(self.headers.get("Accept", ""), _queues())
        self._send(200, kind, body)

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every few seconds."""


def _queues() -> dict[tuple[str, str], int]:
    """Waiting calls by namespace and queue, as the processes have last heard of them."""
    return {
        (note["namespace"], queue): number
        for note in notes(os.getpid())
        for queue, number in (note.get("queues") or {}).items()
    }
