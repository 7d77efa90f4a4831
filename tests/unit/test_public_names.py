"""The names that programs import: listed, sorted, importable, and free of what they do not need."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import errors

NOT_IMPORTED_HERE = {"atasks.__main__"}
"""Modules that act when they are imported."""


def modules() -> Iterator[str]:
    yield "atasks"
    for found in pkgutil.walk_packages(atasks.__path__, "atasks."):
        if found.name not in NOT_IMPORTED_HERE:
            yield found.name


@pytest.mark.parametrize("name", list(modules()))
def test_all_is_sorted_and_importable(name: str) -> None:
    """Sorted as the linter sorts: constants, classes, functions."""
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert list(public) == sorted(public, key=lambda item: (not item.isupper(), not item[0].isupper(), item))
    assert len(set(public)) == len(public)
    for item in public:
        assert hasattr(module, item), f"{name}.{item}"


@pytest.mark.parametrize("name", ["atasks", "atasks.codecs", "atasks.pipeline", "atasks.supervisor"])
def test_every_public_name_of_the_package_is_in_all(name: str) -> None:
    """The names that `__init__` shows type checkers, imports on demand and exports are the same, from the same
    modules."""
    package: Any = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__).read_text())
    shown = {
        name.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("atasks.")
        for name in node.names
    }
    assert shown == {name: module for module, names in package._HOMES.items() for name in names.split()}
    assert set(shown) == set(package.__all__)
    assert set(package.__all__) <= set(dir(package))


def test_a_name_that_the_package_does_not_have() -> None:
    for name in ("conect", "_errors", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'atasks' has no attribute '{name}'"):
            getattr(atasks, name)


def test_importing_atasks_imports_nothing_that_is_not_used(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        import atasks
        heavy = ("atasks.", "asyncio", "msgspec", "logging")
        print(sorted(name for name in sys.modules if name.startswith(heavy)))
        print(atasks.errors.__name__, atasks.connect.__module__)
        """
    )
    assert output.splitlines() == ["[]", "atasks.errors atasks.connection"]


def test_the_process_of_a_stage_imports_neither_an_event_loop_nor_the_rest_of_the_pipelines(
    script: Callable[..., str],
) -> None:
    output = script(
        """
        import sys
        import atasks.pipeline.flow.child
        heavy = {"asyncio", "msgspec", "cloudpickle", "multiprocessing", "atasks.pipeline.api", "atasks.wire"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert output.strip() == "[]"


def test_the_process_of_a_blocking_function_imports_neither_an_event_loop_nor_what_only_errors_need(
    script: Callable[..., str],
) -> None:
    output = script(
        """
        import sys
        import atasks.worker.executors.child
        from atasks import atask
        atask(lambda: None, name="nothing")
        heavy = {"asyncio", "cloudpickle", "multiprocessing"}
        heavy |= {f"atasks.{name}" for name in ("codecs.culprits", "failures.failures", "router", "timing")}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert output.strip() == "[]"


def test_an_atask_and_a_connection_import_no_part_of_the_standard_library_that_only_others_need(
    script: Callable[..., str],
) -> None:
    output = script(
        """
        import sys
        from atasks import atask, connect
        rare = {"bz2", "lzma", "multiprocessing", "pkgutil", "sysconfig", "tempfile", "zoneinfo"}
        print(sorted(rare & set(sys.modules)))
        """
    )
    assert output == "[]"


def test_an_atask_imports_what_asyncio_imports_and_little_else(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        import asyncio
        known = set(sys.modules)
        from atasks import atask
        print(sorted(name for name in set(sys.modules) - known if not name.startswith(("atasks", "importlib"))))
        """
    )
    more = {"__future__", "_datetime", "_pydatetime", "_typing", "copy", "dataclasses", "datetime", "typing"}
    assert set(ast.literal_eval(output)) <= more


def test_the_command_line_imports_no_server_of_probes_and_no_transport_before_it_needs_one(
    script: Callable[..., str],
) -> None:
    output = script(
        """
        import sys
        import atasks_cli.main
        rare = {"http.server", "sysconfig", "tempfile", "tomllib", "argparse", "atasks.transport.backends.local"}
        print(sorted(rare & set(sys.modules)))
        """
    )
    assert output == "[]"


def test_a_program_in_one_process_imports_nothing_that_only_other_programs_need(
    script: Callable[..., str],
) -> None:
    output = script(
        """
        import asyncio
        import sys
        import atasks
        @atasks.atask
        async def add(a, b):
            return a + b
        async def main():
            async with atasks.serve("loopback:"):
                assert await add(1, 2) == 3
            others = "caller.stream caller.tries caller.watched process_setup " \
                "resume submitted.handle submitted.submit signing supervisor.supervisor tracking.answering " \
                "tracking.queries transport.bridge worker.executors.processes worker.executors.threads"
            print([name for name in others.split() if f"atasks.{name}" in sys.modules])
        asyncio.run(main())
        """
    )
    assert output == "[]"


def test_a_program_that_only_awaits_imports_no_worker(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        import atasks.router, atasks.transport.backends.amqp, atasks.connection
        print(sorted(name for name in sys.modules if name.startswith("atasks.worker.")))
        """
    )
    assert output == "[]"


def test_the_command_line_imports_the_commands_of_a_fleet_when_they_are_used(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        from click import Context
        from atasks_cli.main import FAMILIES, main
        print([family for family in FAMILIES if f"atasks_cli.{family}" in sys.modules])
        commands = {name: main.get_command(Context(main), name) for name in main.list_commands(Context(main))}
        print([name for name, command in commands.items() if command is None or command.name != name])
        there = {name: [item.name for item in sys.modules[f"atasks_cli.{name}"].COMMANDS] for name in FAMILIES}
        print([name for name in FAMILIES if there[name] != list(FAMILIES[name])])
        """
    )
    assert output.splitlines() == ["[]"] * 3


def test_every_error_is_exported_and_in_the_tree() -> None:
    assert set(errors.__all__) <= set(atasks.__all__)
    assert errors.__doc__ is not None
    for name in errors.__all__:
        cls = getattr(atasks, name)
        assert issubclass(cls, atasks.AtasksError)
        assert name in errors.__doc__
        assert cls.__module__ == "atasks.errors"


PROMISED = """
    ATask AtasksError CallCancelled CallConnectionLost CallError CallTimeout CloudpickleCodec Codec CurrentCall
    DecodeError EncodeError LoopbackTransport MsgpackCodec NoWorker NotConnected NotSupported PayloadTooLarge
    PickleCodec RegisteringTwice RemoteError RemoteTraceback Router TooManyParked Transport UnknownTask Worker
    WorkerLost atask carry connect current_call get_codec get_router get_transport serve
"""


def test_what_was_promised_stays() -> None:
    assert set(PROMISED.split()) <= set(atasks.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert atasks.__version__ == version("atasks")


def test_importing_atasks_imports_no_client_library(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        import atasks
        import atasks.codecs, atasks.tasks, atasks.router, atasks.transport.base
        heavy = {"aio_pika", "aiormq", "pamqp", "click", "pytest", "cloudpickle", "psutil", "uvloop", "atasks_cli"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert output == "[]"


def test_a_first_run_over_the_loopback_imports_no_client_library(script: Callable[..., str]) -> None:
    output = script(
        """
        import asyncio, sys
        import atasks

        @atasks.atask
        async def add(a, b):
            return a + b

        async def main():
            async with atasks.connect("loopback:"):
                print(await add(1, 2))

        asyncio.run(main())
        print(sorted({"aio_pika", "aiormq", "pamqp", "click", "pytest"} & set(sys.modules)))
        """
    )
    assert output.splitlines() == ["3", "[]"]


def test_a_worker_over_rabbitmq_imports_nothing_of_other_transports(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        import atasks_cli.main, atasks.tasks, atasks.worker.worker, atasks.transport.backends.amqp.transport
        print("aiormq" in sys.modules)
        others = {"atasks.transport.loopback", "atasks.transport.backends.local.transport"}
        print(sorted(others & set(sys.modules)))
        """
    )
    assert output.splitlines() == ["True", "[]"]


def test_a_worker_compiles_hardly_an_annotation_when_it_begins(script: Callable[..., str]) -> None:
    output = script(
        """
        import sys
        compiled = []
        def hear(event, args):
            if event == "compile" and args[1] == "<string>":
                frame = sys._getframe(1)
                while frame.f_globals["__name__"].partition(".")[0] in ("typing", "msgspec"):
                    frame = frame.f_back
                if frame is not sys._getframe(1):
                    compiled.append(frame.f_globals["__name__"])
        sys.addaudithook(hear)
        import atasks.worker.worker
        from atasks.transport.backends import amqp, local
        print(len([name for name in compiled if name.startswith("atasks")]))
        """
    )
    assert int(output) < 20  # there were hundreds
