"""Handles of submitted calls in code without an event loop."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator

import pytest

import atasks
from atasks import ATask, Handle, NotConnected, UnknownRun, current_call
from atasks.progress import Progress
from atasks.tasks import atask
from atasks.testing import PATIENCE


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Lets the function return; it returns in the end in any case."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def work(namespace: str, go_on: threading.Event) -> ATask[[int], int]:
    @atask(namespace=namespace, executor="thread")
    def work(pages: int) -> int:
        call = current_call()
        call.report(0, pages)
        assert go_on.wait(PATIENCE)
        call.report(pages, pages)
        return pages

    return work


def test_progress_and_its_end(work: ATask[[int], int], namespace: str, go_on: threading.Event) -> None:
    with atasks.connect_sync(namespace=namespace):
        handle = work.submit.sync(3)
        assert not handle.done.sync()
        got = []
        for progress in handle.progress.sync():
            got.append(progress)
            go_on.set()
        assert got == [Progress(0, 3), Progress(3, 3)]
        assert (handle.sync(), handle.done.sync()) == (3, True)


def test_progress_is_left_with_the_connection(work: ATask[[int], int], namespace: str) -> None:
    with atasks.connect_sync(namespace=namespace):
        reports = work.submit.sync(3).progress.sync()
        assert next(reports) == Progress(0, 3)
    with pytest.raises(NotConnected):
        next(reports)


def test_over_a_lazy_connection(work: ATask[[int], int], namespace: str, go_on: threading.Event) -> None:
    connection = atasks.connect_lazily("loopback:", namespace=namespace)
    try:
        handle = work.submit.sync(2)
        reports = Handle[int](handle.id, namespace).progress.sync()
        assert next(reports) == Progress(0, 2)
        go_on.set()
        assert list(reports)[-1:] == [Progress(2, 2)]
        assert handle.done.sync()
    finally:
        connection.close()


def test_without_a_connection() -> None:
    handle = Handle[int]("0" * 32, "nobody-uses-it")
    with pytest.raises(NotConnected, match=r"enter `with atasks.connect_sync\("):
        handle.sync()
    with pytest.raises(NotConnected, match=r"enter `with atasks.connect_sync\("):
        handle.done.sync()
    with pytest.raises(NotConnected, match=r"enter `with atasks.connect_sync\("):
        handle.progress.sync()


def test_wrong_arguments_and_nothing_kept(work: ATask[[int], int], namespace: str, go_on: threading.Event) -> None:
    with atasks.connect_sync(namespace=namespace):
        handle = work.options(keep=0).submit.sync(1)
        go_on.set()
        with pytest.raises(UnknownRun, match="keep=0"):
            handle.cancel.sync()
        with pytest.raises(TypeError):
            handle.cancel.sync(1)  # type: ignore[call-arg]  # that is the point
        with pytest.raises(TypeError):
            handle.step.sync()  # type: ignore[call-arg]


def test_methods_stay_functions_for_who_reads_them() -> None:
    handle = Handle[int]("0" * 32)
    assert inspect.iscoroutinefunction(Handle.done)
    assert str(inspect.signature(handle.step)) == "(number: 'int') -> 'Any'"
    assert (handle.done.__doc__ or "").startswith("Return True")
    assert repr(handle.done) == f"<done of {handle!r}>"
