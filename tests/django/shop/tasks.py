"""Atasks that use the database. The app of atasks imports this module."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

from asgiref.sync import sync_to_async
from django.db import connection
from django.utils import timezone, translation

from atasks import atask
from tests.django.shop.models import Order

NAMESPACE = "tests.django"


@atask(namespace=NAMESPACE)
async def take(item: str) -> int:
    return (await Order.objects.acreate(item=item)).pk


@atask(namespace=NAMESPACE)
async def names() -> list[str]:
    return [order.item async for order in Order.objects.order_by("pk")]


@atask(namespace=NAMESPACE)
async def stream() -> AsyncIterator[str]:
    async for order in Order.objects.order_by("pk"):
        yield order.item


@atask(namespace=NAMESPACE, executor="thread")
def take_in_thread(item: str) -> int:
    return Order.objects.create(item=item).pk


@atask(namespace=NAMESPACE)
async def slow(seconds: float) -> int:
    """Keep a connection of the call's own busy."""
    return await sync_to_async(query_slowly)(seconds)


def query_slowly(seconds: float) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nap(%s)", [seconds])
        return threading.get_ident()


@atask(namespace=NAMESPACE)
async def together(count: int) -> int:
    """Return when so many calls are in their queries at once."""
    return await sync_to_async(query_together)(count)


def query_together(count: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT meet(%s)", [count])
        return threading.get_ident()


@atask(namespace=NAMESPACE)
async def nested(item: str) -> int:
    return await sync_to_async(lambda: take.sync(item))()


@atask(namespace=NAMESPACE, executor="thread")
def nested_in_thread(item: str) -> int:
    return take.sync(item)


@atask(namespace=NAMESPACE)
async def place() -> tuple[str | None, str]:
    return translation.get_language(), str(timezone.localtime(timezone.now()).utcoffset())


@atask(namespace=NAMESPACE, executor="thread")
def place_in_thread() -> tuple[str | None, str]:
    return translation.get_language(), str(timezone.localtime(timezone.now()).utcoffset())


@atask(namespace=NAMESPACE)
async def fail() -> None:
    raise ValueError("it failed")


@atask(namespace=NAMESPACE)
async def pay(order: int) -> None:
    found = await Order.objects.aget(pk=order)
    await Order.objects.acreate(item=f"{found.item}, paid", paid=True)


@atask(namespace=NAMESPACE, executor="process")
def count_in_process() -> int:
    return Order.objects.count()
