"""`python -m benchmarks.plot FIGURES.json PICTURE.png`: draw what `python -m benchmarks --json` wrote.

Needs matplotlib, which nothing else does (`make bench-plot` has an environment for it).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw"]

OURS = "#1f6f8b"
OTHERS = "#b0b7bf"


def draw(figures: dict[str, Any]) -> Figure:
    """A panel per workload: calls per second, and the latency of the sequential calls."""
    cells = [cell for cell in figures["cells"] if "calls_per_second" in cell]
    panels = [
        (workload, "calls_per_second", f"{workload}: calls/s (more is better)")
        for workload in figures["workloads"]
        if any(cell["workload"] == workload for cell in cells)
    ]
    if "sequential" in figures["workloads"]:
        panels.insert(0, ("sequential", "p50_ms", "sequential: median latency, ms (less is better)"))
    rows = (len(panels) + 1) // 2
    systems = list(dict.fromkeys(cell["title"] for cell in cells))
    figure = Figure(figsize=(13, 1.2 + rows * (0.9 + 0.3 * len(systems))), layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axis, (workload, key, title) in zip(axes, panels, strict=False):
        bars(axis, title, [(c["title"], c[key]) for c in cells if c["workload"] == workload])
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    made_of = (
        f"{figures['cpus']} x {figures['cpu']}, {figures['platform']}, {figures['python']}, {figures['date']}"
    )
    figure.suptitle(f"{made_of}\n{figures['command']}", fontsize=9)
    return figure


def bars(axis: Axes, title: str, values: list[tuple[str, float]]) -> None:
    """Horizontal bars on a logarithmic scale, the first on top, each with its figure."""
    names = [name for name, _ in values]
    drawn = axis.barh(
        names,
        [value for _, value in values],
        color=[OURS if name.startswith("atasks") and "0.0.3" not in name else OTHERS for name in names],
    )
    axis.bar_label(
        drawn, labels=[f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for _, value in values], padding=3
    )
    axis.set_xscale("log")
    axis.margins(x=0.25)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Read the figures, write the picture."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.plot FIGURES.json PICTURE.png")
    mpl.use("agg")
    source, picture = map(Path, sys.argv[1:])
    if not source.is_file():
        sys.exit(f"no such file: {source}; `make bench-peers` writes it")
    draw(json.loads(source.read_text())).savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
