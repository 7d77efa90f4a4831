"""Fleets of two versions of atasks: one out of the repository's history, and the present one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

import atasks
from tests.faults.processes import Process
from tests.faults.talks import TalkProcess
from tests.faults.workers import Fleet, WorkerProcess

__all__ = ["DIRECTIONS", "ROOT", "VERSIONS", "Talks", "Version", "checked_out"]

ROOT = Path(atasks.__file__).parent.parent
OPTIONS = {"max_priority": 3, "caller_patience": 5.0}

Version = str
VERSIONS = ("older", "newer")
DIRECTIONS = [("older", "newer"), ("newer", "older")]


def checked_out(commit: str, path: Path) -> Path:
    """Put the `atasks` of that commit into this directory."""
    archived = subprocess.run(["git", "archive", commit, "atasks"], cwd=ROOT, capture_output=True)
    if archived.returncode:
        pytest.fail(
            f"the history of this clone does not reach back to commit {commit}, whose version of atasks this test "
            f"runs beside this one: clone the repository whole, or run `git fetch --unshallow`. "
            f"git says: {archived.stderr.decode().strip()}"
        )
    subprocess.run(["tar", "-x", "-C", str(path)], input=archived.stdout, check=True)
    return path


class Talks:
    """Workers and caller processes of both versions; `close` ends the callers."""

    def __init__(
        self,
        fleet: Fleet,
        sources: dict[Version, Path | None],
        serving: Mapping[str, object] | None = None,
        calling: Mapping[str, object] | None = None,
    ) -> None:
        """`serving` and `calling`: further options of all workers, and of all callers."""
        self.fleet = fleet
        self.sources = sources
        self.begun: list[Process] = []
        self._serving = {**OPTIONS, **(serving or {})}
        self.calling = {"prefix": fleet.prefix, **(calling or {})}

    def begin(self, version: Version, talk: str, **arguments: object) -> TalkProcess:
        """Each has a record of its own prefix: the fleet's."""
        url, record = self.fleet.broker.url, self.fleet.record
        process = TalkProcess(record, talk, url, self.calling, self.sources[version], **arguments)
        self.begun.append(process)
        return process

    def start(self, version: Version, **options: object) -> WorkerProcess:
        """A worker."""
        given = {**self._serving, **options}
        return self.fleet.start_one(sources=self.sources[version], **given)  # type: ignore[arg-type]

    def submit(self, version: Version, gates: Path, stages: int) -> str:
        """Submit a run of so many stages, or a call if there is none, by a process that ends then; its id."""
        process = Process(
            "tests.faults.submitters",
            self.fleet.broker.url,
            json.dumps(self.calling),
            str(gates),
            str(stages),
            sources=self.sources[version],
        )
        self.begun.append(process)
        assert process.wait() == 0, process.output
        return process.output.strip()

    def close(self) -> None:
        """End the callers, and show what they said."""
        for each in self.begun:
            print(f"--- caller {each.pid}\n{each.output[-5000:]}")
            each.close()
