"""The counters of this process and of the processes that it supervises, as metrics of Prometheus.

    from prometheus_client import REGISTRY
    from atasks.contrib.prometheus import Collector

    REGISTRY.register(Collector())

`atasks run --http HOST:PORT` serves them at /metrics. Needs the package prometheus-client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as BaseCollector

from atasks.tracking import BOUNDS, Histogram, snapshot

__all__ = ["Collector", "exposition"]

FIRST: Final = 7
STEP: Final = 2
"""Which of the bounds become buckets: from 128 µs, each four times the one before."""


class Collector(BaseCollector):
    """Reads the counters when it is scraped; costs nothing otherwise.

    Args:
        queues: A function that returns the waiting calls by (namespace, queue), where they are known:
            `atasks_queue_ready` and `atasks_slots_wanted` need it. None: these two are left out.
    """

    def __init__(self, queues: Callable[[], Mapping[tuple[str, str], int]] | None = None) -> None:
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        now = snapshot()
        calls = CounterMetricFamily("atasks_calls", "Calls that workers have ended.", labels=["task", "status"])
        started = CounterMetricFamily("atasks_calls_started", "Calls that workers have started.", labels=["task"])
        retried = CounterMetricFamily(
            "atasks_calls_retried", "Calls started at a later attempt than the first.", labels=["task"]
        )
        wait = HistogramMetricFamily(
            "atasks_call_wait_seconds", "Time from the request to the start.", labels=["task"]
        )
        run = HistogramMetricFamily("atasks_call_run_seconds", "Time from the start to the end.", labels=["task"])
        for name, task in now.tasks().items():
            for status, number in task.endings.items():
                calls.add_metric([name, status], number)
            started.add_metric([name], task.started)
            retried.add_metric([name], task.retried)
            for family, times in ((wait, task.wait), (run, task.run)):
                family.add_metric([name], _buckets(times), times.sum)
        yield from (calls, started, retried, wait, run)

        made = CounterMetricFamily(
            "atasks_calls_made", "Calls made by this process.", labels=["namespace", "task"]
        )
        pending = GaugeMetricFamily(
            "atasks_calls_pending", "Calls that this process awaits.", labels=["namespace"]
        )
        for caller in now.callers:
            pending.add_metric([caller.namespace], caller.pending)
            for task in caller.tasks:
                made.add_metric([caller.namespace, task.task], task.received)
        yield from (made, pending)

        labels = ["worker", "namespace"]
        gauges = {
            "running": "Calls that hold a slot.",
            "parked": "Calls that await others and hold no slot.",
            "waiting": "Calls that a worker holds and has not started.",
            "slots": "Calls that a worker runs at once.",
            "loop_lag": "Seconds that the event loop took for its last measured turn.",
            "bad": "Messages that could not be read.",
        }
        for name, text in gauges.items():
            kind = CounterMetricFamily if name == "bad" else GaugeMetricFamily
            title = {"loop_lag": "atasks_loop_lag_seconds", "bad": "atasks_bad_messages"}.get(
                name, f"atasks_{name}"
            )
            gauge = kind(title, text, labels=labels)
            for worker in now.workers:
                gauge.add_metric([worker.id, worker.namespace], getattr(worker, name))
            yield gauge

        if self._queues is not None:
            ready = GaugeMetricFamily(
                "atasks_queue_ready", "Calls that wait in a queue.", labels=["namespace", "queue"]
            )
            queues = self._queues()
            for place, number in queues.items():
                ready.add_metric(place, number)
            yield ready
            running = sum(worker.running + worker.waiting for worker in now.workers)
            wanted = GaugeMetricFamily("atasks_slots_wanted", "Slots that calls could use now.")
            wanted.add_metric([], sum(queues.values()) + running)
            yield wanted


def exposition(accept: str, queues: Mapping[tuple[str, str], int]) -> tuple[str, bytes]:
    """The metrics of this process, for an HTTP server of your own.

    Args:
        accept: The `Accept` header of the scrape, which names the format.
        queues: (namespace, queue) -> its waiting calls.

    Returns:
        The content type, and the text.
    """
    registry = CollectorRegistry()
    registry.register(Collector(lambda: queues))
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)


def _buckets(times: Histogram) -> list[tuple[str, float]]:
    """(upper bound, times up to it) for some of the bounds."""
    found: list[tuple[str, float]] = []
    count = 0
    for index, number in enumerate(times.buckets or [0] * (len(BOUNDS) + 1)):
        count += number
        if index < len(BOUNDS) and index >= FIRST and (index - FIRST) % STEP == 0:
            found.append((str(BOUNDS[index]), count))
    found.append(("+Inf", count))
    return found
