"""A transport of the program, named by `--transport module:Class`."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator

import pytest

from tests.cli.shell import Shell

WIRE = """
    from atasks.transport.backends.local import LocalTransport

    class Wire(LocalTransport):
        pass

    class Bare(LocalTransport):
        def __init__(self, namespace):
            super().__init__({path!r}, namespace)
"""
APP = """
    from atasks import atask

    @atask
    async def add(a, b):
        return a + b

    async def aiomain(transport, url, mode):
        if mode == "client":
            print(transport, url, await add(1, 2))
"""


@pytest.fixture
def url() -> Iterator[str]:
    """A URL where nobody serves yet. The paths of pytest may be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        yield f"unix://{directory}/app.sock"


@pytest.mark.parametrize(("name", "with_url"), [("wires:Wire", True), ("wires:Bare", False)])
def test_a_class_serves_and_calls(shell: Shell, url: str, name: str, with_url: bool) -> None:
    shell.write("wires.py", WIRE.format(path=url.removeprefix("unix://")))
    shell.write("app.py", APP)
    place = ("--url", url) if with_url else ()
    server = shell.start("run", "app.py", "--mode", "server", "--transport", name, *place)
    server.wait_for(f"on queue 'default' of {url if with_url else name} with concurrency 100")
    done = shell.run("run", "app.py", "--mode", "client", "--transport", name, *place)
    assert (done.code, done.out, done.err) == (0, f"{name} {url if with_url else ''} 3\n", "")
    server.signal(signal.SIGTERM)
    assert server.finish().code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--transport", "wires:Wire"], 2, "--mode loopback runs every call in this process"),
        (["--transport", "wires:Gone", "--mode", "client"], 2, "--transport wires:Gone: wires has no Gone"),
        (["--transport", "nowhere:Wire", "--mode", "client"], 3, "nowhere"),
        (["--transport", "wires:Wire", "--mode", "server", "--keys", "x"], 2, "--transport wires:Wire: "),
    ],
)
def test_a_class_that_cannot_be_used(shell: Shell, arguments: list[str], code: int, words: str) -> None:
    shell.write("wires.py", WIRE.format(path="/nowhere"))
    shell.write("app.py", APP)
    done = shell.run("run", "app.py", *arguments)
    assert done.code == code
    assert words in done.line()
