"""The options of an atask: their defaults, the values that they take, and views with other ones."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, get_type_hints

import pytest

import atasks
from atasks.definitions import ATask
from atasks.options import ONE_CALL, TaskOptions, ViewOptions, validate_queue
from atasks.policies.retry import Retry
from atasks.router import Router
from atasks.tasks import atask

DEFAULTS = {
    "queue": None,
    "timeout": None,
    "delivery": "at_least_once",
    "max_attempts": 3,
    "on_no_worker": "wait",
    "orphan": "cancel",
    "priority": 0,
    "batch": "auto",
    "durable": True,
    "window": None,
    "replayable": False,
    "keep": None,
    "on_conflict": "join",
    "delay": None,
    "at": None,
    "unique": None,
    "key": None,
    "retry": None,
}

GOOD: list[Any] = [
    ("queue", None),
    ("queue", "gpu"),
    ("queue", "a-b_c.d:e@f#g,h/i+J9"),
    ("queue", "q" * 100),
    ("timeout", None),
    ("timeout", 1),
    ("timeout", 0.001),
    ("timeout", 10 * 365 * 24 * 3600),
    ("delivery", "at_most_once"),
    ("max_attempts", 1),
    ("max_attempts", 1_000_000),
    ("on_no_worker", "error"),
    ("orphan", "run"),
    ("priority", 0),
    ("priority", 3),
    ("batch", "auto"),
    ("batch", False),
    ("batch", 1),
    ("batch", 64),
    ("durable", False),
    ("window", None),
    ("window", 1),
    ("window", 65_536),
    ("replayable", True),
    ("keep", None),
    ("keep", 0),
    ("keep", 0.001),
    ("keep", 4_000_000),
    ("on_conflict", "skip"),
    ("delay", 0),
    ("delay", 60 * 24 * 3600),
    ("at", datetime(2030, 1, 1, tzinfo=UTC)),
    ("unique", "order 7"),
    ("key", "charge"),
    ("retry", None),
    ("retry", Retry(on=OSError)),
]

BAD: list[tuple[str, Any, Any, str]] = [
    ("queue", "", ValueError, "not empty"),
    ("queue", "two words", ValueError, "letters, digits"),
    ("queue", "q*", ValueError, "letters, digits"),
    ("queue", "ä", ValueError, "letters, digits"),
    ("queue", "q" * 101, ValueError, "at most 100"),
    ("queue", 5, TypeError, "queue is a string"),
    ("timeout", 0, ValueError, "above 0"),
    ("timeout", -1.5, ValueError, "above 0"),
    ("timeout", math.nan, ValueError, "NaN"),
    ("timeout", math.inf, ValueError, "10 years"),
    ("timeout", -math.inf, ValueError, "above 0"),
    ("timeout", 10 * 365 * 24 * 3600 + 1, ValueError, "10 years"),
    ("timeout", 10**30, ValueError, "10 years"),
    ("timeout", "5", TypeError, "number of seconds"),
    ("timeout", True, TypeError, "number of seconds"),
    ("delivery", "exactly_once", ValueError, "'at_least_once', 'at_most_once'"),
    ("delivery", None, ValueError, "one of"),
    ("max_attempts", 0, ValueError, "1 to"),
    ("max_attempts", 1.5, TypeError, "whole number"),
    ("max_attempts", True, TypeError, "whole number"),
    ("max_attempts", None, TypeError, "whole number"),
    ("on_no_worker", "raise", ValueError, "'wait', 'error'"),
    ("orphan", True, ValueError, "'cancel', 'run'"),
    ("orphan", ["cancel"], ValueError, "'cancel', 'run'"),
    ("priority", 4, ValueError, "0 to 3"),
    ("priority", -1, ValueError, "0 to 3"),
    ("priority", "high", TypeError, "whole number"),
    ("batch", 0, (ValueError, TypeError), "batch"),
    ("batch", 65, ValueError, "1 to 64"),
    ("batch", True, TypeError, "whole number"),
    ("batch", "often", TypeError, "whole number"),
    ("durable", 1, TypeError, "True or False"),
    ("durable", None, TypeError, "True or False"),
    ("window", 0, ValueError, "1 to 65536"),
    ("window", 65_537, ValueError, "1 to 65536"),
    ("replayable", 1, TypeError, "True or False"),
    ("keep", -1, ValueError, "seconds above 0"),
    ("keep", 4_000_001, ValueError, "at most 4000000"),
    ("keep", "60", TypeError, "number of seconds"),
    ("on_conflict", "wait", ValueError, "'join', 'skip', 'error'"),
    ("delay", -0.1, ValueError, "seconds from 0 on"),
    ("delay", 61 * 24 * 3600, ValueError, "60 days"),
    ("delay", math.nan, ValueError, "NaN"),
    ("at", 5.0, TypeError, "datetime"),
    ("at", datetime(2030, 1, 1), ValueError, "time zone"),  # noqa: DTZ001 - that is the mistake
    ("unique", "", TypeError, "non-empty string"),
    ("unique", "x" * 1025, ValueError, "at most 1024"),
    ("key", 7, TypeError, "non-empty string"),
    ("retry", 3, TypeError, "Retry(on="),
    ("retry", OSError, TypeError, "Retry(on="),
]


def test_defaults() -> None:
    options = dataclasses.asdict(TaskOptions())
    assert options.pop("extra") == {}
    assert options.pop("executor") is None
    assert options.pop("limit") is None
    assert options.pop("resume") is False
    assert options.pop("viewer") is None
    assert options == DEFAULTS


def test_every_option_is_tested_and_typed() -> None:
    assert {getattr(good, "values", good)[0] for good in GOOD} == {name for name, *_ in BAD} == set(DEFAULTS)
    assert set(get_type_hints(ViewOptions)) == set(DEFAULTS)


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_good_values(name: str, value: Any, namespace: str) -> None:
    changed = TaskOptions().with_changes({name: value})
    assert getattr(changed, name) == value
    assert {key for key in DEFAULTS if getattr(changed, key) != DEFAULTS[key]} <= {name}

    async def f() -> None: ...

    if name in ONE_CALL:
        if value is not None:
            with pytest.raises(TypeError, match=name):
                atask(f, namespace=namespace, **{name: value})
        assert atask(f, namespace=namespace).options(**{name: value}).task_options == changed
    else:
        assert atask(f, namespace=namespace, **{name: value}).task_options == changed


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_bad_values(name: str, value: Any, error: type[Exception], message: str, namespace: str) -> None:
    async def f() -> None: ...

    with pytest.raises(error, match=name) as caught:
        atask(f, namespace=namespace, **{name: value})
    assert message in str(caught.value)
    task = atask(f, namespace=namespace)
    with pytest.raises(error, match=name):
        task.options(**{name: value})
    assert task.task_options == TaskOptions()


@pytest.mark.parametrize(
    ("unknown", "message"),
    [
        ("timeot", "unknown option 'timeot': did you mean 'timeout'?"),
        ("max_attempt", "did you mean 'max_attempts'?"),
        ("Priority", "did you mean 'priority'?"),
        ("zzz", "known options: queue, timeout, delivery"),
    ],
)
def test_an_unknown_option_names_the_nearest_one(unknown: str, message: str, namespace: str) -> None:
    async def f() -> None: ...

    options: Any = {unknown: 1}
    with pytest.raises(TypeError) as caught:
        atask(namespace=namespace, **options)(f)
    assert message in str(caught.value)
    assert atasks.get_router(namespace).registry.names() == []
    with pytest.raises(TypeError) as caught:
        atask(f, namespace=namespace).options(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("identity", ["name", "namespace"])
def test_the_identity_is_not_in_options(identity: str, namespace: str) -> None:
    @atask(namespace=namespace)
    async def f() -> None: ...

    options: Any = {identity: "other"}
    with pytest.raises(TypeError, match=f"'{identity}' is the identity of an atask"):
        f.options(**options)


def test_a_view_changes_neither_the_atask_nor_other_views(namespace: str) -> None:
    @atask(namespace=namespace, timeout=5, queue="a")
    async def f() -> None: ...

    before = f.task_options
    view = f.options(timeout=1)
    further = view.options(priority=2, queue=None)
    assert (f.task_options, f.task_options is before) == (TaskOptions(timeout=5, queue="a"), True)
    assert view.task_options == TaskOptions(timeout=1, queue="a")
    assert further.task_options == TaskOptions(timeout=1, queue=None, priority=2)
    assert f.options().task_options == before
    assert (view.name, view.namespace, view.local) == (f.name, f.namespace, f.local)
    assert repr(further) == f"<atask {f.name!r}, timeout=1, priority=2, queue=None>"
    assert repr(f) == f"<atask {f.name!r}>"
    with pytest.raises(dataclasses.FrozenInstanceError):
        f.task_options.timeout = 3  # type: ignore[misc]


class Labelled(Router):
    extra_options = ("label", "retries")


def test_a_router_declares_further_options(namespace: str) -> None:
    Labelled(namespace)
    options: Any = {"label": ["any", "value"], "timeout": 5}

    @atask(namespace=namespace, **options)
    async def f() -> None: ...

    assert f.task_options == TaskOptions(timeout=5, extra={"label": ["any", "value"]})
    more: Any = {"retries": 2}
    view = f.options(**more)
    assert view.task_options.extra == {"label": ["any", "value"], "retries": 2}
    assert f.task_options.extra == {"label": ["any", "value"]}
    wrong: Any = {"labl": 1}
    with pytest.raises(TypeError, match=r"did you mean 'label'\?"):
        f.options(**wrong)


def test_options_of_one_router_are_unknown_in_another_namespace(namespace: str) -> None:
    Labelled(namespace)
    options: Any = {"label": 1}
    with pytest.raises(TypeError, match="unknown option 'label'"):
        atask(namespace="tests-options", **options)(lambda: None)


async def test_a_router_sees_the_options_of_each_call(namespace: str) -> None:
    seen: list[Any] = []

    class Router2(Labelled):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            seen.append(name.options.extra.get("label"))  # type: ignore[attr-defined]
            return await super().send_request(name, *args, **kwargs)

    Router2(namespace)
    label: Any = {"label": "one"}

    @atask(namespace=namespace, **label)
    async def f() -> None: ...

    async with atasks.connect(namespace=namespace):
        await f()
        label = {"label": "two"}
        await f.options(**label)()
        await f()
    assert seen == ["one", "two", "one"]


@atask(namespace="tests-options", timeout=7)
async def module_level(n: int) -> int:
    return n


def test_a_view_pickles_as_a_reference_with_its_overrides() -> None:
    view = module_level.options(timeout=1, priority=3)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copied = pickle.loads(pickle.dumps(view, protocol))
        assert isinstance(copied, ATask)
        assert copied.task_options == view.task_options
        assert copied.local is module_level.local
        assert repr(copied) == repr(view)
    assert pickle.loads(pickle.dumps(module_level)) is module_level


@pytest.mark.parametrize("what", ["namespace", "prefix"])
def test_names_of_brokers(what: str) -> None:
    assert validate_queue("fine", what) == "fine"
    with pytest.raises(ValueError, match=what):
        validate_queue("not fine", what)


def test_what_can_make_no_calls_cannot_resume(namespace: str) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    def blocks() -> None: ...

    with pytest.raises(TypeError, match="is a stream: resume= is for functions that await"):
        atask(numbers, namespace=namespace, resume=True)
    with pytest.raises(TypeError, match="runs in a process, where it can make no calls"):
        atask(blocks, namespace=namespace, executor="process", resume=True)
    with pytest.raises(TypeError, match="'resume' is set where the atask is defined"):
        atask(blocks, namespace=namespace, executor="thread", resume="v2").options(resume=False)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="resume is a non-empty string"):
        atask(blocks, namespace=namespace, resume=3)  # type: ignore[call-overload]


def test_the_options_of_a_call_that_is_watched_are_copied_and_compared_with_their_viewer() -> None:
    options = dataclasses.replace(TaskOptions(priority=1), viewer=print)
    copies = [
        copy.copy(options),
        copy.deepcopy(options),
        pickle.loads(pickle.dumps(options)),
        dataclasses.replace(options, timeout=None),
        options.with_changes({"priority": 1}),
    ]
    assert [copied.viewer for copied in copies] == [print] * len(copies)
    assert copies == [options] * len(copies)
    assert options != TaskOptions(priority=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.viewer = None  # type: ignore[misc]
