# shop/urls.py
from django.urls import path

from shop import views

urlpatterns = [
    path("order/<item>", views.order),
    path("sent", views.sent),
    path("offer/<item>", views.offer),
]
