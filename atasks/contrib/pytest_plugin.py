"""The plugin for pytest, which loads it by itself: fixtures, a marker and an option for tests of atasks.

It imports what it needs when a test uses it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from atasks.contrib.in_tests import Processes
    from atasks.contrib.recorded_calls import CallRecorder

__all__ = ["atasks_calls", "atasks_loopback", "atasks_worker"]

MARKER: Final = (
    "atasks(concurrency=100, faults=[], leaks=True): run the calls of this test in its process, at most so many "
    "at once, with these faults of atasks.contrib.faults; leaks=False: it may leave calls and tasks behind"
)
KNOWN: Final = {"concurrency": 100, "faults": (), "leaks": True}
"""The arguments of the marker, and what holds without them."""
_processes: Final[pytest.StashKey[Processes]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --atasks-url."""
    parser.getgroup("atasks").addoption(
        "--atasks-url",
        default="local:",
        metavar="URL",
        help="where the worker processes of the fixture atasks_worker serve: local: (the default), or the URL of "
        "a broker, amqp://guest:guest@localhost/",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have a test with the marker use `atasks_loopback`."""
    names = getattr(item, "fixturenames", None)
    if names is not None and item.get_closest_marker("atasks") is not None and "atasks_loopback" not in names:
        names.insert(0, "atasks_loopback")  # other fixtures may make calls


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the worker processes of this run."""
    processes = session.config.stash.get(_processes, None)
    if processes is not None:
        processes.close()


@pytest.fixture
def atasks_loopback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the calls of a test in its own process and event loop, as over `loopback:`.

    That holds in every namespace, for async tests and fixtures of pytest-asyncio, in each loop scope, and of anyio
    on asyncio, and for `.sync` in others. `connect` and `serve` blocks of the test come before it.

    Guarantees: everything is closed when the test ends. It fails if it leaves behind calls that are awaited or run
    still, or tasks that began after its first call, and do not end within a second; and if a fault never happened.
    """
    from atasks.contrib.in_tests import TestConnection, connected
    from atasks.contrib.recorded_calls import known_namespaces

    options = _marked(request.node)
    if "anyio_backend" in request.fixturenames and not hasattr(request.node, "_loop_scope"):
        request.getfixturevalue("_atasks_anyio")  # keeps the event loop open until the end of this fixture
    elif (scope := getattr(request.node, "_loop_scope", None)) is not None:
        request.getfixturevalue(f"_{scope}_scoped_runner")  # pytest-asyncio's: so does this
    connections = [TestConnection(name, **options) for name in known_namespaces()]
    faults = connections[0].faults
    for connection in connections:
        connection.faults = faults  # each happens in one namespace
    with connected(connections):
        yield
        left = [each for connection in connections for each in connection.end()]
    missed = [f"the fault {str(fault)!r} never happened" for fault, times in faults if times == fault.times]
    if left or missed:
        pytest.fail("; ".join([*left, *missed]), pytrace=False)


@pytest.fixture
async def _atasks_anyio(anyio_backend: Any) -> AsyncIterator[None]:
    """Keep the event loop of anyio's plugin open for the fixtures that were set up later."""
    name = anyio_backend if isinstance(anyio_backend, str) else anyio_backend[0]
    if name != "asyncio":
        pytest.fail(f"atasks runs on asyncio, and this test on {name}: have anyio_backend return 'asyncio'")
    yield  # noqa: PT022  # the plugin keeps its event loop for what has not ended


@pytest.fixture
def atasks_worker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the calls of a test in worker processes, which are started once for all tests of the run.

    They are those of `local:`, two of them, or serve the broker of --atasks-url, in names of their own. They
    import the modules of the atasks that are registered when the first test asks for them.

    Guarantees: a test fails if it leaves behind calls that are awaited still, or calls that it has submitted and
    that a worker runs still, and that do not end within a second.
    """
    from atasks.contrib.in_tests import Processes

    if "atasks_loopback" in request.fixturenames:
        raise pytest.UsageError(
            f"{request.node.name}: calls run in this process (atasks_loopback, and the marker atasks) or in "
            "worker processes (atasks_worker), not in both"
        )
    stash = request.config.stash
    if _processes not in stash:
        stash[_processes] = Processes(str(request.config.getoption("--atasks-url")))
    with stash[_processes].in_use() as left:
        yield
    if left:
        pytest.fail("; ".join(left), pytrace=False)


@pytest.fixture
def atasks_calls() -> Iterator[CallRecorder]:
    """Record the calls of a test, in order: a sequence of `RecordedCall`s, with `names` and `of(task)`."""
    from atasks.contrib.recorded_calls import CallRecorder, used

    with used(CallRecorder()) as recorder:
        yield recorder


def _marked(item: pytest.Item) -> dict[str, Any]:
    """The arguments of the markers of a test, the nearest one first. Raises UsageError."""
    from atasks.contrib.faults import Fault

    options: dict[str, Any] = dict(KNOWN)
    for mark in reversed(list(item.iter_markers("atasks"))):
        if mark.args or not set(mark.kwargs) <= set(KNOWN):
            given = ", ".join([*map(repr, mark.args), *(f"{name}=" for name in set(mark.kwargs) - set(KNOWN))])
            takes = ", ".join(f"{name}=" for name in KNOWN)
            raise pytest.UsageError(f"{item.name}: the marker atasks takes {takes}, not {given}")
        options.update(mark.kwargs)
    faults = options["faults"]
    if isinstance(faults, Fault):
        options["faults"] = faults = [faults]
    if not isinstance(faults, (list, tuple)) or not all(isinstance(fault, Fault) for fault in faults):
        raise pytest.UsageError(
            f"{item.name}: faults= takes a list of what the functions of atasks.contrib.faults return, "
            "as in faults=[faults.lose_reply('pay')]"
        )
    return options
