"""`atasks health`: says of the servers on this host whether they are well, by the notes that they keep on disk.

A server notes its state once a second in a file of its own, so a probe neither asks the broker nor the server: it
sees a blocked event loop by the age of the note. This module imports nothing of the package: a probe that starts
an interpreter every few seconds must be cheap.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

__all__ = ["Note", "describe", "folder", "main", "notes", "problems"]

PERIOD: Final = 1.0
"""Seconds between two notes of a server."""
LAG: Final = 10.0
"""Seconds without a note after which a server's event loop counts as blocked."""
READS: Final = 5
"""Attempts to read a note that may be half written."""
VARIABLE: Final = "ATASKS_RUN_DIR"

Note = dict[str, Any]
"""One server: `pid`, `supervisor` (a pid, or None), `worker`, `namespace`, `at` and `since` (seconds of the clock
that does not jump), `connected`, `consuming`, `draining`, `running`, `parked`, `waiting`, `slots`, `lag`, and
`queues` (name -> waiting calls, where that is known)."""


def folder() -> Path:
    """The folder of the notes of this user's servers: $ATASKS_RUN_DIR, else in $XDG_RUNTIME_DIR, else in /tmp."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "atasks"
    import tempfile  # for what has no such folder

    return Path(tempfile.gettempdir()) / f"atasks-{os.getuid()}"


def notes(pid: int | None = None, where: Path | None = None) -> list[Note]:
    """The notes of servers that live; `pid`: only that process and those that it supervises. Files that others put
    there, and notes of processes that are gone, are left out."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((where or folder()).glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if path.stat().st_uid != os.getuid():
                    continue
                note = _read(path)
                if note is None or (pid is not None and pid not in (note["pid"], note["supervisor"])):
                    continue
                if _lives(int(note["pid"])) and str(note["pid"]) == path.stem:
                    found.append(note)
    return found


def _read(path: Path) -> Note | None:
    """The note in a file; None, and the file goes, if the server that kept it has ended: nobody locks it then."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            path.unlink(missing_ok=True)
            return None
        for _ in range(READS):
            file.seek(0)
            with contextlib.suppress(ValueError):  # it is being written
                note: Note = json.loads(file.read())
                return note
            time.sleep(0.01)
    return None


def problems(note: Note, *, ready: bool = False, lag: float = LAG) -> list[str]:
    """Why this server is not well, or, with `ready`, why it takes no calls; empty: it is, or it does."""
    found = []
    silent = time.monotonic() - note["at"]
    if silent > lag:
        found.append(f"its event loop has been blocked for {silent:.0f} s")
    if ready and note["draining"]:
        found.append("it drains")
    elif ready and not note["connected"]:
        found.append("it has no connection")
    elif ready and not note["consuming"]:
        found.append("it does not consume")
    return found


def describe(note: Note, found: Sequence[str]) -> str:
    """A line about one server."""
    state = "; ".join(found) or (
        "draining" if note["draining"] else "well" if note["connected"] else "no connection"
    )
    return (
        f"worker {note['worker']} (pid {note['pid']}): {state}; {note['running']} of {note['slots']} slots run, "
        f"{note['parked']} parked, {note['waiting']} waiting"
    )


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code: 0 if every server is well (with --ready: if one at least takes calls), 1 if
    not, or if there is none."""
    import argparse  # `health` also keeps the notes of servers

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"atasks: error: {message} (see atasks health --help)\n")

    parser = Parser(
        prog="atasks health",
        description="Say whether the servers on this host, started by this user, are well. For probes: it reads "
        "notes that servers keep, and asks no broker.",
    )
    parser.add_argument("--ready", action="store_true", help="whether one takes calls: connected and not draining")
    parser.add_argument("--pid", type=int, help="only this process, or those of this supervisor")
    parser.add_argument(
        "--lag", type=float, default=LAG, metavar="S", help="seconds after which a loop is blocked (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print the notes as JSON")
    given = parser.parse_args(argv)
    if not 0 <= given.lag < float("inf"):
        parser.error(f"argument --lag: {given.lag} is no number of seconds")
    found = [(note, problems(note, ready=given.ready, lag=given.lag)) for note in notes(given.pid)]
    if given.json:
        print(json.dumps([note | {"problems": reasons} for note, reasons in found]))
    for note, reasons in found:
        if not given.json:
            print(describe(note, reasons))
    if not found:
        whose = "" if given.pid is None else f" with pid {given.pid}"
        print(f"atasks: error: no server{whose} has left a note in {folder()}", file=sys.stderr)
        return 1
    good = [not reasons for _, reasons in found]
    return 0 if (any(good) if given.ready else all(good)) else 1


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
