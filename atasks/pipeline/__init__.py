"""Pipelines: functions over streams, whose stages are atasks and local functions alike.

results = await (urls | map(fetch, workers=20) | filter(is_new) | ordered())
"""

from __future__ import annotations

from atasks.errors import AbortPipeline, PipelineError
from atasks.pipeline.api import after, each, filter, flat_map, map, stage
from atasks.pipeline.combining import collect, drain, fork, from_iterable, group, merge, ordered
from atasks.pipeline.flow.invocation import WorkerInfo, bind
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
