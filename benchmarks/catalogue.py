"""The systems that are measured, and with what: names and texts alone, so that none of them is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.load import Load

__all__ = ["AMQP", "ONCE", "REDIS", "SYSTEMS", "WORKLOADS", "System"]

WORKLOADS: dict[str, Load] = {
    "sequential": Load(1),
    "concurrent": Load(500),
    "fan-out": Load(5000),
    "100 KiB": Load(16, size=100 * 1024),
    "nested": Load(1, depth=6),
}
"""Name -> the load, whose seconds are those of the run, except that a fan-out is 5000 calls, once."""

ONCE = frozenset({"fan-out"})

AMQP = "amqp"
REDIS = "redis"

BLOCKS = "a call cannot wait for another one without holding its thread or process"


@dataclass(frozen=True)
class System:
    """One way to get bytes echoed by another process, or, for loopback, by the same one."""

    name: str
    """What `--systems` calls it, and its environment."""
    title: str
    """What the table calls it."""
    module: str
    """Run as `python -m` (see child.py)."""
    promises: str
    """What it gives for its price, and what it does not give."""
    needs: frozenset[str] = frozenset({AMQP})
    """Of `AMQP` and `REDIS`."""
    requires: tuple[str, ...] = ()
    """Packages for a virtual environment of its own. None: it runs in the harness's interpreter."""
    worker: bool = True
    """Whether it has a worker's process that the harness starts."""
    cannot: dict[str, str] = field(default_factory=dict)
    """Workload -> why it cannot do it."""
    ours: bool = False
    uvloop: bool = False


def _with_uvloop(system: System) -> System:
    return replace(
        system,
        name=f"{system.name}-uvloop",
        title=f"{system.title}, uvloop",
        promises="the same on another event loop",
        uvloop=True,
    )


LOOPBACK = System(
    "loopback",
    "atasks loopback",
    "benchmarks.atasks_loopback",
    "one process: codec, slots, deadlines and errors are the real ones, nothing is sent anywhere",
    needs=frozenset(),
    worker=False,
    ours=True,
)
ATASKS = System(
    "amqp",
    "atasks AMQP",
    "benchmarks.atasks_amqp",
    "at-least-once calls on durable queues with persistent messages and confirms at both sides; a call outlives"
    " its worker, its connection and a restart of the broker; nested awaits hold no slot",
    ours=True,
)
AIORMQ = System(
    "aiormq",
    "bare aiormq echo",
    "benchmarks.peers.aiormq_echo",
    "the yardstick: durable, persistent, confirmed and acknowledged as atasks, but bytes alone: no codec, errors,"
    " deadlines, reconnects or batches",
    cannot={"nested": "it echoes bytes and has no functions"},
)
AIOPIKA = System(
    "aiopika",
    "aio-pika patterns.RPC",
    "benchmarks.peers.aiopika_rpc",
    "transient replies; a lost connection fails the calls in flight or leaves them; no deadline at the worker and"
    " no limit of what it runs at once",
)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (LOOPBACK, ATASKS, _with_uvloop(LOOPBACK), _with_uvloop(ATASKS), AIORMQ, AIOPIKA)
}
"""By name, in the order of the table."""
