# settings.py
from pathlib import Path

DEBUG = True
SECRET_KEY = "for development only"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
INSTALLED_APPS = ["shop", "atasks.contrib.django"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "db.sqlite3",
        "OPTIONS": {"timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

ATASKS = {
    "default": {
        "URL": "amqp://guest:guest@localhost/",
        "CONCURRENCY": 20,
    }
}
