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
    """Name for `--systems`, and of the system's environment."""
    title: str
    """Name in the table."""
    module: str
    """Run as `python -m` (see child.py)."""
    promises: str
    """Guarantees that its figures pay for, and those that it does not give."""
    needs: frozenset[str] = frozenset({AMQP})
    """Services that it talks to: `AMQP`, `REDIS` or both."""
    requires: tuple[str, ...] = ()
    """Packages for a virtual environment of its own. None: it runs in the harness's interpreter."""
    worker: bool = True
    """True if the harness starts a process of its worker."""
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
LOCAL = System(
    "local",
    "atasks local(1)",
    "benchmarks.atasks_local",
    "one host and no broker: at-least-once calls in a process that is replaced when it dies; nothing outlives the"
    " caller; nested awaits hold no slot",
    needs=frozenset(),
    worker=False,
    ours=True,
)
THREAD = System(
    "thread",
    "atasks loopback, a thread",
    "benchmarks.atasks_thread",
    "a blocking function in one thread; otherwise as loopback",
    needs=frozenset(),
    worker=False,
    cannot={"nested": BLOCKS},
    ours=True,
)
PROCESS = System(
    "process",
    "atasks loopback, a process",
    "benchmarks.atasks_process",
    "a blocking function in one process, which is killed when its call is cancelled or out of time, and replaced"
    " when it dies: a call is tried again then, and the others lose nothing; nothing outlives the caller",
    needs=frozenset(),
    worker=False,
    cannot={"nested": "a function in a process has no connection to call by"},
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
SEALED = replace(
    ATASKS,
    name="amqp-sealed",
    title="atasks AMQP, sealed",
    module="benchmarks.atasks_amqp_sealed",
    promises="the same, and both sides refuse messages that no known key has sealed",
)
AIORMQ = System(
    "aiormq",
    "bare aiormq echo",
    "benchmarks.peers.aiormq_echo",
    "the yardstick: durable, persistent, confirmed and acknowledged as atasks, but bytes alone: no codec, errors,"
    " deadlines, reconnects or batches",
    cannot={"nested": "it echoes bytes and has no functions"},
)
FRAMES = System(
    "frames",
    "hand-packed frames echo",
    "benchmarks.peers.frames_echo",
    "the floor: the same at the broker, and no client library: an asyncio.Protocol that packs its frames itself",
    cannot={"nested": "it echoes bytes and has no functions"},
)
AIOPIKA = System(
    "aiopika",
    "aio-pika patterns.RPC",
    "benchmarks.peers.aiopika_rpc",
    "transient replies; a lost connection fails the calls in flight or leaves them; no deadline at the worker and"
    " no limit of what it runs at once",
)

ORIGINAL = System(
    "original",
    "atasks 0.0.3",
    "benchmarks.peers.atasks_original",
    "a call is acknowledged before it runs, and a worker that dies leaves its caller waiting; transient messages,"
    " one queue for all functions",
    requires=("atasks==0.0.3", "aio-pika==10.2.1"),
)
CELERY = System(
    "celery",
    "Celery, rpc:// results",
    "benchmarks.peers.celery_rpc",
    "persistent requests that are acknowledged before they run, transient results; one call at a time per process;"
    " schedules, retries, chains, monitors and other brokers are its own; nothing can be awaited",
    requires=("celery==5.7.0",),
    cannot={"nested": BLOCKS},
)
TASKIQ = System(
    "taskiq",
    "taskiq, Redis results",
    "benchmarks.peers.taskiq_redis",
    "durable classic queues (its default are quorum queues), acknowledged after the run; any process can read a"
    " result later; results are polled for; a call that waits holds its slot: enough of them never end",
    needs=frozenset({AMQP, REDIS}),
    requires=("taskiq==0.13.0", "taskiq-aio-pika==0.6.1", "taskiq-redis==1.2.4"),
)
FASTSTREAM = System(
    "faststream",
    "FastStream request()",
    "benchmarks.peers.faststream_request",
    "an event framework: transient messages, acknowledged after the run; request() lets a connection have one"
    " request at a time, whatever is asked at once; schemas and other brokers are its own",
    requires=("faststream[rabbit]==0.7.8",),
    cannot={"nested": "request() inside a request waits for its own connection: never ends"},
)

DRAMATIQ = System(
    "dramatiq",
    "dramatiq, Redis results",
    "benchmarks.peers.dramatiq_redis",
    "persistent, confirmed, acknowledged after the run, and retried when it raises; functions run in threads;"
    " nothing can be awaited",
    needs=frozenset({AMQP, REDIS}),
    requires=("dramatiq[rabbitmq,redis]==2.2.1",),
    cannot={"nested": BLOCKS},
)
TASKS = System(
    "asyncio",
    "bare asyncio tasks",
    "benchmarks.peers.asyncio_tasks",
    "the yardstick of the loopback: a task, a future and four pickles, and nothing else that an await promises",
    needs=frozenset(),
    worker=False,
    cannot={"nested": "it echoes bytes and has no functions"},
)
POOL = System(
    "pool",
    "ProcessPoolExecutor(1)",
    "benchmarks.peers.process_pool",
    "one host and no broker: a worker that dies takes all calls with it, and nothing outlives the caller",
    needs=frozenset(),
    worker=False,
    cannot={"nested": "a worker has no pool to call"},
)
DASK = System(
    "dask",
    "Dask distributed",
    "benchmarks.peers.dask_distributed",
    "no broker: the scheduler, here in the client's process, knows every call, places it by load and data, runs"
    " graphs of them and runs again what a dead worker held; nothing outlives the scheduler",
    needs=frozenset(),
    requires=("distributed==2026.8.0",),
    worker=False,
)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        LOOPBACK,
        LOCAL,
        ATASKS,
        SEALED,
        _with_uvloop(LOOPBACK),
        _with_uvloop(LOCAL),
        _with_uvloop(ATASKS),
        THREAD,
        PROCESS,
        AIORMQ,
        FRAMES,
        AIOPIKA,
        ORIGINAL,
        CELERY,
        TASKIQ,
        FASTSTREAM,
        DRAMATIQ,
        TASKS,
        POOL,
        DASK,
    )
}
"""By name, in the order of the table."""
