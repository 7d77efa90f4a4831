from __future__ import annotations

from django.urls import path

from tests.django.shop import views

urlpatterns = [
    path("order/<item>", views.order),
    path("names", views.names),
    path("anames", views.anames),
    path("stream", views.stream),
]
