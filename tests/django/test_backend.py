"""The backend of django.tasks: what Django asks of one, case by case."""

# Private attributes: `_exceptions`, `_priority`, `_signals` and `_task`: whether there is a `django.tasks`, and
# what is made of its priorities and paths, whichever Django is installed.

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from atasks import get_router
from atasks.contrib.django import backend as module
from atasks.testing import soon
from tests.django.conftest import NAMESPACE
from tests.django.shop import jobs
from tests.django.shop.models import Order
from tests.waiting import wait_until

tasks = jobs.tasks
exceptions = module._exceptions
AMQP = {NAMESPACE: {"URL": "amqp://localhost/", "OPTIONS": {"max_priority": 3}}}


def finished(result: Any) -> Any:
    """The result, when its task has ended."""

    def look() -> bool:
        result.refresh()
        return bool(result.is_finished)

    wait_until(look, "the task ends")
    return result


@pytest.mark.parametrize("task", [jobs.noop, jobs.noop_async])
def test_enqueue(task: Any) -> None:
    result = task.enqueue(1, "two")
    assert (result.status, result.is_finished) == ("READY", False)
    assert (result.args, result.kwargs, result.attempts, result.worker_ids) == ([1, "two"], {}, 0, [])
    assert result.enqueued_at is not None
    assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
    with pytest.raises(ValueError, match="Task has not finished yet"):
        result.return_value  # noqa: B018
    finished(result)
    assert (result.status, result.return_value, result.errors) == ("SUCCESSFUL", None, [])
    assert result.started_at >= result.enqueued_at
    assert result.finished_at >= result.started_at == result.last_attempted_at
    assert (result.task, result.attempts, len(result.worker_ids)) == (task, 1, 1)


async def test_aenqueue_and_aget_result() -> None:
    for task in (jobs.noop, jobs.noop_async):
        result = await soon(task.aenqueue(1))
        while not result.is_finished:
            await soon(result.arefresh())
        assert result.return_value is None
        again = await soon(tasks.default_task_backend.aget_result(result.id))
        assert (again.id, again.status, again.task) == (result.id, "SUCCESSFUL", task)


def test_the_value_is_that_of_any_process() -> None:
    result = finished(jobs.meaning.enqueue())
    assert result.return_value == 42
    assert jobs.meaning.get_result(result.id).return_value == 42


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        (jobs.fail, ValueError, "it failed"),
        (jobs.fail_badly, ValueError, "one in another"),
        (jobs.no_json, TypeError, ""),
        (jobs.leave, SystemExit, "SystemExit: 1"),
        (jobs.interrupt, KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_exceptions(task: Any, kind: type[BaseException], text: str) -> None:
    result = finished(task.enqueue())
    assert result.status == "FAILED"
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018
    (error,) = result.errors
    assert error.exception_class is kind
    assert "Traceback (most recent call last)" in error.traceback
    assert text in error.traceback
    assert result.finished_at is not None


def test_a_task_that_exits_ends_no_worker() -> None:
    assert finished(jobs.leave.enqueue()).status == "FAILED"
    assert finished(jobs.meaning.enqueue()).return_value == 42


def test_running() -> None:
    result = jobs.nap.enqueue(0.3)

    def look() -> bool:
        result.refresh()
        return bool(result.status == "RUNNING")

    wait_until(look, "the task runs")
    assert result.started_at is not None
    assert result.attempts == 1
    assert finished(result).status == "SUCCESSFUL"


def test_context_and_queues() -> None:
    result = finished(jobs.in_context.enqueue("word"))
    assert result.return_value == ["word", 1, result.id, "RUNNING"]
    result = finished(jobs.take.enqueue("tea"))
    assert result.task.queue_name == "mail"
    assert Order.objects.get().pk == result.return_value
    registry = get_router(NAMESPACE).registry
    assert registry.get("atasks.contrib.django.task.mail").task.task_options.queue == "mail"


def test_run_after() -> None:
    moment = timezone.now() + timedelta(seconds=0.5)
    result = jobs.meaning.using(run_after=moment).enqueue()
    result.refresh()
    assert (result.status, result.task.run_after) == ("READY", moment)
    assert finished(result).started_at >= moment - timedelta(milliseconds=10)
    with pytest.raises(module.InvalidTask, match="60 days"):
        jobs.meaning.using(run_after=timezone.now() + timedelta(days=90)).enqueue()
    with pytest.raises(module.InvalidTask, match="aware"):
        jobs.meaning.using(run_after=timezone.now().replace(tzinfo=None))


def test_priorities_are_mapped_where_queues_have_them() -> None:
    with pytest.raises(module.InvalidTask, match="does not support setting priority"):
        jobs.meaning.using(priority=5)
    assert [module._priority(n) for n in (-100, -1, 0, 1, 50, 51, 100)] == [0, 0, 1, 2, 2, 3, 3]
    with override_settings(ATASKS=AMQP):
        assert jobs.meaning.using(priority=5).priority == 5
        with pytest.raises(module.InvalidTask, match="between -100 and 100"):
            jobs.meaning.using(priority=101)


def test_what_is_no_task() -> None:
    def inner() -> None: ...

    with pytest.raises(module.InvalidTask, match="module level"):
        jobs.task(inner)
    with pytest.raises(module.InvalidTask, match="Queue 'other' is not valid"):
        jobs.meaning.using(queue_name="other")
    with pytest.raises(TypeError):
        jobs.noop.enqueue(object())
    with pytest.raises(module.InvalidTask, match="is no task"):
        module._task("tests.django.shop.models.Order", {})


def test_results_that_are_not_there() -> None:
    for id in ("missing", "0" * 32, "NO ID"):
        with pytest.raises(exceptions.TaskResultDoesNotExist):
            tasks.default_task_backend.get_result(id)
    result = jobs.meaning.enqueue()
    with pytest.raises(exceptions.TaskResultMismatch):
        jobs.noop.get_result(result.id)
    finished(result)


async def test_an_event_loop_wants_the_other_methods() -> None:
    with pytest.raises(RuntimeError, match="submit"):
        jobs.meaning.enqueue()
    with pytest.raises(RuntimeError, match="aget_result"):
        tasks.default_task_backend.get_result("0" * 32)


def test_signals_may_use_the_database() -> None:
    heard: list[tuple[str, str]] = []

    def hear(name: str) -> Any:
        def listen(sender: type, task_result: Any, **more: Any) -> None:
            Order.objects.create(item=name)
            heard.append((name, task_result.status))

        return listen

    listeners = {name: hear(name) for name in ("task_enqueued", "task_started", "task_finished")}
    for name, listen in listeners.items():
        getattr(module._signals, name).connect(listen)
    try:
        finished(jobs.meaning.enqueue())
        finished(jobs.fail.enqueue())
    finally:
        for name, listen in listeners.items():
            getattr(module._signals, name).disconnect(listen)
    ends = ("SUCCESSFUL", "FAILED")
    assert sorted(heard) == sorted(
        pair
        for end in ends
        for pair in (("task_enqueued", "READY"), ("task_started", "RUNNING"), ("task_finished", end))
    )


def test_a_task_that_its_worker_gives_back_has_not_finished() -> None:
    statuses: list[str] = []

    def hear(sender: type, task_result: Any, **more: Any) -> None:
        statuses.append(task_result.status)

    signals = (module._signals.task_started, module._signals.task_finished)
    for signal in signals:
        signal.connect(hear)
    try:
        jobs.rest.enqueue()
        wait_until(lambda: statuses == ["RUNNING"], "the task runs")
        lazy = get_router(NAMESPACE).lazy
        assert lazy is not None
        lazy.close()
        assert statuses == ["RUNNING"], "another worker would run it again"
        finished(jobs.rest.using(backend="short").enqueue())
        assert statuses == ["RUNNING", "RUNNING", "FAILED"], "its time was over"
    finally:
        for signal in signals:
            signal.disconnect(hear)


def test_in_a_test_tasks_see_the_transaction(django_atasks: None) -> None:
    with transaction.atomic():
        result = jobs.take.enqueue("tea")
        result.refresh()
        assert result.return_value == Order.objects.get().pk
        transaction.set_rollback(True)


def test_checks() -> None:
    backend = tasks.default_task_backend
    assert backend.check() == []
    for options, words in (
        ({"NAMESPACE": "other"}, "no namespace 'other'"),
        ({"timeot": 5}, "did you mean 'timeout'"),
    ):
        wrong = module.AtasksBackend("default", {"OPTIONS": {"NAMESPACE": NAMESPACE, **options}})
        (message,) = wrong.check()
        assert words in message.msg
