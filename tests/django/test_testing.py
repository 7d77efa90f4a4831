"""Support for tests: calls in the transaction, the thread and the connection of a test."""

from __future__ import annotations

import threading
import unittest
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import AsyncClient, Client, TestCase, override_settings

from atasks import get_router
from atasks.contrib.django.testing import AtasksMixin, calls_in_test
from tests.django.conftest import NAMESPACE, opened
from tests.django.shop import tasks
from tests.django.shop.models import Order

ENDED: list[str] = []


class InTransaction(AtasksMixin, TestCase):
    """A user's tests, which `test_a_test_case` runs."""

    __test__ = False

    @classmethod
    def setUpTestData(cls) -> None:
        cls.first = tasks.take.sync("first")

    def test_calls_see_the_transaction_of_the_test(self) -> None:
        Order.objects.create(item="tea")
        assert tasks.names.sync() == ["first", "tea"]
        assert tasks.take.sync("cup") > self.first
        assert tasks.take_in_thread.sync("pot") > self.first
        assert tasks.count_in_process.sync() == 4
        assert tasks.nested.sync("saucer") > self.first
        assert tasks.nested_in_thread.sync("spoon") > self.first
        assert [*tasks.stream.sync()] == ["first", "tea", "cup", "pot", "saucer", "spoon"]
        assert {id(wrapper) for wrapper in opened} <= {id(connections["default"])}
        assert connection.in_atomic_block

    def test_what_one_test_writes_another_does_not_see(self) -> None:
        assert tasks.names.sync() == ["first"]

    def test_submitted_calls_have_ended(self) -> None:
        tasks.take.submit.sync("tea")
        tasks.take.submit.soon("cup")
        assert Order.objects.count() == 3
        with self.captureOnCommitCallbacks(execute=True):
            tasks.take.on_commit("pot")
            assert Order.objects.count() == 3
        assert Order.objects.count() == 4
        with pytest.raises(ValueError, match="it failed"):
            tasks.fail.sync()

    async def test_awaits(self) -> None:
        await Order.objects.acreate(item="tea")
        assert await tasks.names() == ["first", "tea"]
        assert await tasks.take_in_thread("cup") > self.first
        assert await tasks.nested("pot") > self.first
        handle = await tasks.take.submit("pan")
        assert await handle > self.first
        assert [item async for item in tasks.stream()] == ["first", "tea", "cup", "pot", "pan"]
        tasks.take.submit.soon("late")

    @override_settings(ROOT_URLCONF="tests.django.shop.urls")
    def test_views(self) -> None:
        client = Client()
        with self.captureOnCommitCallbacks(execute=True):
            assert client.get("/order/tea").status_code == 200
        assert client.get("/names").json() == ["first", "tea", "tea, paid"]
        assert client.get("/anames").json() == ["first", "tea", "tea, paid"]

    @override_settings(ROOT_URLCONF="tests.django.shop.urls")
    async def test_views_of_asgi(self) -> None:
        client: Any = AsyncClient()
        for path in ("/names", "/anames"):
            response = await client.get(path)
            assert response.json() == ["first"]

    def tearDown(self) -> None:
        ENDED.append(self._testMethodName)


def test_a_test_case() -> None:
    result = unittest.TestResult()
    ENDED.clear()
    unittest.defaultTestLoader.loadTestsFromTestCase(InTransaction).run(result)
    assert [text for _, text in result.errors + result.failures] == []
    assert len(ENDED) == result.testsRun == 6
    assert not Order.objects.exists()
    lazy = get_router(NAMESPACE).lazy
    assert type(lazy).__name__ == "LazyConnection", "all is as it was before"


def test_the_fixture(django_atasks: None) -> None:
    with transaction.atomic():
        Order.objects.create(item="tea")
        assert tasks.names.sync() == ["tea"]
        transaction.set_rollback(True)
    assert tasks.names.sync() == []


def test_it_ends_with_all_that_runs() -> None:
    before = {thread.name for thread in threading.enumerate()}
    with calls_in_test():
        tasks.take.submit.soon("tea")
    assert Order.objects.count() == 1
    assert {thread.name for thread in threading.enumerate()} <= before
