"""A Django project with processes that start, change and end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.broker import Broker
from tests.brokers.postgres import OwnPostgres, own
from tests.django.project import Project

ATASKS_MODULE = """
    import asyncio, os
    from atasks import atask
    from shop.models import Order
    from shop.tasks import price

    @atask(executor="process")
    def names():
        return [*Order.objects.values_list("item", flat=True)], os.getpid() != os.getppid()

    async def aiomain(item="cup", mode=None):
        print(mode, await asyncio.gather(price(item), names()), flush=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


def test_processes_and_worker_processes_know_the_apps(project: Project) -> None:
    project.write("shop/atasks.py", ATASKS_MODULE)
    assert project.manage("migrate", "-v0").code == 0
    for arguments in (("-M", "loopback"), ("-U", "local:", "--workers", "1", "-o", "item=tea")):
        done = project.manage("run_atask", "shop.atasks", *arguments)
        mode, price = ("loopback", 9) if "-M" in arguments else ("client", 4)
        assert (done.code, done.out) == (0, f"{mode} [{price}, ([], True)]\n"), done.err


def test_supervised_workers_of_a_command_that_a_program_calls(project: Project) -> None:
    project.write(
        "program.py",
        """
        import os, django
        os.environ["DJANGO_SETTINGS_MODULE"] = "test_settings"
        django.setup()
        print("program", flush=True)
        from django.core.management import call_command
        call_command("run_atask", workers=2, queue=["default"], concurrency=3)
        print("over", flush=True)
        """,
    )
    program = project.start(program="program.py")
    line = program.wait_for("2 workers serve")
    assert "with concurrency 3 each" in line
    done = project.manage("atask", "shop.tasks:price", "tea")
    assert (done.code, done.out) == (0, "4\n"), done.err
    program.signal(SIGINT)
    done = program.finish()
    assert (done.code, done.out) == (0, "program\nover\n"), "the workers do not run the program"


def test_it_starts_again_when_a_file_changes_where_debug_is_on(project: Project) -> None:
    project.configure(debug=True)
    worker = project.serve()
    path = project.directory / "shop" / "tasks.py"
    path.write_text(path.read_text().replace('"tea": 4', '"tea": 5'))
    os.utime(path, (1, 1))
    worker.wait_for("tasks.py changed")
    worker.wait_for("; Ctrl-C to drain")
    assert project.manage("atask", "shop.tasks:price", "tea").out == "5\n"
    worker.signal(SIGINT)
    assert worker.finish().code == 0


POSTGRES_MODULE = """
    import asyncio, time
    from asgiref.sync import sync_to_async
    from atasks import atask
    from django.db import connection
    from shop.models import Order

    def sleep(seconds):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [seconds])

    @atask
    async def slow(seconds):
        await sync_to_async(sleep)(seconds)

    @atask
    async def seconds_of_ten():
        began = time.monotonic()
        await asyncio.gather(*(slow(0.3) for _ in range(10)))
        return time.monotonic() - began

    @atask
    async def take(item):
        return (await Order.objects.acreate(item=item)).pk

    @atask(executor="thread")
    def take_in_thread(item):
        return Order.objects.create(item=item).pk

    @atask
    async def nested(item):
        return await sync_to_async(lambda: take.sync(item))()
"""
POSTGRES_TESTS = """
    import asyncio
    from django.test import TransactionTestCase
    from shop.atasks import nested, slow, take, take_in_thread
    from shop.models import Order

    class Tests(TransactionTestCase):
        def test_calls_leave_no_connection_behind(self):
            for call in (take, take_in_thread, nested):
                call.sync("tea")
            self.assertEqual(Order.objects.count(), 3)

        async def test_awaits(self):
            await asyncio.gather(*(take(str(n)) for n in range(5)))
            self.assertEqual(await Order.objects.acount(), 5)
"""


@pytest.fixture
def on_postgres(project: Project) -> Iterator[OwnPostgres]:
    """A running database, which the settings of the project name, with persistent connections that are checked."""
    database = own()
    database.start()
    project.write("shop/atasks.py", POSTGRES_MODULE)
    project.configure(databases=_databases(database.url, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True))
    assert project.manage("migrate", "-v0").code == 0
    yield database
    project.close()
    database.close()


def _databases(url: str, **options: Any) -> dict[str, Any]:
    """The setting DATABASES for that URL."""
    parts = urlsplit(url)
    where = {"HOST": parts.hostname, "PORT": parts.port, "USER": parts.username, "PASSWORD": parts.password}
    return {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", **where, **options}}


def _call(project: Project, *arguments: str) -> str:
    done = project.manage("atask", *arguments, "--timeout", "30")
    assert done.code == 0, done.err
    return done.out.strip()


def test_a_restart_of_the_database(project: Project, on_postgres: OwnPostgres) -> None:
    project.serve()
    assert float(_call(project, "shop.atasks:seconds_of_ten")) < 1
    tasks = ("shop.atasks:take", "shop.atasks:take_in_thread", "shop.atasks:nested")
    before = [int(_call(project, task, "tea")) for task in tasks]
    (open_now,) = on_postgres.query(
        "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    assert open_now == (1,), "the thread of the blocking function keeps its connection, calls keep none"
    on_postgres.stop()
    failed = project.manage("atask", "shop.atasks:take", "tea", "--timeout", "30")
    assert failed.code == 1
    assert "OperationalError" in failed.err
    on_postgres.start()
    after = [int(_call(project, task, "tea")) for task in tasks]
    assert sorted(before + after) == before + after


def test_the_teardown_of_a_test_database(project: Project, on_postgres: OwnPostgres) -> None:
    project.configure(
        atasks={"default": {"URL": "loopback:"}}, databases=_databases(on_postgres.url, CONN_MAX_AGE=0)
    )
    project.write("shop/tests.py", POSTGRES_TESTS)
    done = project.manage("test", "-v0")
    assert (done.code, "OK" in done.err) == (0, True), done.err
    assert "being accessed by other users" not in done.err


JOBS_PROGRAM = """
    import time, django
    django.setup()
    from shop.jobs import double, fail

    result = double.enqueue(21)
    statuses = set()
    while not result.is_finished:
        result.refresh()
        statuses.add(result.status)
    failed = fail.using(queue_name="mail").enqueue()
    while not failed.is_finished:
        failed.refresh()
    print(result.return_value, "RUNNING" in statuses, failed.status, failed.errors[0].exception_class.__name__)
    print(result.attempts, result.worker_ids[0] != "", result.started_at <= result.finished_at)
"""
JOBS_MODULE = """
    import importlib, time
    try:
        task = importlib.import_module("django.tasks").task
    except ImportError:
        task = importlib.import_module("django_tasks").task

    @task
    def double(n):
        time.sleep(0.3)
        return 2 * n

    @task(queue_name="mail")
    def fail():
        raise KeyError("it")
"""


@pytest.mark.parametrize("transport", ["unix", "amqp"])
def test_tasks_of_django_run_on_workers(project: Project, broker: Broker, prefix: str, transport: str) -> None:
    project.write("shop/jobs.py", JOBS_MODULE)
    project.write("shop/atasks.py", "from shop import jobs\n")
    project.write("program.py", JOBS_PROGRAM)
    if transport == "amqp":
        project.configure(atasks={"default": {"URL": broker.url, "PREFIX": prefix}})
    with (project.directory / "test_settings.py").open("a") as file:
        file.write('TASKS = {"default": {"BACKEND": "atasks.contrib.django.backend.AtasksBackend", ')
        file.write('"QUEUES": ["default", "mail"]}}\n')
    worker = project.serve()
    assert "on queues 'default', 'mail' of" in worker.err[0]
    done = project.manage(program="program.py")
    assert (done.code, done.out) == (0, "42 True FAILED KeyError\n1 True True\n"), done.err
