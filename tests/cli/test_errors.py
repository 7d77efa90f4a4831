"""Mistakes of newcomers: each gets one line that says what to do, and an exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from atasks_cli.main import main
from tests.cli.command import Done
from tests.cli.shell import Shell

TASKS = "from atasks import atask\n@atask\nasync def add(a, b):\n    return a + b\n"
MAIN = "async def aiomain(**options):\n    print('ran')\n"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this host that refuses connections: bound, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# --- modules


def test_module_that_does_not_exist(shell: Shell) -> None:
    shell.write("tasks.py", MAIN)
    done = shell.run("run", "taks.py")
    assert (done.code, done.line()) == (3, "no such file: taks.py; did you mean tasks.py?")
    done = shell.run("run", "taks")
    assert (done.code, done.line()) == (3, "no such module: taks; did you mean tasks?")


def test_no_line_has_what_a_terminal_would_obey(shell: Shell) -> None:
    done = shell.run("run", "\x1b[31mtasks\x07\u202e.py")
    assert (done.code, done.line()) == (3, "no such file: ?[31mtasks??.py; give a Python file or a module name")


def test_module_that_fails_on_import(shell: Shell) -> None:
    shell.write("bad.py", "import json\n\njson.loads('')\n")
    done = shell.run("run", "bad.py")
    assert done.code == 3
    assert done.line().startswith("cannot import bad.py: JSONDecodeError: ")
    assert done.line().endswith(" (bad.py:3)")
    whole = shell.run("run", "bad.py", "-vv")
    assert "json/decoder.py" in whole.err
    assert whole.err.splitlines()[-1] == "atasks: error: " + done.line()


def test_two_atasks_of_one_name(shell: Shell) -> None:
    shell.write("one.py", "from atasks import atask\n@atask(name='add')\nasync def add():\n    pass\n")
    shell.write("two.py", "from atasks import atask\n@atask(name='add')\nasync def sum():\n    pass\n")
    done = shell.run("run", "one.py", "two.py")
    assert done.code == 3
    assert done.line().startswith("cannot import two.py: RegisteringTwice: two atasks are named 'add'")


def test_nothing_to_run(shell: Shell) -> None:
    shell.write("tasks.py", TASKS)
    for mode in ("loopback", "client"):
        done = shell.run("run", "tasks.py", "--mode", mode)
        assert done.code == 2
        assert done.line() == (
            "nothing to run: no aiomain() in tasks; define async def aiomain(), "
            "or serve its atasks with --mode server"
        )


def test_nothing_to_serve(shell: Shell) -> None:
    shell.write("empty.py", "")
    shell.write("other.py", TASKS.replace("@atask", "@atask(namespace='other')"))
    done = shell.run("run", "empty.py", "--mode", "server")
    assert done.code == 2
    assert done.line() == "nothing to serve: no atask in empty; decorate a coroutine function with @atask"
    assert shell.run("run", "empty.py", "other.py", "--mode", "server").line() == (
        "nothing to serve: no atask in empty or other; those in it are in namespace 'other': add --namespace other"
    )


def test_a_server_that_serves_nothing_but_an_aiomain_says_so(shell: Shell, amqp_url: str) -> None:
    shell.write("main.py", "import sys\nasync def aiomain():\n    raise SystemExit(5)\n")
    done = shell.run("run", "main.py", "--mode", "server", "--url", amqp_url)
    assert done.code == 5
    assert done.err.startswith(
        "atasks: warning: no atask in main, so only aiomain() runs here: "
        "decorate a coroutine function with @atask, or say --mode client\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [[], ["--workers", "1"]])
def test_output_that_nobody_reads(shell: Shell, unbuffered: str, arguments: list[str]) -> None:
    shell.write("many.py", TASKS + "async def aiomain():\n    for n in range(30000):\n        print('line', n)\n")
    command = shell.start("run", "many.py", *arguments, env={"PYTHONUNBUFFERED": unbuffered}, read=1)
    done = command.finish()
    assert (done.code, done.out, done.err) == (141, "line 0\n", "")


def test_aiomain_that_is_no_function(shell: Shell) -> None:
    shell.write("value.py", "aiomain = 3")
    shell.write("generator.py", "async def aiomain():\n    yield")
    done = shell.run("run", "value.py")
    assert (done.code, done.line()) == (2, "aiomain in value is no function: define async def aiomain()")
    done = shell.run("run", "generator.py")
    assert (done.code, done.line()) == (2, "aiomain() of generator is a generator: it may not yield")


# --- commands that look at a fleet, and calls


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ping", "--timeout", "nan"], ["--timeout", "nan"]),
        (["ping", "--timeout", "inf"], ["--timeout", "inf"]),
        (["call", "tasks:add", "--timeout", "nan"], ["--timeout", "nan"]),
        (["call", "tasks:add", "--timeout", "1e12"], ["--timeout", "range"]),
        (["watch", "--sample", "nan"], ["--sample", "nan"]),
        (["ps", "--prefix", "a b"], ["--prefix 'a b'", "letters, digits"]),
        (["call", "tasks:add", "1", "2", "--prefix", ""], ["--prefix ''", "not empty"]),
        (["timeline", "-o", "missing/trace.json"], ["missing/trace.json", "No such file"]),
        (["health", "--lag", "nan"], ["--lag", "nan is no number of seconds"]),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_asked(
    shell: Shell, arguments: list[str], words: list[str]
) -> None:
    shell.write("tasks.py", TASKS)
    done = shell.run(*arguments, env={"ATASKS_URL": "amqp://127.0.0.1:1/"})
    assert done.code == 2
    for word in words:
        assert word in done.line()


def test_a_call_without_a_way_to_a_worker_is_one_line(shell: Shell, closed_port: int) -> None:
    shell.write("tasks.py", TASKS)
    done = shell.run("call", "tasks:add", "1", "2", "--url", f"amqp://127.0.0.1:{closed_port}/")
    assert done.code == 4
    assert done.line().startswith("cannot reach RabbitMQ")


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "serve"], ["--mode", "'serve'", "loopback", "server", "client"]),
        (["--concurrency", "0"], ["--concurrency", "0", "1"]),
        (["--concurrency", "many"], ["--concurrency", "'many'"]),
        (["--transport", "redis"], ["--transport", "'redis'", "loopback", "amqp"]),
        (["--grace", "-1"], ["--grace", "-1"]),
        (["--grace", "nan", "--mode", "server"], ["--grace", "nan"]),
        (["--wrkers", "2"], ["--wrkers", "--help"]),
        (["--namespace", "a b", "--mode", "server"], ["--namespace 'a b'", "letters, digits"]),
        (["--queue", "", "--mode", "server"], ["--queue ''", "letters, digits"]),
        (["--queue", "gpu"], ["--queue is for --mode server", "--mode loopback"]),
        (["--grace", "5", "--mode", "client"], ["--grace is for --mode server", "--mode client"]),
        (["--concurrency", "5", "--mode", "client"], ["--concurrency is for workers"]),
        (["--threads", "0"], ["--threads", "0", "1"]),
        (["--processes", "5", "--mode", "client"], ["--processes is for workers"]),
        (["--mode", "server", "--transport", "loopback"], ["--mode server needs", "--transport names loopback"]),
        (["--mode", "client", "--url", "loopback:"], ["--mode client needs", "--url names loopback"]),
        (["--url", "amqp://localhost/"], ["--mode loopback", "--url names amqp", "--mode server"]),
        (["--transport", "amqp"], ["--mode loopback", "--transport names amqp"]),
        (
            ["--mode", "loopback", "--workers", "2"],
            ["--mode loopback runs every call in this process", "--workers"],
        ),
        (["--mode", "loopback", "--url", "local:"], ["--mode loopback runs every call", "--url names local"]),
        (["--workers", "2", "--url", "amqp://u:secret@host/"], ["--workers runs aiomain()", "--mode server"]),
        (
            ["--mode", "client", "--transport", "loopback", "--url", "amqp://u:secret@host/"],
            ["--transport loopback contradicts --url amqp:..."],
        ),
        (["--mode", "client", "--url", "localhost"], ["--url names no transport", "amqp://localhost"]),
        (["--mode", "client", "--url", "localhost:5672"], ["--url names no transport", "amqp://localhost:5672"]),
        (["--mode", "client", "--url", "ampq://u:secret@host/"], ["--url begins with ampq:", "amqp:"]),
        (["--mode", "client", "--url", "amqp://u:secret@[/"], ["--url is no URL"]),
        (["--mode", "client", "--url", "amqp://u:secret@host:port/"], ["amqp://user:password@host"]),
        (["--mode", "client", "--url", ""], ["--url names no transport"]),
    ],
)
def test_wrong_command_line(shell: Shell, arguments: list[str], words: list[str]) -> None:
    """In this process: other tests here hold the program to it that each mistake is one line."""
    path = shell.write("tasks.py", TASKS + MAIN)
    done = CliRunner().invoke(main, ["run", str(path), *arguments], env={"ATASKS_URL": None})
    assert (done.exit_code, done.stdout) == (2, "")
    line = Done(done.exit_code, done.stdout, done.stderr).line()
    for word in words:
        assert word in line
    assert "secret" not in line


def test_url_of_the_environment(shell: Shell) -> None:
    shell.write("show.py", "async def aiomain(url):\n    print(url)")
    bad = {"ATASKS_URL": "ampq://u:secret@host/"}
    done = shell.run("run", "show.py", "--mode", "client", env=bad)
    assert done.code == 2
    assert done.line().startswith("$ATASKS_URL begins with ampq:")
    assert shell.run("run", "show.py", env=bad).out == "loopback:\n"


@pytest.mark.parametrize(
    ("arguments", "token"),
    [(["--token", ""], None), (["--host", "0.0.0.0", "--token", ""], "x"), ([], ""), ([], "é")],
)
def test_a_page_without_a_secret_in_its_token(shell: Shell, arguments: list[str], token: str | None) -> None:
    """The shell puts nothing in the place of a variable that is not set: everybody would look."""
    env = {} if token is None else {"ATASKS_WEB_TOKEN": token}
    done = shell.run("web", *arguments, "--port", "0", env=env)
    assert done.code == 2
    assert done.line().startswith("the token (--token, or $ATASKS_WEB_TOKEN) is ")


def test_file_without_run(shell: Shell) -> None:
    shell.write("tasks.py", MAIN)
    done = shell.run("tasks.py")
    assert done.code == 2
    assert "did you mean atasks run tasks.py?" in done.line()


def test_no_arguments(shell: Shell) -> None:
    done = shell.run()
    assert done.code == 2
    assert "Usage: atasks" in done.err
    done = shell.run("run")
    assert done.code == 2
    assert "FILE_OR_MODULE" in done.line()
    assert "atasks run --help" in done.line()


# --- the broker


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"AMQP\x00\x01\x00\x00"],
)
def test_a_port_that_is_not_rabbitmqs(shell: Shell, answer: bytes) -> None:
    shell.write("tasks.py", TASKS + MAIN)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(8)
                link.sendall(answer)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        url = f"amqp://127.0.0.1:{listener.getsockname()[1]}/"
        done = shell.run("run", "tasks.py", "--mode", "client", "--url", url)
        server.join()
    assert done.code == 4
    assert "something listens there and does not answer as RabbitMQ does: check the port" in done.line()
    assert "docker" not in done.line()


def test_tls_to_a_port_without(shell: Shell, amqp_url: str) -> None:
    shell.write("tasks.py", TASKS + MAIN)
    done = shell.run("run", "tasks.py", "--mode", "client", "--url", amqp_url.replace("amqp://", "amqps://"))
    assert done.code == 4
    assert "this port speaks no TLS: give an amqp:// URL" in done.line()


@pytest.mark.parametrize("mode", ["server", "client"])
def test_broker_that_is_down(shell: Shell, closed_port: int, mode: str) -> None:
    shell.write("tasks.py", TASKS + MAIN)
    url = f"amqp://ann:secret@127.0.0.1:{closed_port}/"
    done = shell.run("run", "tasks.py", "--mode", mode, "--url", url)
    assert (done.code, done.out) == (4, "")
    line = done.line()
    assert f"127.0.0.1:{closed_port}" in line
    assert "--url or $ATASKS_URL" in line
    assert "secret" not in line
    whole = shell.run("run", "tasks.py", "--mode", mode, "--url", url, "-vv")
    assert whole.code == 4
    assert "Traceback" in whole.err
    assert whole.err.splitlines()[-1] == "atasks: error: " + line


def test_wrong_password(shell: Shell, amqp_url: str) -> None:
    shell.write("tasks.py", TASKS)
    address = urlsplit(amqp_url)
    wrong = f"amqp://{address.username}:secret@{address.hostname}:{address.port}{address.path}"
    done = shell.run("run", "tasks.py", "--mode", "server", env={"ATASKS_URL": wrong})
    assert done.code == 5
    assert "check the user and the password" in done.line()
    assert "secret" not in done.line()


def test_unknown_virtual_host(shell: Shell, amqp_url: str) -> None:
    shell.write("tasks.py", TASKS)
    host = f"none-{uuid.uuid4().hex}"
    done = shell.run("run", "tasks.py", "--mode", "server", "--url", f"{amqp_url.rpartition('/')[0]}/{host}")
    assert done.code == 5
    assert host in done.line()


@pytest.mark.parametrize("arguments", ["--help", "completion bash"])
def test_output_of_other_commands_that_nobody_reads_has_the_same_code(shell: Shell, arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = (sys.executable, "-m", "atasks", *arguments.split())
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60, cwd=shell.directory
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
