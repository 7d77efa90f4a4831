"""A RabbitMQ node that the tests start from an installed server."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.brokers.base import Broker, BrokerError, Queue
from tests.brokers.ports import accepts, free_ports, speaks_amqp, wait_for

__all__ = ["PrivateNode", "find_sbin", "guard", "kill", "own_processes", "start_port_mapper"]

SBIN_VARIABLE = "ATASKS_TEST_RABBITMQ_SBIN"
STOP_TIMEOUT = 60.0
CTL_TIMEOUT = 200.0
"""Seconds: it starts a virtual machine of Erlang, which takes a busy machine for longer than a minute."""

own_processes: set[int] = set()
"""Ids of the processes that brokers of this process have running: no test has leaked these."""


class PrivateNode(Broker):
    """A node of an installed RabbitMQ, run by the tests with name, ports and folders of its own.

    Its Erlang port mapper is its own too, so nothing is shared with a broker that runs already, and all ends with
    the node. Ports are the same after a restart. Should this process die, a guard process ends the node.
    """

    controllable = True
    stoppable = True

    def __init__(self, sbin: Path, ports: Sequence[int] | None = None) -> None:
        """`ports`: for clients, for Erlang's port mapper and for other nodes; None: ones that are free now."""
        self.sbin = sbin
        self.name = f"atasks-{uuid.uuid4().hex[:12]}@localhost"
        self.port, self._epmd_port, self._dist_port = ports or free_ports(3)
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self.port}/")
        self._folder: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._evaluator: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        return bool(self._processes) and self._processes[-1].poll() is None

    @property
    def whereabouts(self) -> dict[str, Any]:
        """The values with which another process can ask this node what `ctl` and `evaluate` can ask."""
        ports = (self.port, self._epmd_port, self._dist_port)
        return {"name": self.name, "url": self.url, "ports": ports, "folder": str(self._folder)}

    def start(self) -> None:
        if self.running:
            return
        self._end(signal.SIGKILL)
        folder = self._folder or self._new_folder()
        with (folder / "log" / "output").open("ab") as output:
            self._start_port_mapper(folder, output)
            node = spawn([str(self.sbin / "rabbitmq-server")], self._environment, output)
            self._processes.append(node)
        self._guard = guard(self._processes, folder)
        try:
            wait_for(lambda: speaks_amqp(self.port), node, "RabbitMQ", folder)
        except BrokerError:
            self._end(signal.SIGKILL)
            raise

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def close(self, logs: Path | None = None) -> None:
        self._end(signal.SIGKILL)
        self._keep_logs(logs)
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        command = [str(self.sbin / "rabbitmqctl"), "--node", self.name, *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=CTL_TIMEOUT, check=False
        )
        if done.returncode:
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def evaluate(self, code: str) -> str:
        # rabbitmqctl takes 0.6 s to start; every AMQP test asks, so one Erlang process is kept to ask through.
        if not self.running:
            raise BrokerError("the broker does not run: start() it first")
        if self._evaluator is None:
            self._evaluator = self._start_evaluator()
        assert self._evaluator.stdin is not None
        assert self._evaluator.stdout is not None
        self._evaluator.stdin.write(f"{code}\n")
        self._evaluator.stdin.flush()
        word, _, encoded = self._evaluator.stdout.readline().rstrip("\n").partition(" ")
        text = base64.b64decode(encoded).decode()
        if word != "value":
            raise BrokerError(f"{code} failed: {text or 'the process that evaluates it ended'}")
        return text

    def queues(self, vhost: str = "/") -> list[Queue]:
        lines = self.evaluate(QUEUES.replace("VHOST", vhost)).splitlines()
        rows = (line.split(" ", 2) for line in lines)
        return [Queue(name, int(messages), int(consumers)) for messages, consumers, name in rows]

    def clear(self, prefix: str) -> list[str]:
        # Every AMQP test asks for this. To connect for it takes the broker longer than to do it.
        return self.evaluate(CLEAR.replace("PREFIX", prefix)).splitlines()

    def management(self) -> str:
        """The address of the HTTP API, which is started for it."""
        assert self._folder is not None, "start() it first"
        (port,) = free_ports(1)
        where = f'[{{port, {port}}}, {{ip, "127.0.0.1"}}]'
        plugins = self._folder / "enabled_plugins"
        plugins.write_text("[rabbitmq_management].")
        self.ctl(
            "eval",
            f"application:set_env(rabbitmq_management, tcp_config, {where}, [{{persistent, true}}]), "
            f'rabbit_plugins:ensure("{plugins}").',
        )
        return f"http://127.0.0.1:{port}"

    def _keep_logs(self, logs: Path | None) -> None:
        if logs is not None and self._folder is not None:
            shutil.rmtree(logs, ignore_errors=True)
            shutil.copytree(self._folder / "log", logs)

    def _start_port_mapper(self, folder: Path, output: IO[bytes]) -> None:
        self._processes.append(start_port_mapper(self._epmd_port, self._environment, folder, output))

    def _start_evaluator(self) -> subprocess.Popen[str]:
        loopback = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        name = f"evaluator-{uuid.uuid4().hex[:12]}@localhost"
        code = EVALUATOR.replace("NODE", f"'{self.name}'")
        process = subprocess.Popen(
            [_program("erl"), "-noshell", "-hidden", "-sname", name, *loopback, "-eval", code],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        own_processes.add(process.pid)
        return process

    def _new_folder(self) -> Path:
        self._folder = folder = Path(tempfile.mkdtemp(prefix="atasks-broker-"))
        for name in ("data", "home", "log"):
            (folder / name).mkdir()
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "environment.conf").write_text("")
        (folder / "rabbitmq.conf").write_text("log.console = false\ndisk_free_limit.absolute = 10MB\n")
        return folder

    @property
    def _environment(self) -> dict[str, str]:
        """This process's own, with what configures this node in place of what configures another."""
        if self._folder is None:
            raise BrokerError("the broker does not run: start() it first")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        folder = self._folder
        return {
            **kept,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "HOME": str(folder / "home"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment.conf"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(folder / "data" / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _end(self, how: signal.Signals) -> None:
        """End the node by this signal, and everything else that was started for it by SIGKILL."""
        if self._evaluator is not None:
            kill(self._evaluator)
            self._evaluator = None
        for process in reversed(self._processes):  # the node, and then its port mapper
            if how is signal.SIGTERM and process is self._processes[-1]:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT)
            kill(process)
        self._processes.clear()
        if self._guard is not None:
            kill(self._guard)
            self._guard = None


GUARD = """
trap '' INT
read -r line && exit
folder=$1
shift
for leader; do kill -s KILL -- "-$leader"; done
rm -rf "$folder"
"""
"""Ends processes, each with its process group, and removes their folder, when its input is closed."""

EVALUATOR = """
Loop = fun Loop() ->
    case io:get_line("") of
        Line when is_list(Line) ->
            {Word, Result} = try
                {ok, Tokens, _} = erl_scan:string(Line),
                {ok, Expressions} = erl_parse:parse_exprs(Tokens),
                {value, Value, _} = rpc:call(NODE, erl_eval, exprs, [Expressions, []], 20000),
                {"value", Value}
            catch
                _:Error -> {"error", Error}
            end,
            Text = case catch unicode:characters_to_binary(Result) of
                Binary when is_binary(Binary) -> Binary;
                _ -> unicode:characters_to_binary(io_lib:format("~0tp", [Result]))
            end,
            io:format("~s ~s~n", [Word, base64:encode(Text)]),
            Loop();
        _ ->
            halt()
    end
end,
Loop().
"""
"""Erlang that answers each line, some expressions, with what they come to at the node: text, or a printed term."""

QUEUES = (
    'Rows = rabbit_amqqueue:info_all(<<"VHOST">>, [name, messages, consumers]),'
    '[io_lib:format("~b ~b ~ts~n", [Messages, Consumers, Name])'
    " || [{name, {resource, _, queue, Name}}, {messages, Messages}, {consumers, Consumers}] <- Rows,"
    " is_integer(Messages), is_integer(Consumers)]."
)
"""Erlang for the queues of a virtual host, one a line; not those that are just being made or removed."""

CLEAR = (
    'Start = <<"PREFIX.">>, Remove = fun(Name) -> rabbit_exchange:delete('
    '{resource, <<"/">>, exchange, <<Start/binary, Name/binary>>}, false, <<"tests">>) end,'
    ' [Remove(Name) || Name <- [<<"control">>, <<"events">>, <<"due">>, <<"due.early">>]],'
    "Found = [{Name, Queue}"
    ' || Queue <- rabbit_amqqueue:list(<<"/">>), {resource, _, queue, Name} <- [amqqueue:get_name(Queue)],'
    " string:prefix(Name, Start) =/= nomatch],"
    '[catch rabbit_amqqueue:delete(Queue, false, false, <<"tests">>) || {_, Queue} <- Found],'
    '[Remove(<<"delay.", Rest/binary>>)'
    ' || {Name, _} <- Found, (Rest = string:prefix(Name, <<Start/binary, "delay.">>)) =/= nomatch],'
    '[io_lib:format("~ts~n", [Name]) || {Name, _} <- Found].'
)
"""Erlang that removes queues and exchanges of a prefix, as `Broker.clear`, and names the queues, one a line."""


def find_sbin(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of an installed RabbitMQ's scripts; not that of a wrapper which would switch to another user."""
    if SBIN_VARIABLE in environ:
        return Path(environ[SBIN_VARIABLE])
    folders = [
        Path("/usr/lib/rabbitmq/bin"),
        *sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin")),
    ]
    # Servers are often not on the PATH of users other than root.
    path = os.pathsep.join((environ.get("PATH", ""), "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/sbin"))
    on_path = shutil.which("rabbitmq-server", path=path)
    if on_path is not None:
        folders.append(Path(on_path).parent)
    return next((folder for folder in folders if os.access(folder / "rabbitmq-server", os.X_OK)), None)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BrokerError(f"RabbitMQ is installed, but Erlang's {name!r} is not on the PATH: add its folder")
    return path


def start_port_mapper(
    port: int, environment: Mapping[str, str], folder: Path, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Erlang's port mapper, listening. It is a child of this process: one that a node starts outlives the node."""
    process = spawn([_program("epmd"), "-address", "127.0.0.1", "-port", str(port)], environment, output)
    try:
        wait_for(lambda: accepts(port), process, "Erlang's port mapper", folder)
    except BrokerError:
        kill(process)
        raise
    return process


def guard(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> subprocess.Popen[bytes]:
    """A process that ends these and removes the folder, should this process die."""
    leaders = [str(process.pid) for process in processes]
    process = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", str(folder), *leaders], stdin=subprocess.PIPE, start_new_session=True
    )
    own_processes.add(process.pid)
    return process


def spawn(command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start it in a session of its own: a Ctrl-C is for the tests, and `kill` takes its children too."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=environment["HOME"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    own_processes.add(process.pid)
    return process


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL the process group that it leads, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    own_processes.discard(process.pid)
