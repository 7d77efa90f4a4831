from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

from tests.django.shop import tasks
from tests.django.shop.models import Order


def order(request: HttpRequest, item: str) -> JsonResponse:
    with transaction.atomic():
        made = Order.objects.create(item=item)
        tasks.pay.on_commit(made.pk)
        if item == "refused":
            transaction.set_rollback(True)
    return JsonResponse({"order": made.pk})


def names(request: HttpRequest) -> HttpResponse:
    return JsonResponse(tasks.names.sync(), safe=False)


async def anames(request: HttpRequest) -> HttpResponse:
    return JsonResponse(await tasks.names(), safe=False)


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"{item}\n" async for item in tasks.stream())
