"""A backend of `django.tasks`: tasks are submitted calls, which workers of `manage.py run_atask` run.

    TASKS = {"default": {"BACKEND": "atasks.contrib.django.backend.AtasksBackend"}}

Before Django 6 it is the package django-tasks that has tasks, and the same setting.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from traceback import format_exception
from typing import Any, Final

import msgspec
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core import checks
from django.utils import timezone
from django.utils.module_loading import import_string
from msgspec import Struct

from atasks import ATask, Handle, UnknownRun, current_call, get_router
from atasks.contrib.django.settings import read
from atasks.current import serving_here
from atasks.errors import AtasksError
from atasks.submitted.handle import records_of
from atasks.submitted.submit import delay_of
from atasks.transport.records.contract import Record
from atasks.wire import AT_MOST_ONCE, VERSION, Reply, Status
from atasks.worker.held_call import RETURNED, Reason

try:
    base = importlib.import_module("django.tasks.base")
except ImportError:
    base = importlib.import_module("django_tasks.base")
_package: Final = base.__name__.rpartition(".")[0]
_exceptions: Final = importlib.import_module(f"{_package}.exceptions")
_signals: Final = importlib.import_module(f"{_package}.signals")
_backends: Any = importlib.import_module(f"{_package}.backends.base")
normalize_json: Final = import_string(
    "django.utils.json.normalize_json" if _package == "django.tasks" else "django_tasks.utils.normalize_json"
)
InvalidTask: Final = getattr(_exceptions, "InvalidTask", None) or _exceptions.InvalidTaskError

__all__ = ["AtasksBackend"]

RUNNER: Final = "atasks.contrib.django.task"
"""The name of the atask that runs tasks; for another queue than the default one, with the queue behind it."""


BEGUN: Final = ".begun-"
FAILED: Final = ".failed-"
"""In the ids of the notes in the record of a call, before the number of the attempt."""


class Mark(Struct, array_like=True):
    """A note in the record of a call: an attempt began, or has failed."""

    at: float
    """Seconds since 1970."""
    worker: str
    error: str = ""
    """The path of the exception's class; empty: it began."""
    traceback: str = ""


class AtasksBackend(_backends.BaseTaskBackend):
    """Runs tasks on workers, and keeps their results for as long as `RECORDS` says.

    OPTIONS: `NAMESPACE`, which of ATASKS (default: "default"), and all options of `task.options(...)` in lower
    case, such as `timeout`, `max_attempts`, `keep`. A task that fails is not tried again; one whose worker dies
    is, up to `max_attempts` times.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        options = dict(self.options)
        self.namespace: str = options.pop("NAMESPACE", "default")
        self.call_options = options
        self.runners = {queue: self._register(queue) for queue in self.queues or {"default"}}

    @property
    def supports_priority(self) -> bool:
        """True if the queues have priorities: over AMQP, with the option `max_priority`."""
        found = next((namespace for namespace in read() if namespace.name == self.namespace), None)
        return found is not None and found.scheme.startswith("amqp") and bool(found.options.get("max_priority"))

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Submit the task, and return its result, READY, when that is safe. Raises InvalidTask, and what
        submitting raises; RuntimeError where an event loop runs: there, `aenqueue`."""
        result, submission, given = self._submission(task, args, kwargs)
        return self._enqueued(result, submission.sync(*given))

    async def aenqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Submit the task from an event loop, as `enqueue`."""
        result, submission, given = self._submission(task, args, kwargs)
        return self._enqueued(result, await submission(*given))

    def get_result(self, result_id: str) -> Any:
        """The result as it is now. Raises TaskResultDoesNotExist; RuntimeError where an event loop runs."""

        def look() -> Coroutine[Any, Any, Any]:
            return self.aget_result(result_id)

        return get_router(self.namespace).run_sync("get_result()", "`await` aget_result()", look)

    async def aget_result(self, result_id: str) -> Any:
        """Read the result in an event loop, as `get_result`."""
        router = get_router(self.namespace)
        try:
            record = await records_of(router).read(Handle(result_id, self.namespace).id)
        except (UnknownRun, ValueError, TypeError) as error:
            raise _exceptions.TaskResultDoesNotExist(result_id) from error
        if not record.call.task.startswith(RUNNER):
            raise _exceptions.TaskResultDoesNotExist(result_id)
        given, _ = await router.codec.decode_arguments(record.call.payload, _run)
        result = _result(result_id, *given)
        await _fill(result, record, self.namespace)
        return result

    def check(self, **more: Any) -> list[checks.CheckMessage]:
        """The system checks: the namespace, and the options of calls."""
        known = [namespace.name for namespace in read()]
        if self.namespace not in known:
            message = f"TASKS[{self.alias!r}]: ATASKS has no namespace {self.namespace!r}"
            return [checks.Error(message, hint=f"It has {', '.join(known)}.", id="atasks.E010")]
        try:
            self._runner(next(iter(self.queues), "default")).options(**self.call_options)
        except (TypeError, ValueError) as error:
            return [checks.Error(f"TASKS[{self.alias!r}]['OPTIONS']: {error}", id="atasks.E011")]
        return []

    def _register(self, queue: str) -> ATask[..., Any]:
        """The atask for the tasks of a queue, which makes workers serve that queue."""
        name = RUNNER if queue == "default" else f"{RUNNER}.{queue}"
        router = get_router(self.namespace)
        known = router.registry.get(name)
        options = {} if queue == "default" else {"queue": queue}
        made: ATask[..., Any] = router.register_atask(name, _run, options) if known is None else known.task
        return made

    def _runner(self, queue: str) -> ATask[..., Any]:
        if queue not in self.runners:
            self.runners[queue] = self._register(queue)
        return self.runners[queue]

    def _submission(
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        """The result of a task that is not submitted yet, what submits it, and the arguments of that."""
        self.validate_task(task)
        path = task.module_path
        meta = {
            "alias": self.alias,
            "priority": task.priority,
            "queue": task.queue_name,
            "after": None if task.run_after is None else task.run_after.timestamp(),
            "enqueued": timezone.now().timestamp(),
        }
        given = (path, normalize_json(list(args)), normalize_json(dict(kwargs)), meta)
        options = dict(self.call_options)
        if task.run_after is not None:
            options["at"] = _aware(task.run_after)
        if self.supports_priority:
            options["priority"] = _priority(task.priority)
        try:
            view = self._runner(task.queue_name).options(**options)
            delay_of(view.task_options)
        except (TypeError, ValueError) as error:
            raise InvalidTask(str(error)) from error
        return _result("", *given), view.submit, given

    def _enqueued(self, result: Any, handle: Handle[Any]) -> Any:
        object.__setattr__(result, "id", handle.id)
        _signals.task_enqueued.send(type(self), task_result=result)
        return result


def _aware(moment: datetime) -> datetime:
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment, timezone.get_default_timezone())


def _moment(seconds: float) -> datetime:
    """A moment as Django's settings want it: aware, or in the default time zone."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment if settings.USE_TZ else timezone.make_naive(moment, timezone.get_default_timezone())


def _priority(priority: int) -> int:
    """The priority of a queue, 0 to 3, for one of Django, -100 to 100: 1 is that of a task that says nothing."""
    if priority <= 0:
        return 0 if priority < 0 else 1
    return 2 if priority <= 50 else 3


def _task(path: str, meta: Mapping[str, Any]) -> Any:
    """The task that a message names. Raises InvalidTask if nothing of that name is one."""
    found = import_string(path)
    if not isinstance(found, base.Task):
        raise InvalidTask(f"{path} is no task")
    after = None if meta["after"] is None else _moment(meta["after"])
    return found.using(priority=meta["priority"], queue_name=meta["queue"], run_after=after, backend=meta["alias"])


def _result(id: str, path: str, args: list[Any], kwargs: dict[str, Any], meta: Mapping[str, Any]) -> Any:
    """The result of a task that waits."""
    return base.TaskResult(
        task=_task(path, meta),
        id=id,
        status=base.TaskResultStatus.READY,
        enqueued_at=_moment(meta["enqueued"]),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=meta["alias"],
        errors=[],
        worker_ids=[],
    )


async def _fill(result: Any, record: Record, namespace: str) -> None:
    """Put into the result what its record says."""
    router = get_router(namespace)
    notes = [reply.payload for id, reply in record.replies.items() if BEGUN in id or FAILED in id]
    marks = [msgspec.msgpack.decode(note, type=Mark) for note in notes]
    began = [mark for mark in marks if not mark.error]
    failed = [mark for mark in marks if mark.error]
    new: dict[str, Any] = {"worker_ids": [mark.worker for mark in began]}
    if began:
        new |= {
            "started_at": _moment(began[0].at),
            "last_attempted_at": _moment(began[-1].at),
            "status": base.TaskResultStatus.RUNNING,
        }
    if record.ending is not None:
        try:
            value, finished = await router.outcome(record.ending, record.call)
            new |= {
                "status": base.TaskResultStatus.SUCCESSFUL,
                "_return_value": value,
                "finished_at": _moment(finished),
            }
        except Exception as error:
            if not failed:  # its worker did not get to say so
                failed = [_failure(error, "")]
            errors = [base.TaskError(exception_class_path=mark.error, traceback=mark.traceback) for mark in failed]
            new |= {
                "status": base.TaskResultStatus.FAILED,
                "errors": errors,
                "finished_at": _moment(failed[-1].at),
            }
    for name, value in new.items():
        object.__setattr__(result, name, value)


def _failure(error: BaseException, worker: str) -> Mark:
    kind = type(error)
    return Mark(
        timezone.now().timestamp(),
        worker,
        f"{kind.__module__}.{kind.__qualname__}",
        "".join(format_exception(error)),
    )


async def _run(path: str, args: list[Any], kwargs: dict[str, Any], meta: dict[str, Any]) -> tuple[Any, float]:
    """Run a task at a worker, and return what it returned, and when."""
    call = current_call()
    assert call.id is not None, "a worker calls this"
    result = _result(call.id, path, args, kwargs, meta)
    backend = result.task.get_backend()
    worker = _worker()
    now = timezone.now()
    await _note(backend, call.id, f"{BEGUN}{call.attempt}", Mark(now.timestamp(), worker))
    for name, value in {
        "status": base.TaskResultStatus.RUNNING,
        "started_at": _moment(now.timestamp()),
        "last_attempted_at": _moment(now.timestamp()),
        "worker_ids": [worker] * (call.attempt or 1),
    }.items():
        object.__setattr__(result, name, value)
    await _send(_signals.task_started, backend, result)
    given = [base.TaskContext(task_result=result), *args] if result.task.takes_context else args
    try:
        function = result.task.func
        made = function if iscoroutinefunction(function) else sync_to_async(function)
        value = normalize_json(await made(*given, **kwargs))
    except BaseException as error:
        if _runs_again():
            raise
        mark = _failure(error, worker)
        if not isinstance(error, asyncio.CancelledError):
            await _note(backend, call.id, f"{FAILED}{call.attempt}", mark)
        result.errors.append(base.TaskError(exception_class_path=mark.error, traceback=mark.traceback))
        await _finish(backend, result, base.TaskResultStatus.FAILED, mark.at)
        raise
    finished = timezone.now().timestamp()
    object.__setattr__(result, "_return_value", value)
    await _finish(backend, result, base.TaskResultStatus.SUCCESSFUL, finished)
    return value, finished


async def _finish(backend: Any, result: Any, status: Any, at: float) -> None:
    object.__setattr__(result, "status", status)
    object.__setattr__(result, "finished_at", _moment(at))
    await _send(_signals.task_finished, backend, result)


async def _send(signal: Any, backend: Any, result: Any) -> None:
    """Send a signal in the thread in which the blocking code of the call runs: its receivers may use the ORM."""
    if signal.has_listeners(type(backend)):
        await sync_to_async(signal.send)(type(backend), task_result=result)


async def _note(backend: Any, call_id: str, what: str, mark: Mark) -> None:
    """Keep a mark in the record of the call; where there is none, do nothing."""
    records = get_router(backend.namespace).transport().records
    if records is None:
        return
    reply = Reply(VERSION, f"{call_id}{what}", Status.VALUE, msgspec.msgpack.encode(mark))
    try:
        await records.add(call_id, reply)
    except AtasksError:  # it is kept no more, or there is no room: the call runs all the same
        return


def _runs_again() -> bool:
    """Return True if this run was cancelled, and another one follows, or is under way at another worker."""
    run = serving_here()
    if run is None or run.call.delivery == AT_MOST_ONCE:
        return False
    return run.reason in (*RETURNED, Reason.ELSEWHERE) or run.worker.is_torn_down


def _worker() -> str:
    """The id of this worker."""
    run = serving_here()
    return "" if run is None else run.worker.id
