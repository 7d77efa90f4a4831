# shop/tests.py
from django.test import Client, TestCase

from atasks.contrib.django.testing import AtasksMixin
from shop.models import Order
from shop.tasks import count, send


class OrderTests(AtasksMixin, TestCase):
    def test_send(self) -> None:
        order = Order.objects.create(item="tea")
        self.assertEqual(send.sync(order.pk), "sent tea for 4")
        order.refresh_from_db()
        self.assertTrue(order.sent)
        self.assertEqual(count.sync(), 1)

    async def test_await(self) -> None:
        order = await Order.objects.acreate(item="cup")
        self.assertEqual(await send(order.pk), "sent cup for 9")

    def test_view(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            Client().get("/order/tea")
        self.assertTrue(Order.objects.get().sent)
