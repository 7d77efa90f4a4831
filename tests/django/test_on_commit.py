"""Calls that are submitted when a transaction has committed, and calls of views without a lifespan."""

from __future__ import annotations

import time
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections, transaction
from django.test import AsyncClient, Client, override_settings

from tests.django.conftest import naps
from tests.django.shop import tasks
from tests.django.shop.models import Order
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("urls")


@pytest.fixture
def urls() -> Any:
    with override_settings(ROOT_URLCONF="tests.django.shop.urls"):
        yield


def paid() -> list[str]:
    return [*Order.objects.filter(paid=True).values_list("item", flat=True)]


def test_it_is_submitted_after_the_commit_and_not_waited_for() -> None:
    with transaction.atomic():
        order = Order.objects.create(item="tea")
        with transaction.atomic():
            tasks.pay.on_commit(order.pk)
        tasks.slow.on_commit(1)
        time.sleep(0.1)
        assert paid() == []
    assert not naps.ended
    wait_until(lambda: paid() == ["tea, paid"], "the call")


def test_nothing_happens_when_it_rolls_back() -> None:
    with transaction.atomic():
        tasks.take.on_commit("never")
        transaction.set_rollback(True)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        tasks.take.on_commit("never")
        raise ZeroDivisionError
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            tasks.take.on_commit("never")
            raise ZeroDivisionError
        tasks.take.on_commit("tea")
    wait_until(lambda: tasks.names.sync() == ["tea"], "the call after the savepoint")


def test_outside_of_a_transaction_it_is_submitted_now() -> None:
    tasks.take.on_commit("tea")
    wait_until(lambda: tasks.names.sync() == ["tea"], "the call")
    with pytest.raises(TypeError, match="missing"):
        tasks.take.on_commit()


def test_views_of_wsgi_need_no_lifespan() -> None:
    client = Client()
    client.get("/order/refused")
    client.get("/order/tea")
    wait_until(lambda: client.get("/names").json() == ["tea", "tea, paid"], "the call")
    assert client.get("/anames").json() == ["tea", "tea, paid"]


async def test_views_of_asgi_need_no_lifespan() -> None:
    client: Any = AsyncClient()
    async with ThreadSensitiveContext():  # a thread for the synchronous view, which ends with this
        assert (await client.get("/order/tea")).status_code == 200
        while (await client.get("/anames")).json() != ["tea", "tea, paid"]:
            pass
        assert (await client.get("/names")).json() == ["tea", "tea, paid"]
        response = await client.get("/stream")
        assert b"".join([part async for part in response.streaming_content]) == b"tea\ntea, paid\n"
        await sync_to_async(connections.close_all)()
