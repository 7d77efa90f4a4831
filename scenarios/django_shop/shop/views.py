# shop/views.py
from django.db import transaction
from django.http import HttpRequest, JsonResponse

from shop.models import Order
from shop.tasks import count, price, send


def order(request: HttpRequest, item: str) -> JsonResponse:
    with transaction.atomic():
        made = Order.objects.create(item=item)
        send.on_commit(made.pk)
    return JsonResponse({"order": made.pk})


def sent(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"sent": count.sync()})


async def offer(request: HttpRequest, item: str) -> JsonResponse:
    return JsonResponse({item: await price(item)})
