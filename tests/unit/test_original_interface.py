"""The interface of the first releases, for the programs that were written against it."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atasks.codecs import Codec, PickleCodec, get_codec
from atasks.namespaces import namespaces
from atasks.registry import Manager, RegisteringTwice, RegistryItem
from atasks.router import Router, get_router
from atasks.tasks import atask
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.contract import Transport, get_transport
from atasks.transport.loopback import LoopbackTransport
from atasks_cli.original import translate


@pytest.fixture
async def activated(namespace: str) -> AsyncIterator[LoopbackTransport]:
    """The first and the last thing that such a program does."""
    PickleCodec(namespace=namespace)
    LoopbackTransport(namespace=namespace)
    transport = get_transport(namespace)
    assert isinstance(transport, LoopbackTransport)
    await transport.connect()
    router = get_router(namespace)
    await router.activate(transport)
    yield transport
    await router.deactivate()
    await transport.disconnect()


async def test_a_whole_program(namespace: str, activated: LoopbackTransport) -> None:
    @atask(namespace=namespace)
    async def some_task(a: int, b: int) -> int:
        return a + b

    @atask(namespace=namespace)
    def returns_a_future() -> asyncio.Future[str]:
        future = asyncio.get_running_loop().create_future()
        future.set_result("result")
        return future

    assert await some_task(1, b=2) == 3
    assert await returns_a_future() == "result"
    with pytest.raises(TypeError):
        some_task(1)  # type: ignore[call-arg]


async def test_the_default_namespace() -> None:
    name = "tests.original.default"
    task = get_router().register_atask(name, coro=_echo, options={})
    before = namespaces.get("default")
    assert before is not None
    registered = get_transport()
    transport = LoopbackTransport()
    try:
        assert get_transport() is transport
        await transport.connect()
        await get_router().activate(transport)
        assert await task(5) == 5
        assert await get_router().send_request(name, 6) == 6
        await get_router().deactivate()
        await transport.disconnect()
    finally:
        namespaces.register("default", transport=registered)
        get_router().registry.unregister(name)


async def _echo(value: Any) -> Any:
    return value


async def test_register_atask(namespace: str, activated: LoopbackTransport) -> None:
    router = get_router(namespace)
    router.register_atask("echo", coro=_echo, options={"timeout": 5})
    router.register_atask("plain", coro=_echo)
    assert await router.send_request("echo", "value") == "value"
    item = router.registry.get("echo")
    assert isinstance(item, RegistryItem)
    assert (item.coro, item.options.timeout) == (_echo, 5.0)

    async def another(value: Any) -> Any:
        return value

    with pytest.raises(RegisteringTwice):
        router.register_atask("echo", coro=another)
    with pytest.raises(AttributeError):
        router.register_atask("echo", coro=another)


async def test_a_codec_of_a_program(namespace: str, activated: LoopbackTransport) -> None:
    class JsonCodec(Codec):
        async def encode(self, obj: Any) -> bytes:
            return json.dumps(obj).encode()

        async def decode(self, content: bytes) -> Any:
            return json.loads(content)

    codec = JsonCodec(namespace=namespace)
    assert get_codec(namespace) is codec
    task = get_router(namespace).register_atask("echo", coro=_echo)
    assert await task((1, 2)) == [1, 2]


async def test_a_transport_of_a_program(namespace: str) -> None:
    class Postman(Transport):
        connected = False
        carried = 0

        async def connect(self) -> None:
            self.connected = True

        async def disconnect(self) -> None:
            self.connected = False

        async def send_request(self, name: str, content: bytes) -> bytes:
            assert self.connected
            assert type(name) is str
            assert self.callback is not None
            self.carried += len(content)
            return await self.callback(name, content)

    transport = Postman(namespace=namespace)
    assert get_transport(namespace) is transport
    await transport.connect()
    await get_router(namespace).activate(transport)
    task = get_router(namespace).register_atask("echo", coro=_echo)
    assert await asyncio.gather(*(task(n) for n in range(5))) == list(range(5))
    assert transport.carried > 0
    await get_router(namespace).deactivate()
    assert transport.callback is None
    await transport.disconnect()


async def test_a_loopback_with_callbacks_of_a_program(namespace: str) -> None:
    transport = LoopbackTransport(namespace=namespace)
    await transport.connect()

    async def callback(name: str, content: bytes) -> bytes:
        return name.encode() + content

    await transport.register_callback(callback)
    assert await transport.send_request("name", b"content") == b"namecontent"
    await transport.unregister_callback()
    await transport.disconnect()


async def test_a_router_of_a_program(namespace: str, activated: LoopbackTransport) -> None:
    log: list[str] = []

    class Logging(Router):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            log.append(name)
            try:
                return await super().send_request(name, *args, **kwargs)
            finally:
                log.append("done")

    await get_router(namespace).deactivate()
    router = Logging(namespace=namespace)
    assert get_router(namespace) is router
    await router.activate(activated)
    task = router.register_atask("echo", coro=_echo)
    assert await task.options(timeout=5)("value") == "value"
    assert log == ["echo", "done"]
    await router.deactivate()


def test_the_namespace_registry(namespace: str) -> None:
    assert isinstance(namespaces, Manager)
    router, codec, transport = Router(namespace), PickleCodec(namespace), LoopbackTransport(namespace)
    item = namespaces.get(namespace)
    assert isinstance(item, RegistryItem)
    assert (item.router, item.codec, item.transport) == (router, codec, transport)


@pytest.mark.parametrize("protocol", [4, 5])
async def test_the_pickle_codec(namespace: str, protocol: int) -> None:
    codec = PickleCodec(namespace, protocol=protocol)
    value = {"key": [1, (2, 3), None, b"bytes", {4}]}
    content = await codec.encode(value)
    assert isinstance(content, bytes)
    assert content[1] == protocol
    assert await codec.decode(content) == value


def test_the_amqp_transport_is_made_without_a_connection(namespace: str) -> None:
    transport = AMQPTransport(
        url="amqp://user:password@example.invalid:5671/vhost", namespace=namespace, prefix="prefix", queue="work"
    )
    assert isinstance(transport, Transport)
    assert get_transport(namespace) is transport
    assert (transport.namespace, transport.queue) == (namespace, "work")
    assert "password" not in repr(transport)
    plain = AMQPTransport(namespace=namespace)
    assert get_transport(namespace) is plain


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"url": "http://localhost/"}, ValueError),
        ({"queue": "two words"}, ValueError),
        ({"prefix": ""}, ValueError),
        ({"namespace": "two words"}, ValueError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_what_the_amqp_transport_refuses(namespace: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        AMQPTransport(**{"namespace": namespace, **options})
    assert get_transport(namespace) is None


def test_arguments_that_ask_for_what_is_so_today(namespace: str) -> None:
    router = Router(namespace, hostname=None, max_trace_depth=1000)  # type: ignore[call-arg]
    assert get_router(namespace) is router
    codec = PickleCodec(namespace, protocol=None, fix_imports=True, encoding="ASCII")  # type: ignore[call-arg]
    assert codec.protocol == 5
    exchanges = {f"{name}_exchange": "atask" for name in ("request", "response", "event", "broadcast")}
    transport = AMQPTransport(namespace, "amqp://host/", prefix="atask", queue="atask", **exchanges)  # type: ignore
    assert (transport.namespace, transport.queue, transport.session.topology.prefix) == (
        namespace,
        "atask",
        "atask",
    )
    assert transport.session.urls == ["amqp://host/"]


@pytest.mark.parametrize(
    ("cls", "given", "today"),
    [
        (Router, {"hostname": "web1"}, "atasks ps"),
        (Router, {"max_trace_depth": 10}, "max_parked="),
        (Router, {"trace_filter_modules": ("atasks",)}, "__cause__"),
        (Router, {"collect_await_frames": False}, "__cause__"),
        (AMQPTransport, {"request_exchange": "mine"}, "prefix="),
        (AMQPTransport, {"broadcast_exchange": "mine"}, "prefix="),
        (AMQPTransport, {"reconnect_interval": 1}, "pauses that grow"),
        (AMQPTransport, {"client_properties": {"a": 1}}, "connection_name"),
        (PickleCodec, {"encoding": "bytes"}, "Python 2"),
    ],
)
def test_arguments_that_cannot_be_honoured(namespace: str, cls: Any, given: dict[str, Any], today: str) -> None:
    with pytest.raises(
        TypeError, match=f"{next(iter(given))}=.* was an argument of atasks 0.0.3: leave it out: .*{today}"
    ):
        cls(namespace=namespace, **given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        cls(namespace=namespace, colour="red")


@pytest.mark.parametrize("method", ["_call_coro", "_on_request", "_on_event", "_on_broadcast"])
def test_a_method_that_nothing_calls(method: str) -> None:
    with pytest.raises(TypeError, match=f"nothing calls Mine.{method}.*run\\(\\) of a middleware"):
        type("Mine", (Router,), {method: None, "__qualname__": "Mine"})


def test_names_of_its_traces() -> None:
    with pytest.raises(ImportError, match=r"atasks\.trace\.AtaskStackTooDeep was in atasks 0\.0\.3"):
        from atasks.trace import AtaskStackTooDeep  # type: ignore[attr-defined] # noqa: F401
    assert not hasattr(importlib.import_module("atasks.trace"), "nonsense")


async def test_the_errors_of_the_original(namespace: str) -> None:
    from atasks.errors import CallConnectionLost, CallTimeout, NotConnected, UnknownTask
    from atasks.router import JobNotFound, NoClientTransportRegistered, NoCodecRegistered, TransportError
    from atasks.transport.base import ConnectionLostError, RequestTimeoutError

    assert issubclass(RequestTimeoutError, TimeoutError)
    assert issubclass(ConnectionLostError, ConnectionError)
    pairs = [(CallTimeout, RequestTimeoutError), (CallConnectionLost, ConnectionLostError)]
    pairs += [(UnknownTask, JobNotFound), (NotConnected, NoClientTransportRegistered)]
    for today, original in pairs:
        assert issubclass(today, original)

    @atask(namespace=namespace, timeout=0.05)
    async def slow() -> None:
        await asyncio.sleep(60)

    with pytest.raises(NoClientTransportRegistered):
        await slow()
    with pytest.raises(TransportError):
        await slow()
    router = get_router(namespace)
    transport = LoopbackTransport(namespace=namespace)
    await transport.connect()
    await router.activate(transport)
    try:
        with pytest.raises(RequestTimeoutError):
            await slow()
        with pytest.raises(JobNotFound):
            await router.send_request("nobody.knows")
    except NoCodecRegistered:  # as its programs write it; nothing raises it
        pytest.fail("a namespace without a codec of its own has the default one")
    finally:
        await router.deactivate()
        await transport.disconnect()


def test_the_text_of_an_exception() -> None:
    from atasks import trace

    try:
        raise ValueError("seven")
    except ValueError as error:
        text = trace.format_trace(error)
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: seven\n")


PROGRAM = """
from atasks.tasks import atask

@atask
async def add(a, b):
    return a + b

async def aiomain(**options):
    print(options["mode"], await add(1, 2), options.get("n"))
"""


@pytest.mark.parametrize(
    ("given", "translated"),
    [
        ("prog.py", "run prog.py --mode loopback"),
        ("prog.py -T amqp", "run prog.py --mode client --transport amqp"),
        ("a.py b -M server -T amqp -U amqp://h/ -v 4", "run a.py b --mode server --url amqp://h/ -v -v"),
        ("prog.py -M loopback -T amqp -U amqp://h/", "run prog.py --mode loopback"),
        ("prog.py --verbosity=3 --mode=loopback", "run prog.py --mode loopback -v"),
        ("prog.py -o n=1 m=2", "run prog.py --mode loopback -o n=1 -o m=2"),
        ("--help", "run --help"),
    ],
)
def test_the_options_of_the_start_command(given: str, translated: str) -> None:
    assert translate(given.split()) == translated.split()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("", "name a file or a module"),
        ("prog.py -H web1", "--hostname has no counterpart"),
        ("prog.py -L atasks", "--loggers has no counterpart"),
        ("prog.py -M server", "--mode server needs --transport amqp: nobody else reaches a loopback"),
        ("prog.py --nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_an_option_without_a_counterpart(given: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        translate(given.split())
    assert ended.value.code == 2
    today = "the start command of today is: atasks run FILE_OR_MODULE..., see atasks run --help"
    assert capsys.readouterr().err == f"atasks: error: {problem}; {today}\n"


def test_the_start_command_runs_a_program(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "atasks.run", "prog.py", "-M", "client", "-T", "loopback", "-o", "n=5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "loopback 3 5\n"), done.stderr
