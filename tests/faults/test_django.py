"""A Django project with processes that start, change and end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT

import pytest

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
