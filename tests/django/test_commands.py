"""`manage.py run_atask` and `manage.py atask`, in a project of its own over a socket."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from atasks import Handle
from tests.django.conftest import NAMESPACE
from tests.django.project import Project

HERE = ("--namespace", NAMESPACE)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


def test_a_worker_of_the_installed_apps(project: Project) -> None:
    assert project.manage("migrate", "-v0").code == 0
    worker = project.serve()
    assert "serving 4 atasks on queue 'default' of unix://" in worker.err[0]
    done = project.manage("atask", "shop.tasks:price", "tea")
    assert (done.code, done.out, done.err) == (0, "4\n", "")
    done = project.manage("atask", "shop.tasks:count", "--timeout", "20")
    assert (done.code, done.out, done.err) == (0, "0\n", "")
    worker.signal(SIGTERM)
    assert worker.finish().code == 0


def test_errors_name_the_command_of_the_project_that_starts_a_worker(project: Project) -> None:
    done = project.manage("atask", "shop.tasks:price", "tea")
    assert done.code != 0
    start = f"python manage.py run_atask --url unix://{project.socket}"
    assert f"nothing serves at {project.socket}: start a server there ({start})" in done.err


def test_the_project_lacks_no_migration(project: Project) -> None:
    done = project.manage("makemigrations", "--check")
    assert (done.code, done.out) == (0, "No changes detected\n"), done.err


def test_logging_is_left_to_the_settings(project: Project) -> None:
    project.write(
        "log_settings.py",
        """
        from test_settings import *
        LOGGING = {
            "version": 1,
            "formatters": {"plain": {"format": "%(levelname)s %(name)s mine: %(message)s"}},
            "handlers": {"here": {"class": "logging.StreamHandler", "formatter": "plain"}},
            "root": {"handlers": ["here"], "level": "WARNING"},
        }
        """,
    )
    project.write(
        "shop/atasks.py",
        """
        import logging
        async def aiomain():
            logging.getLogger("shop").info("not shown")
            logging.getLogger("atasks").info("not shown")
            logging.getLogger("shop.loud").info("shown")
            logging.getLogger("shop").warning("shown")
        """,
    )
    command = ("run_atask", "shop.atasks", "-M", "loopback", "--settings", "log_settings", "-L", "shop.loud")
    done = project.manage(*command)
    assert (done.code, done.err) == (0, "INFO shop.loud mine: shown\nWARNING shop mine: shown\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run_atask", "--namespace", "other"), 2, "ATASKS has no namespace 'other': it has 'tests.django'"),
        (("run_atask", "--concurrency", "0"), 1, "0 is not in the range x>=1"),
        (("run_atask", "--concurency", "5"), 1, "unrecognized arguments"),
        (("run_atask", "missing.module", *HERE), 3, "missing"),
        (("run_atask", "-M", "client", "-T", "local", *HERE), 2, "nothing to run: no aiomain() in tests.django"),
        (("run_atask", "-T", "amqp", "-U", "unix:///tmp/x.sock", *HERE), 2, "contradicts"),
        (("run_atask", "-U", "unix:///proc/nowhere/x.sock", *HERE), 9, "/proc/nowhere"),
        (("run_atask", "-M", "loopback", "-o", "n", *HERE), 2, "not key=value"),
        (("atask", "tests.django.shop.tasks"), 2, "names no atask"),
        (("atask", "tests.django.shop.tasks:tkae", "tea"), 2, "did you mean take?"),
        (("atask", "tests.django.shop.tasks:take"), 1, "missing 1 required positional argument"),
        (("atask", "tests.django.shop.tasks:fail"), 1, "ValueError: it failed"),
        (("atask", "tests.django.shop.tasks:stream", "--submit"), 2, "a stream is not submitted"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], code: int, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        call_command(*arguments)
    assert caught.value.returncode == code
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_call_from_the_shell() -> None:
    out = io.StringIO()
    call_command("atask", "tests.django.shop.tasks:take", "tea", stdout=out)
    call_command("atask", "tests.django.shop.tasks:take", "-o", 'item="cup"', "--submit", stdout=out)
    number, id = out.getvalue().split()
    assert Handle(id, NAMESPACE).sync() == int(number) + 1
    out = io.StringIO()
    call_command("atask", "tests.django.shop.tasks:stream", stdout=out)
    assert out.getvalue() == '"tea"\n"cup"\n'
