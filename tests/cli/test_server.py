"""`--mode server` and `--mode client` over a real broker."""

from __future__ import annotations

import time
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import pytest

from tests.broker import Broker
from tests.cli.app import App
from tests.cli.shell import Shell


def test_client_awaits_a_server(app: App) -> None:
    server = app.serve()
    assert app.call("add", "-o", "args=[1, 2]").finish().out == "3\n"
    assert app.call("pid").finish().out == f"{server.process.pid}\n"
    server.signal(SIGTERM)
    done = server.finish()
    assert done.code == 0
    ready, drained = done.err.splitlines()
    where = f"on queues 'default', 'gpu' of {app.shown} with concurrency 100"
    assert ready == f"atasks: serving 9 atasks {where}; Ctrl-C to drain"
    assert drained == "atasks: draining: no call is running"


def test_file_and_module_serve_the_same_names(app: App) -> None:
    server = app.serve("tasks")
    assert app.call("add", "-o", "args=[1, 2]").finish().out == "3\n"
    server.signal(SIGINT)
    assert server.finish().code == 0


def test_server_takes_only_the_queues_it_is_given(app: App) -> None:
    default = app.serve("tasks.py", "--queue", "default")
    gpu = app.serve("tasks.py", "--queue", "gpu", "--concurrency", "2")
    assert "on queue 'gpu' of" in gpu.err[0]
    assert "with concurrency 2;" in gpu.err[0]
    assert app.call("train").finish().out == "trained\n"
    assert app.call("pid").finish().out == f"{default.process.pid}\n"
    for server in (default, gpu):
        server.signal(SIGTERM)
        assert server.finish().code == 0


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_drain_lets_a_running_call_finish(app: App, number: Signals) -> None:
    server = app.serve()
    client = app.call("gated")
    server.wait_for("running")
    server.signal(number)
    line = server.wait_for("draining")
    assert line == "atasks: draining: 1 call is running, for at most 30 s; Ctrl-C again to exit at once\n"
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert server.finish().code == 0


def test_a_call_whose_child_exits_costs_no_other_call(any_app: App) -> None:
    server = any_app.serve()
    client = any_app.call("gated")
    server.wait_for("running")
    culprit = any_app.call("leave").finish()
    assert culprit.code != 0
    assert "SystemExit" in culprit.err
    server.wait_for("the worker goes on")
    any_app.gate.write_text("")
    assert client.finish().out == "through\n"
    server.signal(SIGTERM)
    assert server.finish().code == 0


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("to_thread", "goes on in thread 'asyncio-call_0'"),
        ("pool", "runs still, at"),
        ("own", "thread 'mine' runs"),
        ("left", "the event loop is blocked at"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--workers", "1")], ids=["alone", "supervised"])
def test_threads_do_not_keep_a_server_past_its_grace(
    socket_app: App, options: tuple[str, ...], which: str, said: str
) -> None:
    server = socket_app.start("--grace", "0.5", *options)
    server.wait_for("serv")
    client = socket_app.call("in_threads", "-o", f'args=["{which}"]')
    server.wait_for("running")
    began = time.monotonic()
    server.signal(SIGTERM)
    server.wait_for(said)
    assert server.finish().code == 0
    assert time.monotonic() - began < 50, "it waited for the thread"
    client.signal(SIGTERM)
    client.finish()


def test_drain_gives_back_what_does_not_finish(app: App) -> None:
    server = app.serve("tasks.py", "--grace", "0")
    client = app.call("handed_on")
    server.wait_for("running")
    other = app.serve()
    server.signal(SIGTERM)
    assert server.finish().code == 0
    other.wait_for("running")
    assert client.finish().out == "through\n"
    other.signal(SIGTERM)
    assert other.finish().code == 0


@pytest.mark.parametrize("options", [(), ("--workers", "1")], ids=["alone", "supervised"])
def test_a_terminal_that_is_closed_has_a_server_drain(socket_app: App, options: tuple[str, ...]) -> None:
    server = socket_app.start(*options)
    server.wait_for("serv")
    client = socket_app.call("gated")
    server.wait_for("running")
    server.signal(SIGHUP)
    server.wait_for("draining")
    server.signal(SIGHUP)
    socket_app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert server.finish().code == 0


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_second_signal_exits_at_once(app: App, number: Signals, code: int) -> None:
    server = app.serve()
    client = app.call("forever")
    server.wait_for("running")
    server.signal(number)
    server.wait_for("draining: 1 call is running")
    server.signal(number)
    done = server.finish()
    assert done.code == code
    assert "cancelled" not in done.out
    assert "Traceback" not in done.err
    client.signal(SIGINT)
    ended = client.finish()
    assert (ended.code, ended.out, ended.err) == (130, "", "")


def test_a_client_whose_terminal_is_closed(socket_app: App) -> None:
    server = socket_app.serve()
    client = socket_app.call("forever")
    server.wait_for("running")
    client.signal(SIGHUP)
    assert client.finish().code == 129
    server.wait_for("cancelled")
    server.signal(SIGTERM)
    assert server.finish().code == 0


def test_interrupted_client_withdraws_its_call(app: App) -> None:
    server = app.serve()
    client = app.call("forever")
    server.wait_for("running")
    client.signal(SIGINT)
    server.wait_for("cancelled")
    done = client.finish()
    assert (done.code, done.out, done.err) == (130, "", "")
    server.signal(SIGTERM)
    assert server.finish().code == 0


def test_interrupted_client_that_waits_for_a_worker(app: App) -> None:
    app.shell.write(
        "client.py", "import tasks\nasync def aiomain():\n    print('calling')\n    await tasks.add(1, 2)"
    )
    client = app.shell.start("run", "client.py", "--mode", "client", "--namespace", app.namespace, env=app.env)
    client.wait_for("calling")
    client.signal(SIGINT)
    done = client.finish()
    assert (done.code, done.out) == (130, "calling\n")
    # Whether the broker has returned the call by then, which is logged, depends on who is faster.
    assert all("calls wait for a worker" in line for line in done.err.splitlines())


def test_aiomain_of_a_server_runs_beside_it(app: App) -> None:
    app.shell.write(
        "beside.py",
        """
        import tasks

        async def aiomain(mode, transport):
            print(mode, transport, await tasks.add(1, 2), flush=True)
        """,
    )
    server = app.serve("beside.py")
    assert server.wait_for("server") == "server amqp 3\n"
    assert app.call("pid").finish().out == f"{server.process.pid}\n"  # it returned, and that ended nothing
    server.signal(SIGTERM)
    assert server.finish().code == 0


def test_aiomain_of_a_server_is_cancelled_after_the_drain(app: App) -> None:
    app.shell.write(
        "holding.py",
        """
        import asyncio, tasks

        async def aiomain():
            print("open", flush=True)
            try:
                await asyncio.Event().wait()
            finally:
                print("closed", flush=True)
        """,
    )
    server = app.serve("holding.py")
    server.wait_for("open")
    client = app.call("gated")
    server.wait_for("running")
    server.signal(SIGTERM)
    server.wait_for("draining")
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    done = server.finish()
    assert (done.code, done.out) == (0, "open\nrunning\nclosed\n")


def test_aiomain_of_a_server_that_raises_ends_it(app: App) -> None:
    app.shell.write("failing.py", "import tasks\nasync def aiomain():\n    raise ValueError(3)")
    server = app.serve("failing.py")
    done = server.finish()
    assert done.code == 1
    assert "ValueError: 3\n" in done.err
    assert "error: aiomain() of failing raised ValueError" in done.err
    assert "draining: no call is running" in done.err
    assert "atasks_cli" not in done.err


def test_queue_that_exists_with_other_arguments(app: App, broker: Broker) -> None:
    name = f"atasks.q.{app.namespace}.default"
    with broker.channel() as channel:
        channel.queue_declare(name, durable=True, arguments={"x-max-length": 3})
    arguments = ("--mode", "server", "--namespace", app.namespace)
    done = app.shell.run("run", "tasks.py", *arguments, env=app.env)
    with broker.channel() as channel:
        channel.queue_delete(name)
    assert done.code == 7
    (line,) = [line for line in done.err.splitlines() if line.startswith("atasks: ")]
    assert "error: RabbitMQ at " in line
    assert "inequivalent arg" in line
    assert "Traceback" not in done.err


def test_connection_that_is_lost_for_good(shell: Shell) -> None:
    shell.write(
        "losing.py",
        """
        import asyncio, atasks
        from atasks.schemes import TRANSPORTS

        class Losing(atasks.Transport):
            async def connect(self):
                pass

            async def disconnect(self):
                print("disconnected")

            async def serve(self, worker, queues=None):
                asyncio.get_running_loop().call_soon(worker.fail, atasks.ConnectFailed("the broker has moved"))

        TRANSPORTS["amqp"] = "losing:Losing"

        @atasks.atask
        async def add(a, b):
            return a + b

        async def aiomain():
            try:
                await asyncio.Event().wait()
            finally:
                print("cancelled")
        """,
    )
    done = shell.run("run", "losing.py", "--mode", "server")
    assert (done.code, done.out) == (6, "cancelled\ndisconnected\n")
    assert done.err.splitlines()[-1] == "atasks: error: the broker has moved; start it again"
    assert "Traceback" not in done.err


def test_no_payload_is_logged(any_app: App) -> None:
    server = any_app.serve("tasks.py", "-vv")
    done = any_app.call("add", "-o", 'args=["open ", "sesame"]', "-vv").finish()
    assert done.out == "open sesame\n"
    for output in (done.err, any_app.end(server)):
        assert " DEBUG " in output
        assert "sesame" not in output
