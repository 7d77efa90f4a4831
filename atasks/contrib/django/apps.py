"""The app: it makes what the setting ATASKS asks for, and imports the apps' atasks."""

from __future__ import annotations

import os
from typing import Any

from django.apps import AppConfig
from django.conf import ENVIRONMENT_VARIABLE
from django.core import checks as django_checks
from django.core.signals import setting_changed
from django.utils.module_loading import autodiscover_modules

from atasks import commands, process_setup
from atasks.contrib.django import namespaces
from atasks.contrib.django.checks import check_settings

__all__ = ["MODULES", "AtasksConfig"]

MODULES = ("tasks", "atasks")
"""Names of the modules of apps that are imported for their atasks."""


class AtasksConfig(AppConfig):
    """The app `atasks.contrib.django`."""

    name = "atasks.contrib.django"
    label = "atasks"
    verbose_name = "atasks"

    def ready(self) -> None:
        """Make routers, codecs and middlewares, and import the apps' modules. Nothing is connected here."""
        django_checks.register(check_settings)
        if os.environ.get(ENVIRONMENT_VARIABLE):  # worker processes inherit it
            process_setup.remember("django:setup")
            commands.started_by("python manage.py run_atask")
        namespaces.make()
        setting_changed.connect(_settings_changed)
        autodiscover_modules(*MODULES)


def _settings_changed(*, setting: str, **more: Any) -> None:
    """Have tests that override ATASKS get what they say."""
    if setting == "ATASKS":
        namespaces.make()
