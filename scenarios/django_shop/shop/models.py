# shop/models.py
from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=100)
    price = models.IntegerField(null=True)
    sent = models.BooleanField(default=False)
