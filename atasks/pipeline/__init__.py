"""Pipelines: functions over streams, whose stages are atasks and local functions alike.

results = await (urls | map(fetch, workers=20) | filter(is_new) | ordered())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atasks import _on_demand

if TYPE_CHECKING:
    from atasks.errors import AbortPipeline, PipelineError
    from atasks.pipeline.api import after, each, filter, flat_map, map, stage
    from atasks.pipeline.combining import collect, drain, fork, from_iterable, group, merge, ordered
    from atasks.pipeline.flow.arguments import WorkerInfo, bind
    from atasks.pipeline.pipeline import Pipeline, Stage
    from atasks.pipeline.progress import StageProgress
    from atasks.pipeline.run import Run
    from atasks.submitted.handle import Handle, attach

__all__ = [
    "AbortPipeline",
    "Handle",
    "Pipeline",
    "PipelineError",
    "Run",
    "Stage",
    "StageProgress",
    "WorkerInfo",
    "after",
    "attach",
    "bind",
    "collect",
    "drain",
    "each",
    "filter",
    "flat_map",
    "fork",
    "from_iterable",
    "group",
    "map",
    "merge",
    "ordered",
    "stage",
]

_HOMES = {
    "atasks.errors": "AbortPipeline PipelineError",
    "atasks.pipeline.api": "after each filter flat_map map stage",
    "atasks.pipeline.combining": "collect drain fork from_iterable group merge ordered",
    "atasks.pipeline.flow.arguments": "WorkerInfo bind",
    "atasks.pipeline.pipeline": "Pipeline Stage",
    "atasks.pipeline.progress": "StageProgress",
    "atasks.pipeline.run": "Run",
    "atasks.submitted.handle": "Handle attach",
}
"""Module -> its public names. It is imported when one of them is used."""

if not TYPE_CHECKING:  # a checker would take any name for one that is here
    __getattr__, __dir__ = _on_demand(__name__, _HOMES)
