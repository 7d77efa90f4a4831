"""Cells as a table for people and as JSON for programs."""

from __future__ import annotations

import datetime as dt
import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.catalogue import System
from benchmarks.harness import Cell, Settings

__all__ = ["as_json", "promises", "table"]

PACKAGES = ("atasks", "msgspec", "aio-pika", "aiormq", "pamqp", "uvloop")
"""Packages of the harness's interpreter whose versions are told; those of the peers are in the systems'
`requires`."""

MEBIBYTE = 1 << 20


def table(cells: Sequence[Cell]) -> str:
    """A row per cell, grouped by workload; the spread is that of the rounds."""
    header = (
        f"{'workload':<11} {'system':<26} {'calls/s':>8} {'(rounds)':>15} {'p50 ms':>9} {'p99 ms':>9}"
        f" {'client':>8} {'worker':>8} {'client':>8} {'worker':>8}"
    )
    over = " " * (len(header) - 35) + f"{'CPU s/1000 calls':>17} {'peak MiB':>17}"
    lines = [over, header, "-" * len(header)]
    group = cells[0].workload if cells else ""
    for cell in cells:
        if cell.workload != group:
            lines.append("")
            group = cell.workload
        lines.append(f"{cell.workload:<11} {cell.title:<26} " + _figures(cell))
    return "\n".join(lines)


def _figures(cell: Cell) -> str:
    if not cell.samples:
        return f"- ({cell.note})"
    rates = [sample.rate for sample in cell.samples]
    spread = f"{min(rates):.0f}-{max(rates):.0f}"
    cpu = "same" if cell.worker_cpu is None else f"{cell.worker_cpu:.3f}"
    peak = "same" if cell.worker_peak is None else f"{cell.worker_peak / MEBIBYTE:.0f}"
    note = f"  ({cell.note})" if cell.note else ""
    return (
        f"{cell.rate:>8.0f} {spread:>15} {cell.p50_ms:>9.3f} {cell.p99_ms:>9.3f}"
        f" {cell.client_cpu:>8.3f} {cpu:>8} {cell.client_peak / MEBIBYTE:>8.0f} {peak:>8}{note}"
    )


def promises(systems: Iterable[System]) -> str:
    """Return the promises of each system that others do not make: the figures are not the price of the same
    thing."""
    lines = ["", "Not the price of the same thing:"]
    for system in systems:
        said = f"{system.title}: {system.promises}."
        lines += textwrap.wrap(said, 110, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def as_json(cells: Sequence[Cell], systems: Iterable[System], settings: Settings, command: str) -> dict[str, Any]:
    """Everything that was measured, and what it was measured with."""
    return {
        "command": command,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "settings": asdict(settings),
        "workloads": {name: asdict(settings.load(name)) for name in settings.workloads},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "systems": {
            system.name: {"title": system.title, "promises": system.promises, "requires": list(system.requires)}
            for system in systems
        },
        "cells": [cell.as_dict() for cell in cells],
    }


def _cpu() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
