"""Cells as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.harness import Cell, Settings

__all__ = ["as_json", "table"]

PACKAGES = ("atasks", "msgspec", "aio-pika", "aiormq", "pamqp")


def table(cells: Sequence[Cell]) -> str:
    """A row per cell, grouped by calls in flight; the spread is that of the rounds."""
    header = (
        f"{'in flight':>9}  {'system':<24} {'calls/s':>8} {'(rounds)':>15} {'p50 ms':>9} {'p99 ms':>9}"
        f" {'client':>8} {'worker':>8}"
    )
    lines = [" " * (len(header) - 17) + "CPU s/1000 calls:", header, "-" * len(header)]
    group = cells[0].inflight if cells else 0
    for cell in cells:
        if cell.inflight != group:
            lines.append("")
            group = cell.inflight
        rates = [sample.rate for sample in cell.samples]
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        worker = "same" if cell.worker_cpu is None else f"{cell.worker_cpu:.3f}"
        lines.append(
            f"{cell.inflight:>9}  {cell.title:<24} {cell.rate:>8.0f} {spread:>15} {cell.p50_ms:>9.3f}"
            f" {cell.p99_ms:>9.3f} {cell.client_cpu:>8.3f} {worker:>8}"
        )
    return "\n".join(lines)


def as_json(cells: Sequence[Cell], settings: Settings) -> dict[str, Any]:
    """Everything that was measured, and what it was measured with."""
    return {
        "settings": asdict(settings),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cells": [cell.as_dict() for cell in cells],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
