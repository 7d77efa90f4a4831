"""The files of docs/operations: they name metrics that exist, commands that parse, and times that fit together."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from atasks.contrib.prometheus import Collector
from atasks_cli.main import main

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
FILES = sorted(path.name for path in FOLDER.iterdir())
MARGIN = 20
"""Seconds past the grace that docs/shutdown.md asks for, with something to spare."""


def exported() -> set[str]:
    """Names of the samples that a scrape may hold."""
    registry = CollectorRegistry()
    registry.register(Collector(lambda: {("default", "default"): 3}))
    text = generate_latest(registry).decode()
    names = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        names |= {f"{name}_{end}" for end in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return names


@pytest.mark.parametrize("name", FILES)
def test_metrics_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"\batasks_[a-z_]+\b(?!:)", (FOLDER / name).read_text()))
    assert named <= exported()
    assert named or name not in ("alerts.yaml", "grafana.json", "keda.yaml")


def test_metrics_that_the_page_names_exist() -> None:
    page = (FOLDER.parent / "operations.md").read_text()
    named = set(re.findall(r"`(atasks_[a-z_]+)`", page))
    names = exported()
    assert len(named) > 10
    assert {name for name in named if name not in names and f"{name}_count" not in names} == set()


@pytest.mark.parametrize("name", ["alerts.yaml", "grafana.json", "keda.yaml"])
def test_lengths_of_queues_that_every_worker_tells_are_not_added_up(name: str) -> None:
    text = (FOLDER / name).read_text()
    largest = re.findall(r"max by \((?:job, )?queue\) \(atasks_queue_ready\b", text)
    assert text.count("atasks_queue_ready") == len(largest) > 0


def test_what_is_scaled_is_what_is_scraped() -> None:
    deployment, monitor, scaled, alerts = (
        (FOLDER / f"{name}.yaml").read_text() for name in ("kubernetes", "podmonitor", "keda", "alerts")
    )
    labels = set(re.findall(r"(?:matchLabels|labels): (.*)", deployment))
    assert labels == set(re.findall(r"matchLabels: (.*)", monitor))
    (label,) = re.findall(r"^  jobLabel: (\w+)$", monitor, re.MULTILINE)
    (job,) = re.findall(rf"{{{label}: ([\w-]+)}}", *labels)
    (port,) = re.findall(r"- port: (\w+)$", monitor, re.MULTILINE)
    assert f"{{name: {port}, containerPort: 8000}}" in deployment
    assert "      honorLabels: true\n" in monitor
    assert f"scaleTargetRef:\n    name: {job}\n" in scaled
    query = scaled[scaled.index("query: >") : scaled.index("threshold:")]
    assert re.findall(r"atasks_\w+(\{.*?\})", query) == [f'{{job="{job}"}}'] * query.count("atasks_")
    assert "namespace" not in query  # a label that Prometheus may rename
    assert f'absent(atasks_slots{{job="{job}"}})' in alerts


def test_queues_that_nobody_tells_of_do_not_empty_the_sum_that_is_scaled_by() -> None:
    text = (FOLDER / "keda.yaml").read_text()
    assert re.search(r"^ *\+ \(sum\(max by .*\) or vector\(0\)\)\n *threshold:", text, re.MULTILINE)
    assert 'ignoreNullValues: "false"\n' in text  # else "nobody was heard" is "nothing to do"


def test_the_first_lost_call_is_an_alert_though_its_series_begins_with_it() -> None:
    lost = 'atasks_calls_total{status="worker_lost"}'
    assert f"increase({lost}[30m]) > 0 or ({lost} unless {lost} offset 30m)" in " ".join(
        (FOLDER / "alerts.yaml").read_text().split()
    )


def commands(name: str) -> list[list[str]]:
    """The `atasks run` commands in a file."""
    text = (FOLDER / name).read_text()
    quoted = re.findall(r"\[\"atasks\", \"run\".*\]", text)
    started = re.findall(r"^ExecStart=(\S*atasks run .*)$", text, re.MULTILINE)
    return [json.loads(found) for found in quoted] + [shlex.split(found) for found in started]


@pytest.mark.parametrize("name", ["Dockerfile", "atasks.service", "kubernetes.yaml"])
def test_commands_parse_and_have_time_to_drain(name: str) -> None:
    (command,) = commands(name)
    run = main.get_command(click.Context(main), "run")
    assert run is not None
    given = run.make_context("run", command[2:]).params
    assert (given["mode"], given["targets"]) == ("server", ("app.tasks",))
    assert given["http"].endswith(":8000")
    text = (FOLDER / name).read_text()
    patience = re.search(r"(?:TimeoutStopSec=|terminationGracePeriodSeconds: )(\d+)", text)
    if name != "Dockerfile":  # docker stop has it
        assert patience is not None
        assert float(patience[1]) >= given["grace"] + MARGIN


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text())
    assert {panel["type"] for panel in board["panels"]} == {"timeseries"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) == 8
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == 8
