"""Transports of a program: given to `connect` and `serve`, and by URL schemes that a package adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import LoopbackTransport, NotConnected, Transport, atask, get_transport
from atasks.errors import InvalidURL
from atasks_cli.destination import destination
from atasks_cli.exits import CommandError
from atasks_cli.settings import Settings

PACKAGE = """
    from atasks import LoopbackTransport, Transport

    workers = {}

    class Here(LoopbackTransport):
        @classmethod
        def from_url(cls, url, namespace, options):
            return cls(namespace)

    class Pigeons(Transport):
        def __init__(self, namespace, url="", speed=1):
            super().__init__(namespace)
            self.url, self.speed = url, speed

        @classmethod
        def from_url(cls, url, namespace, options):
            return cls(namespace, url, **options)

        async def connect(self): pass
        async def disconnect(self): pass

        async def register_callback(self, callback):
            await super().register_callback(callback)
            workers[self.url] = callback

        async def send_request(self, name, content):
            return await workers[self.url](name, content)

    no_transport = 3
"""
ENTRY_POINTS = """
    [atasks.transports]
    pigeons = pigeons:Pigeons
    wrong = pigeons:no_transport
    gone = pigeons:Doves
    twice = pigeons:Pigeons
    here = pigeons:Here
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that adds schemes, and another one that adds one of them too."""
    from textwrap import dedent

    (tmp_path / "pigeons.py").write_text(dedent(PACKAGE))
    for name, points in (("pigeons", ENTRY_POINTS), ("doves", "[atasks.transports]\ntwice = doves:Doves")):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(dedent(points))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
async def test_a_scheme_whose_transport_runs_calls_in_this_process(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(value: int) -> int:
        return 2 * value

    async with atasks.connect("here://", namespace=namespace):
        assert await double.options(timeout=5)(4) == 8


@pytest.mark.usefixtures("package")
async def test_a_scheme_of_a_package(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(value: int) -> int:
        return 2 * value

    async with (
        atasks.serve("pigeons://roof", namespace=namespace),
        atasks.connect("pigeons://roof", namespace=namespace, speed=3) as transport,  # type: ignore[call-arg]
    ):
        assert type(transport).__name__ == "Pigeons"
        assert vars(transport)["speed"] == 3
        assert await double(4) == 8


@pytest.mark.usefixtures("package")
def test_a_scheme_of_a_package_on_the_command_line() -> None:
    settings = Settings.make("server", url="pigeons://roof")
    assert (settings.where, settings.transport) == ("pigeons://roof", "pigeons")
    with pytest.raises(CommandError, match="pigeon"):
        Settings.make("server", url="pigeon://roof")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("wrong:", "no subclass of atasks.Transport"),
        ("gone:", "pigeons:Doves, cannot be imported"),
        ("twice:", "several packages add the scheme twice: \\(doves:Doves, pigeons:Pigeons\\)"),
        ("pigeon:", "names no transport; known schemes"),
        (["pigeons://a", "amqp://b"], "nodes of one broker"),
    ],
)
async def test_a_scheme_that_leads_nowhere(url: Any, error: str) -> None:
    with pytest.raises(InvalidURL, match=error):
        async with atasks.connect(url):
            pass


async def test_a_transport_in_the_place_of_a_url(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(value: int) -> int:
        return 2 * value

    async with atasks.connect(LoopbackTransport(namespace), namespace=namespace, concurrency=1):
        assert await double(4) == 8
    assert get_transport(namespace) is None
    with pytest.raises(NotConnected):
        await double(4)
    async with atasks.serve(LoopbackTransport(namespace), namespace=namespace):
        assert await double(4) == 8


async def test_what_cannot_be_given(namespace: str) -> None:
    for given, options, error in (
        (LoopbackTransport(namespace), {"keep_runs": 3}, "give it to LoopbackTransport"),
        (LoopbackTransport, {}, "make one, as in LoopbackTransport\\(\\)"),
        (LoopbackTransport(namespace), {"namespace": "other"}, f"say namespace='{namespace}'"),
        (Transport(namespace), {}, "Transport has no connect"),
    ):
        options = {"namespace": namespace, **options}
        with pytest.raises((TypeError, ValueError, NotImplementedError), match=error):
            async with atasks.connect(given, **options):  # type: ignore[call-arg]
                pass


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"transport": "pigeons:Pigeons"}, ("", 1)),
        ({"transport": "pigeons:Pigeons", "url": "coop://roof"}, ("coop://roof", 1)),
        ({"transport": "pigeons:Pigeons", "options": {"speed": 3}}, ("", 3)),
    ],
)
def test_a_transport_of_the_command_line(namespace: str, given: dict[str, Any], made: tuple[str, int]) -> None:
    settings = Settings.make("server", namespace=namespace, **given)
    assert settings.transport == "pigeons:Pigeons"
    transport, options = destination(settings)
    assert (type(transport).__name__, vars(transport)["namespace"], options) == ("Pigeons", namespace, {})
    assert (vars(transport)["url"], vars(transport)["speed"]) == made
    assert settings.for_aiomain()["transport"] == "pigeons:Pigeons"


def test_the_destination_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATASKS_URL", "amqp://elsewhere/")
    settings = Settings.make("server", options={"queue": "work"})
    assert destination(settings) == ("amqp://elsewhere/", {"queue": "work"})
    assert Settings.make("server", transport="pigeons:Pigeons").url == ""


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("given", "code", "error"),
    [
        (
            {"transport": "pigeons:no_transport"},
            2,
            "--transport pigeons:no_transport: no subclass of atasks.Transp",
        ),
        ({"transport": "pigeons:Doves"}, 2, "--transport pigeons:Doves: pigeons has no Doves"),
        ({"transport": "doves:Doves"}, 3, "No module named 'doves'"),
        ({"transport": "pigeons:Pigeons", "records": "x"}, 2, "--transport pigeons:Pigeons: .*'records'"),
        ({"transport": "atasks:Transport", "url": "x://"}, 2, "Transport takes no --url"),
        ({"transport": "atasks:LoopbackTransport", "url": "x://"}, 2, 'give "loopback:"'),
    ],
)
def test_a_transport_of_the_command_line_that_cannot_be_made(
    namespace: str, given: dict[str, Any], code: int, error: str
) -> None:
    with pytest.raises(CommandError, match=error) as refused:
        destination(Settings.make("server", namespace=namespace, **given))
    assert refused.value.exit == code
