"""`--log-level`, `--log-format` and `--log-config`; what is never logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import atasks
from tests.cli.app import App, workers
from tests.cli.shell import Shell

LOGGING = """
    import logging
    from atasks import atask

    log = logging.getLogger("shop")

    @atask(namespace="NAMESPACE")
    async def sell(item, secret=None):
        log.info("sold %s", item)
        if item == "nothing":
            raise LookupError(item)

    async def aiomain(mode):
        if mode == "server":
            return
        log.info("begins")
        await sell("tea", "a secret argument")
        try:
            await sell("nothing", "a secret argument")
        except LookupError:
            pass
    """


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def write(shell: Shell, namespace: str = "default") -> None:
    shell.write("shop.py", LOGGING.replace("NAMESPACE", namespace))


def test_levels_by_name(shell: Shell) -> None:
    write(shell)
    for level, words in (("warning", []), ("info", ["begins", "tea", "nothing", "raised"]), ("DEBUG", ["value"])):
        err = shell.run("run", "shop.py", "--log-level", level).err
        assert all(word in err for word in words), err
        assert ("begins" in err) == (level != "warning")
    done = shell.run("run", "shop.py", "--log-level", "loud")
    assert (done.code, len(done.err.splitlines())) == (2, 1)


def test_lines_of_json(shell: Shell) -> None:
    write(shell)
    done = shell.run("run", "shop.py", "--log-format", "json", "--log-level", "debug")
    lines = lines_of(done.err)
    assert len(lines) == len(done.err.splitlines()), done.err
    (sold, *_) = (line for line in lines if line["message"] == "sold tea")
    assert (sold["task"], sold["logger"], sold["level"]) == ("shop.sell", "shop", "INFO")
    ended = [line for line in lines if line["logger"] == "atasks.call"]
    assert [line["status"] for line in ended] == ["value", "raised"]
    assert ended[0]["call_id"] == sold["call_id"]
    (begins,) = (line for line in lines if line["message"] == "begins")
    assert begins["call_id"] is None


@pytest.mark.parametrize("name", ["log.toml", "log.json"])
def test_a_file_says_all(shell: Shell, name: str) -> None:
    write(shell)
    config = {
        "version": 1,
        "formatters": {"mine": {"format": "mine %(processName)s %(message)s"}},
        "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "mine"}},
        "root": {"level": "INFO", "handlers": ["err"]},
    }
    toml = """
        version = 1
        formatters.mine.format = "mine %(processName)s %(message)s"
        handlers.err = {class = "logging.StreamHandler", formatter = "mine"}
        root = {level = "INFO", handlers = ["err"]}
        """
    shell.write(name, toml if name.endswith("toml") else json.dumps(config))
    assert "mine MainProcess begins\n" in shell.run("run", "shop.py", "--log-config", name).err
    err = shell.run("run", "shop.py", "--log-config", name, "--workers", "1").err
    assert "mine worker 1 sold tea\n" in err


@pytest.mark.parametrize("name", ["log.json", "log.toml"])
def test_a_file_that_an_editor_marked_as_unicode_is_read(shell: Shell, name: str) -> None:
    write(shell)
    content = "version = 1\r\n" if name.endswith("toml") else '{"version": 1}\r\n'
    (shell.directory / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    done = shell.run("run", "shop.py", "--log-config", name)
    assert "log-config" not in done.err


def test_a_file_of_brackets_is_one_line(shell: Shell) -> None:
    write(shell)
    shell.write("log.json", "[" * 100_000)
    shell.write("log.toml", "a = " + "[" * 100_000)
    for name in ("log.json", "log.toml"):
        done = shell.run("run", "shop.py", "--log-config", name)
        assert done.code == 2
        assert done.line().startswith(f"--log-config {name}: ")


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 7}', '{"version": 1, "root": {"handlers": ["x"]}}'])
def test_a_file_that_makes_no_sense_is_one_line(shell: Shell, content: str) -> None:
    write(shell)
    shell.write("log.json", content)
    for name in ("log.json", "missing.json"):
        done = shell.run("run", "shop.py", "--log-config", name)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert done.err.startswith(f"atasks: error: --log-config {name}: ")


def test_worker_processes_log_as_their_supervisor(app: App) -> None:
    write(app.shell, app.namespace)
    supervisor = app.supervise("--workers", "2", "--log-format", "json", "--log-level", "debug", target="shop.py")
    pids = {process.pid for process in workers(supervisor)}
    app.shell.run("run", "shop.py", "--mode", "client", "--namespace", app.namespace, env=app.env)
    ended = [line for line in lines_of(app.end(supervisor)) if line["logger"] == "atasks.call"]
    assert [line["status"] for line in ended] == ["value", "raised"]
    assert {line["process"] for line in ended} <= {"worker 1", "worker 2"}
    assert {line["pid"] for line in ended} <= pids
    assert {line["queue"] for line in ended} == {"default"}


def test_worker_processes_of_a_program_log_as_it_does(shell: Shell) -> None:
    write(shell)
    lines = lines_of(shell.run("run", "shop.py", "--workers", "1", "--log-format", "json", "-v").err)
    (raised,) = (line for line in lines if line["logger"] == "atasks.call")
    (begins,) = (line for line in lines if line["message"] == "begins")
    assert (raised["process"], raised["status"], begins["process"]) == ("worker 1", "raised", "MainProcess")
    assert raised["pid"] != begins["pid"]


def test_arguments_are_in_no_line(app: App) -> None:
    write(app.shell, app.namespace)
    server = app.serve("shop.py", "-vv")
    client = app.shell.run("run", "shop.py", "--mode", "client", "--namespace", app.namespace, "-vv", env=app.env)
    logged = client.err + app.end(server)
    assert " DEBUG " in logged
    assert "secret" not in logged


PROGRAM = """
import asyncio, logging, sys
import atasks
from atasks import atask

logging.basicConfig(level=logging.DEBUG)

@atask
async def sell(secret: str) -> None:
    await asyncio.sleep(0)

async def main() -> None:
    async with atasks.serve(sys.argv[1]), atasks.connect(sys.argv[1]):
        await sell("a secret argument")

asyncio.run(main(), debug=True)
"""


@pytest.mark.parametrize("frames", ["", "1"])
def test_arguments_are_in_no_line_of_a_program_unless_it_asks_for_frames(
    amqp_url: str, prefix: str, tmp_path: Path, frames: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    url = f"{amqp_url}?prefix={prefix}"
    environ = {
        **os.environ,
        "ATASKS_LOG_FRAMES": frames,
        "PYTHONPATH": str(Path(atasks.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, str(script), url], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert "DEBUG:atasks.call:program.sell, call " in done.stderr
    assert ("a secret argument" in done.stderr) == bool(frames), done.stderr
