"""Three nodes of an installed RabbitMQ that are one cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tests.brokers.base import BrokerError
from tests.brokers.ports import free_ports
from tests.brokers.private_node import PrivateNode, guard, kill, start_port_mapper

__all__ = ["Cluster", "ClusterNode"]

SIZE = 3


class ClusterNode(PrivateNode):
    """A private node that shares its cookie and the port mapper with other nodes."""

    def __init__(self, sbin: Path, ports: tuple[int, int, int], cookie: str) -> None:
        super().__init__(sbin, ports)
        self._cookie = cookie

    def _new_folder(self) -> Path:
        folder = super()._new_folder()
        cookie = folder / "home" / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)  # Erlang refuses one that others may read
        return folder

    def _start_port_mapper(self, folder: Path, output: IO[bytes]) -> None:
        """Start none: the port mapper belongs to the cluster, because it has to outlive this node."""


class Cluster:
    """Private nodes, of which any may be stopped, killed and started again: see `PrivateNode`."""

    def __init__(self, sbin: Path) -> None:
        self._epmd_port, *ports = free_ports(1 + 2 * SIZE)
        cookie = uuid.uuid4().hex.upper()
        pairs = zip(ports[::2], ports[1::2], strict=True)
        self.nodes = [ClusterNode(sbin, (port, self._epmd_port, dist), cookie) for port, dist in pairs]
        self._folder: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def urls(self, first: int = 0) -> list[str]:
        """The URLs of all nodes, beginning with the one of that number."""
        return [node.url for node in self.nodes[first:] + self.nodes[:first]]

    def start(self) -> None:
        """Make every node run, as members of the cluster."""
        if self._folder is not None:
            self.each(ClusterNode.start)
            return
        self._folder = folder = Path(tempfile.mkdtemp(prefix="atasks-cluster-"))
        (folder / "log").mkdir()
        with (folder / "log" / "output").open("ab") as output:
            epmd = start_port_mapper(self._epmd_port, {"HOME": str(folder)}, folder, output)
        self._processes = [epmd, guard([epmd], folder)]
        self.each(ClusterNode.start)
        first, *others = self.nodes
        for node in others:  # one after the other: the first one must not be asked by two at once
            node.ctl("stop_app")
            node.ctl("join_cluster", first.name)
            node.ctl("start_app")

    def close(self, logs: Path | None = None) -> None:
        """End it, and remove what it has on disk; the nodes' logs become folders in `logs`, if named."""
        if logs is not None:
            shutil.rmtree(logs, ignore_errors=True)
            logs.mkdir()
        for number, node in enumerate(self.nodes):
            node.close(logs / f"node-{number}" if logs is not None else None)
        while self._processes:
            kill(self._processes.pop())  # the guard, and then the port mapper
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def each(self, action: Callable[[ClusterNode], object]) -> None:
        """Do this to every node, at once."""
        with ThreadPoolExecutor(SIZE) as threads:
            list(threads.map(action, self.nodes))

    def leader(self, queue: str) -> ClusterNode:
        """The node that leads a quorum queue; a node that is down cannot be asked."""
        asked = next(node for node in self.nodes if node.running)
        rows = json.loads(asked.ctl("list_queues", "--silent", "--formatter", "json", "name", "leader"))
        names = [row["leader"] for row in rows if row["name"] == queue]
        for node in self.nodes:
            if names == [node.name]:
                return node
        raise BrokerError(f"queue {queue!r} has no leader")
