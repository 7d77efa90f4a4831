# shop/tasks.py
from asgiref.sync import sync_to_async
from django.db import transaction

from atasks import atask
from shop.models import Order

PRICES = {"tea": 4, "cup": 9}


@atask(timeout=10)
async def price(item: str) -> int:
    return PRICES[item]


@atask
async def send(order_id: int) -> str:
    order = await Order.objects.aget(pk=order_id)
    order.price = await price(order.item)
    order.sent = True
    await order.asave()
    return f"sent {order.item} for {order.price}"


@atask(executor="thread")
def count() -> int:
    with transaction.atomic():
        return Order.objects.filter(sent=True).count()


@atask
async def cancel(order_id: int) -> int:
    deleted, _ = await sync_to_async(Order.objects.filter(pk=order_id, sent=False).delete)()
    return deleted
