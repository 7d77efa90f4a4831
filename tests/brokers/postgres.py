"""The PostgreSQL that the tests talk to.

`choose()` takes the first of these that applies:

1. the database named by `$ATASKS_TEST_POSTGRES_URL`: a `Postgres`. It is used, and not controlled;
2. a `PrivatePostgres`: a server of an installed one, with a port and a folder of its own;
3. a `PostgresContainer`, where a Docker engine answers;

and raises `BrokerError`, which says what to do, where none does: tests never skip for want of a database.
`own()` is for tests that stop a database: it takes the second or the third.

`python -m tests.brokers.postgres` says which it would be (exit code 3: none).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from tests.brokers.base import BrokerError
from tests.brokers.container import docker_answers
from tests.brokers.ports import free_ports, wait_for
from tests.brokers.private_node import guard, kill, own_processes
from tests.brokers.shared_node import locked

__all__ = ["PASSWORD", "OwnPostgres", "Postgres", "PostgresContainer", "PrivatePostgres", "choose", "own"]

URL_VARIABLE = "ATASKS_TEST_POSTGRES_URL"
PASSWORD = "a-secret-of-the-tests"
MISSING = (
    "There is no PostgreSQL for the tests. Do one of these:\n"
    "  - install it (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql): the tests then\n"
    "    start a private server, and leave one that is running alone;\n"
    "  - start a Docker engine: the tests then start a container;\n"
    f"  - set {URL_VARIABLE}=postgresql://user:password@host/database to one that the tests may use."
)
NONE = 3
IMAGE = "postgres:16"
SETTINGS = {"fsync": "off", "shared_buffers": "16MB", "autovacuum": "off", "max_connections": "60"}
"""The settings trade durability for speed: the data need not survive the machine."""


class Postgres:
    """A database that was given: it is used, and not controlled."""

    controllable = False

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        """Have it run."""

    def close(self) -> None:
        """Leave it."""

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """The rows that this gives, or none."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


class OwnPostgres(Postgres, ABC):
    """A server that nobody else uses, on a port that stays the same."""

    controllable = True

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        super().__init__(f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres")

    @abstractmethod
    def stop(self) -> None:
        """End it at once, and cleanly."""

    @abstractmethod
    def kill(self) -> None:
        """Have it die, and all that it runs: what was not written is lost."""

    @abstractmethod
    def freeze(self, frozen: bool) -> None:
        """Have it answer nothing any more, and nobody notice; or go on."""

    def answers(self) -> bool:
        """Return True if it takes connections."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True


class PrivatePostgres(OwnPostgres):
    """A server of an installed PostgreSQL, with a folder of its own. Should this process die, a guard process ends
    it."""

    def __init__(self, bin: Path, template: Path | None = None) -> None:
        """`template`: a folder in which processes that run at once share the making of a new database."""
        self._bin = bin
        self._template = template
        super().__init__()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        folder = self._folder or self._new_folder()
        command = [str(self._bin / "postgres"), "-D", str(folder / "data"), "-p", str(self.port)]
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", **SETTINGS}
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (folder / "log" / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=folder, start_new_session=True, **_as_user()
            )
        own_processes.add(self._process.pid)
        self._guard = guard([self._process], folder)
        wait_for(self.answers, self._process, "PostgreSQL", folder)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def kill(self) -> None:
        self._end(signal.SIGQUIT)

    def freeze(self, frozen: bool) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _pids(self) -> Iterable[int]:
        assert self._process is not None, "it was started"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [self._process.pid, *map(int, children.split())]

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(30)
            own_processes.discard(process.pid)
        watch, self._guard = self._guard, None
        if watch is not None:
            kill(watch)

    def _new_folder(self) -> Path:
        self._folder = folder = Path(tempfile.mkdtemp(prefix="atasks-pg-"))
        (folder / "log").mkdir()
        if self._template is None:
            self._initialize(folder)
        else:
            with locked(self._template / "postgres.lock", fcntl.LOCK_EX):
                model = self._template / "postgres-data"
                if not model.exists():
                    self._initialize(folder)
                    shutil.copytree(folder / "data", model)
                else:
                    shutil.copytree(model, folder / "data")
        _give(folder)
        return folder

    def _initialize(self, folder: Path) -> None:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        _give(folder)
        command = [str(self._bin / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "scram-sha-256"]
        command += [f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--no-locale"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, **_as_user())
        if done.returncode:
            raise BrokerError(f"initdb failed\n{done.stderr}")


class PostgresContainer(OwnPostgres):
    """A server in a container of the Docker engine."""

    def __init__(self) -> None:
        super().__init__()
        self._container: Any = None

    def start(self) -> None:
        if self._container is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # theirs, on import
                from testcontainers.core.container import DockerContainer

            container = DockerContainer(IMAGE)
            container.with_env("POSTGRES_PASSWORD", PASSWORD)
            container.with_command([word for item in SETTINGS.items() for word in ("-c", "=".join(item))])
            container.ports["5432/tcp"] = ("127.0.0.1", self.port)
            self._container = container.start()
        else:
            self._container.get_wrapped_container().start()
        wait_for(self.answers, None, f"the container of {IMAGE}", None)

    def stop(self) -> None:
        self._container.get_wrapped_container().stop()

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def freeze(self, frozen: bool) -> None:
        container = self._container.get_wrapped_container()
        (container.pause if frozen else container.unpause)()

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.stop()


def _as_user() -> dict[str, int]:
    """Another user for PostgreSQL, which refuses to run as root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid}
    raise BrokerError("root may not run PostgreSQL, and there is neither a user postgres nor nobody")


def _give(folder: Path) -> None:
    user = _as_user()
    if user:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user["user"], user["group"])
    if (folder / "data").exists():
        (folder / "data").chmod(0o700)


def find_bin() -> Path | None:
    """The folder of the programs of an installed PostgreSQL, the newest one."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: float(path.parents[1].name),
        reverse=True,
    )
    on_path = shutil.which("initdb")
    found = [*versions, *([Path(on_path)] if on_path else [])]
    return found[0].parent if found else None


def choose(
    template: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    bin: Callable[[], Path | None] = find_bin,
    docker: Callable[[], bool] = docker_answers,
) -> Postgres:
    """The database that the tests use, not started; see the top. Raises BrokerError."""
    url = environ.get(URL_VARIABLE)
    return Postgres(url) if url else own(template, bin, docker)


def own(
    template: Path | None = None,
    bin: Callable[[], Path | None] = find_bin,
    docker: Callable[[], bool] = docker_answers,
) -> OwnPostgres:
    """A database for a test that stops it, not started. Raises BrokerError."""
    folder = bin()
    if folder is not None:
        return PrivatePostgres(folder, template)
    if docker():
        return PostgresContainer()
    raise BrokerError(MISSING)


def main() -> int:
    try:
        choose()
    except BrokerError as error:
        print(error, file=sys.stderr)
        return NONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
