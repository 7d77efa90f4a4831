"""The PostgreSQL that the tests talk to: a private server of an installed one.

`choose()` takes the database named by `$ATASKS_TEST_POSTGRES_URL`, else a `PrivatePostgres`; it raises
`BrokerError`, which says what to do, where there is neither: tests never skip for want of a database.

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
from collections.abc import Iterable
from pathlib import Path

import psycopg

from tests.brokers.base import BrokerError
from tests.brokers.ports import free_ports, wait_for
from tests.brokers.private_node import guard, kill, own_processes
from tests.brokers.shared_node import locked

__all__ = ["PASSWORD", "Postgres", "PrivatePostgres", "choose"]

URL_VARIABLE = "ATASKS_TEST_POSTGRES_URL"
PASSWORD = "a-secret-of-the-tests"
MISSING = (
    "There is no PostgreSQL for the tests. Do one of these:\n"
    "  - install it (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql): the tests then\n"
    "    start a private server, and leave one that is running alone;\n"
    f"  - set {URL_VARIABLE}=postgresql://user:password@host/database to one that the tests may use."
)
NONE = 3


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


class PrivatePostgres(Postgres):
    """A server of an installed PostgreSQL, with a port and a folder of its own. It keeps no promise to survive the
    machine; it may be stopped, killed and frozen. Should this process die, a guard process ends it."""

    controllable = True

    def __init__(self, bin: Path, template: Path | None = None) -> None:
        """`template`: a folder in which processes that run at once share the making of a new database."""
        self._bin = bin
        self._template = template
        self.port = free_ports(1)[0]
        super().__init__(f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres")
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        folder = self._folder or self._new_folder()
        command = [str(self._bin / "postgres"), "-D", str(folder / "data"), "-p", str(self.port)]
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
            "autovacuum": "off",
            "max_connections": "60",
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (folder / "log" / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=folder, start_new_session=True, **_as_user()
            )
        own_processes.add(self._process.pid)
        self._guard = guard([self._process], folder)
        wait_for(self._answers, self._process, "PostgreSQL", folder)

    def stop(self) -> None:
        """End it at once, and cleanly."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Have it die, and all that it runs: what was not written is lost."""
        self._end(signal.SIGQUIT)

    def freeze(self, frozen: bool) -> None:
        """Have it answer nothing any more, and nobody notice; or go on."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

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


def choose(template: Path | None = None) -> Postgres:
    """The database that the tests use, not started; see the top. Raises BrokerError."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        return Postgres(url)
    folder = find_bin()
    if folder is None:
        raise BrokerError(MISSING)
    return PrivatePostgres(folder, template)


def main() -> int:
    try:
        choose()
    except BrokerError as error:
        print(error, file=sys.stderr)
        return NONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
