"""The HTTP API of a broker that `atasks doctor` asks for policies."""

from __future__ import annotations

import gc
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from atasks_cli.policies import Unseen, read_policies


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """Write nothing to stderr."""


def test_one_that_refuses_the_user_names_the_tag_that_he_needs() -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(Unseen) as caught:
            read_policies("amqp://localhost/", address, "/")
        thread.join()
    said = str(caught.value)
    del caught
    gc.collect()  # Python 3.14 warns of an answer that was not closed
    assert said == f"{address} answers 403: its user needs the tag policymaker or monitoring"
