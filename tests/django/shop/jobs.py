"""Tasks of `django.tasks`, or of django-tasks before Django 6."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from django.db import connection

from tests.django.shop.models import Order

try:
    tasks: Any = importlib.import_module("django.tasks")
except ImportError:
    tasks = importlib.import_module("django_tasks")

task = tasks.task


@task
def noop(*args: Any, **kwargs: Any) -> None: ...


@task
async def noop_async(*args: Any) -> None: ...


@task
def meaning() -> int:
    return 42


@task(queue_name="mail")
def take(item: str) -> int:
    return Order.objects.create(item=item).pk


@task
def fail() -> None:
    raise ValueError("it failed")


@task
async def fail_badly() -> None:
    raise ValueError(ValueError("one in another"))


@task
def leave() -> None:
    raise SystemExit(1)


@task
def interrupt() -> None:
    raise KeyboardInterrupt("Ctrl-C")


@task
async def rest() -> None:
    await asyncio.sleep(60)


@task
def no_json() -> Any:
    return object()


@task
def nap(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nap(%s)", [seconds])


@task(takes_context=True)
def in_context(context: Any, word: str) -> list[Any]:
    return [word, context.attempt, context.task_result.id, context.task_result.status]
