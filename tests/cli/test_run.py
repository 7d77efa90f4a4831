"""`atasks run` in loopback mode: what an aiomain is given, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import atasks
from tests.cli.shell import Shell

ADD = """
    from atasks import atask

    @atask
    async def add(a, b):
        return a + b

    async def aiomain(**options):
        print(add.name, await add(1, 2))
"""

SHOW = """
    async def aiomain(**options):
        print({key: options[key] for key in sorted(options)})
"""


def test_loopback_is_the_default_mode(shell: Shell) -> None:
    shell.write("tasks.py", ADD)
    done = shell.run("run", "tasks.py")
    assert (done.code, done.out, done.err) == (0, "tasks.add 3\n", "")


def test_file_and_module_give_the_same_names(shell: Shell) -> None:
    shell.write("app/__init__.py", "")
    shell.write("app/tasks.py", ADD)
    assert shell.run("run", "app/tasks.py").out == "app.tasks.add 3\n"
    assert shell.run("run", "app.tasks").out == "app.tasks.add 3\n"
    assert shell.run("run", "app/tasks.py", "app.tasks").out == "app.tasks.add 3\n"


def test_installed_command_is_the_same(shell: Shell) -> None:
    shell.write("tasks.py", ADD)
    code = "import sys; from atasks_cli.main import main; sys.argv[0] = 'atasks'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "tasks.py"],
        cwd=shell.directory,
        env={"PYTHONPATH": str(Path(atasks.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "tasks.add 3\n"


def test_aiomain_need_not_be_a_coroutine_function(shell: Shell) -> None:
    shell.write("plain.py", "def aiomain(mode):\n    print('plain', mode)")
    shell.write("future.py", "import asyncio\ndef aiomain():\n    return asyncio.sleep(0, print('future'))")
    assert sorted(shell.run("run", "plain.py", "future.py").out.splitlines()) == ["future", "plain loopback"]


def test_garbage_of_an_import_is_collected(shell: Shell) -> None:
    shell.write(
        "leaving.py",
        """
        import gc, weakref

        class Large:
            def __init__(self):
                self.myself = self

        large = weakref.ref(Large())

        async def aiomain():
            gc.collect()
            print(large())
        """,
    )
    assert shell.run("run", "leaving.py").out == "None\n"


def test_modules_run_together(shell: Shell) -> None:
    shell.write("meeting.py", "import asyncio\nbarrier = asyncio.Barrier(2)")
    for name in ("one", "two"):
        shell.write(
            f"{name}.py",
            f"import meeting\nasync def aiomain():\n    await meeting.barrier.wait()\n    print('{name}')",
        )
    done = shell.run("run", "one.py", "two")
    assert done.code == 0
    assert sorted(done.out.split()) == ["one", "two"]


def test_atasks_of_one_module_serve_another(shell: Shell) -> None:
    shell.write("tasks.py", ADD.split("async def aiomain", maxsplit=1)[0])
    shell.write("client.py", "from tasks import add\nasync def aiomain():\n    print(await add(2, 3))")
    assert shell.run("run", "tasks.py", "client.py").out == "5\n"
    assert shell.run("run", "client").out == "5\n"


def test_concurrency_is_the_workers(shell: Shell) -> None:
    shell.write(
        "tasks.py",
        """
        import asyncio
        from atasks import atask

        running = most = 0

        @atask
        async def work():
            global running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

        async def aiomain():
            await asyncio.gather(*(work() for _ in range(20)))
            print(most)
        """,
    )
    assert shell.run("run", "tasks.py", "--concurrency", "3").out == "3\n"


def test_threads_and_processes_are_the_workers(shell: Shell) -> None:
    shell.write(
        "tasks.py",
        """
        import asyncio, os, threading, time
        from atasks import atask

        running = most = 0
        lock = threading.Lock()

        @atask(executor="thread")
        def work():
            global running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)
            with lock:
                running -= 1

        @atask(executor="process")
        def pid():
            return os.getpid()

        async def aiomain():
            await asyncio.gather(*(work() for _ in range(20)))
            pids = await asyncio.gather(*(pid() for _ in range(20)))
            print(most, len(set(pids)))
        """,
    )
    assert shell.run("run", "tasks.py", "--threads", "1", "--processes", "1").out == "1 1\n"


def test_namespace_is_the_one_that_is_served(shell: Shell) -> None:
    shell.write("tasks.py", ADD.replace("@atask", "@atask(namespace='other')"))
    assert shell.run("run", "tasks.py", "--namespace", "other").out == "tasks.add 3\n"


# --- options


def test_aiomain_gets_the_settings(shell: Shell) -> None:
    shell.write("show.py", SHOW)
    done = shell.run("run", "show.py", "--concurrency", "7", "--namespace", "n", "-o", "extra=1")
    assert done.out == (
        "{'concurrency': 7, 'extra': 1, 'grace': 30.0, 'mode': 'loopback', 'namespace': 'n', 'queue': [], "
        "'transport': 'loopback', 'url': 'loopback:'}\n"
    )


def test_aiomain_gets_only_what_it_accepts(shell: Shell) -> None:
    shell.write("picky.py", "async def aiomain(mode, *, n=1, m=2):\n    print(mode, n, m)")
    assert shell.run("run", "picky.py", "-o", "m=5").out == "loopback 1 5\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ('["a", {"b": 1}]', ["a", {"b": 1}]),
        ('"5"', "5"),
        ("Ann", "Ann"),
        ("{not json", "{not json"),
        ("a=b", "a=b"),
        ("", ""),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        pytest.param("[" * 100_000, "[" * 100_000, id="nested too deep"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_option_is_json_or_else_text(shell: Shell, text: str, value: object) -> None:
    shell.write("show.py", "async def aiomain(x):\n    print(repr(x))")
    assert shell.run("run", "show.py", "-o", f"x={text}").out == f"{value!r}\n"


def test_last_of_a_repeated_option_counts(shell: Shell) -> None:
    shell.write("show.py", "async def aiomain(x):\n    print(x)")
    assert shell.run("run", "show.py", "-o", "x=1", "-o", "x=2").out == "2\n"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("x", "-o x: not key=value; write -o x=VALUE"),
        ("=1", "-o =1: not key=value; write -o key=VALUE"),
        ("mode=server", "-o mode=...: aiomain() gets 'mode' from --mode; use that"),
    ],
)
def test_option_that_is_no_option(shell: Shell, pair: str, message: str) -> None:
    shell.write("show.py", SHOW)
    done = shell.run("run", "show.py", "-o", pair)
    assert (done.code, done.line()) == (2, message)


def test_option_that_no_module_accepts(shell: Shell) -> None:
    shell.write("picky.py", "async def aiomain(mode, count=1, size=2):\n    print(count)")
    shell.write("none.py", "async def aiomain():\n    pass")
    done = shell.run("run", "picky.py", "-o", "cuont=5")
    assert done.code == 2
    assert done.line() == "-o cuont: no such option of aiomain() in picky; did you mean -o count=...?"
    assert shell.run("run", "picky.py", "-o", "zzz=5").line().endswith("; accepted: count, size")
    assert "takes no options" in shell.run("run", "none.py", "-o", "zzz=5").line()
    assert shell.run("run", "none.py", "picky.py", "-o", "count=5").out == "5\n"


def test_option_that_aiomain_needs(shell: Shell) -> None:
    shell.write("needy.py", "async def aiomain(n, /, m):\n    pass")
    shell.write("needs.py", "async def aiomain(count):\n    pass")
    done = shell.run("run", "needs.py")
    assert (done.code, done.line()) == (2, "aiomain() of needs needs 'count': add -o count=VALUE")
    done = shell.run("run", "needy.py", "-o", "m=1", "-o", "n=1")
    assert (done.code, done.line()) == (
        2,
        "aiomain() of needy has the positional-only parameter 'n': options are passed by name; remove the /",
    )


# --- an aiomain that raises


def test_aiomain_that_raises_shows_its_own_traceback(shell: Shell) -> None:
    shell.write(
        "failing.py",
        """
        from atasks import atask

        @atask
        async def divide(a, b):
            return a / b

        async def aiomain():
            await divide(1, 0)
        """,
    )
    done = shell.run("run", "failing.py")
    assert done.code == 1
    assert "ZeroDivisionError: division by zero\n" in done.err
    assert "in aiomain\n    await divide(1, 0)" in done.err
    assert "in divide\n    return a / b" in done.err  # the worker's side
    assert done.err.endswith(
        "atasks: error: aiomain() of failing raised ZeroDivisionError; its traceback is above\n"
    )
    for library in ("atasks/router.py", "atasks_cli", "click"):
        assert library not in done.err
    whole = shell.run("run", "failing.py", "-vv")
    assert whole.code == 1
    assert "atasks/router.py" in whole.err


def test_aiomain_that_raises_cancels_the_others(shell: Shell) -> None:
    shell.write("meeting.py", "import asyncio\nbarrier = asyncio.Barrier(3)")
    shell.write(
        "waiting.py",
        """
        import asyncio, meeting

        async def aiomain():
            await meeting.barrier.wait()
            try:
                await asyncio.Event().wait()
            finally:
                print("cancelled")
        """,
    )
    shell.write(
        "stubborn.py", (shell.directory / "waiting.py").read_text().replace('print("cancelled")', "{}['x']")
    )
    shell.write(
        "failing.py",
        "import meeting\nasync def aiomain():\n    await meeting.barrier.wait()\n    raise ValueError(3)",
    )
    done = shell.run("run", "waiting.py", "stubborn.py", "failing.py")
    assert (done.code, done.out) == (1, "cancelled\n")
    assert "ValueError: 3\n" in done.err
    assert "aiomain() of stubborn raised KeyError while it was stopped" in done.err
    assert "aiomain() of failing raised ValueError" in done.err


def test_error_of_a_call_is_shown_where_it_was_awaited(shell: Shell) -> None:
    shell.write(
        "late.py",
        """
        import asyncio
        from atasks import atask

        @atask(timeout=0.01)
        async def never():
            await asyncio.Event().wait()

        async def aiomain():
            await never()
        """,
    )
    done = shell.run("run", "late.py")
    assert done.code == 1
    assert "in aiomain\n    await never()" in done.err
    assert "CallTimeout: late.never did not finish within 0.01 s" in done.err
    assert "atasks/router.py" not in done.err


def test_aiomain_that_cancels_itself_has_raised(shell: Shell) -> None:
    shell.write("odd.py", "import asyncio\nasync def aiomain():\n    raise asyncio.CancelledError")
    done = shell.run("run", "odd.py")
    assert done.code == 1
    assert "aiomain() of odd raised CancelledError" in done.err


@pytest.mark.parametrize(
    ("argument", "code", "err"), [("0", 0, ""), ("7", 7, ""), ("'stop'", 1, "atasks: stop\n")]
)
def test_aiomain_that_exits_decides_the_code(shell: Shell, argument: str, code: int, err: str) -> None:
    shell.write("leaving.py", f"import sys\nasync def aiomain():\n    sys.exit({argument})")
    shell.write("staying.py", "import asyncio\nasync def aiomain():\n    await asyncio.Event().wait()")
    done = shell.run("run", "staying.py", "leaving.py")
    assert (done.code, done.out, done.err) == (code, "", err)


# --- logs and loops


def test_verbosity(shell: Shell) -> None:
    shell.write(
        "logging_module.py",
        """
        import logging

        async def aiomain():
            for level in ("debug", "info", "warning"):
                getattr(logging, level)(level)
        """,
    )
    assert [line.split()[-1] for line in shell.run("run", "logging_module.py").err.splitlines()] == ["warning"]
    assert " INFO root: info" in shell.run("run", "logging_module.py", "-v").err
    assert " DEBUG root: debug" in shell.run("run", "logging_module.py", "-vv").err


def test_uvloop_is_used(shell: Shell) -> None:
    shell.write(
        "loop.py", "import asyncio\nasync def aiomain():\n    print(type(asyncio.get_running_loop()).__name__)"
    )
    shell.write(
        "uvloop.py",  # stands for the real one, which need not be installed
        """
        import asyncio

        class Loop(asyncio.SelectorEventLoop):
            pass

        new_event_loop = Loop
        """,
    )
    assert shell.run("run", "loop.py", "--uvloop").out == "Loop\n"


def test_uvloop_that_is_not_installed(shell: Shell) -> None:
    shell.write("loop.py", SHOW)
    shell.write("uvloop.py", "raise ModuleNotFoundError")
    done = shell.run("run", "loop.py", "--uvloop")
    assert (done.code, done.line()) == (2, "uvloop is not installed: pip install uvloop")


def test_version_and_help(shell: Shell) -> None:
    assert shell.run("--version").out == f"atasks {atasks.__version__}\n"
    assert "run" in shell.run("--help").out
    text = shell.run("run", "--help").out
    assert "atasks run app.tasks -o n=5" in text
    assert "    4  the broker, or the server at a socket, cannot be reached" in text


OWN_LOGGING = """
    import logging

    {configuration}
    logging.getLogger("shop").info("loading")

    async def aiomain():
        logging.getLogger("shop").info("running")
        logging.getLogger("shop").warning("warned")
"""


def test_a_module_s_own_logging_is_honoured(shell: Shell) -> None:
    own = 'logging.basicConfig(level=logging.INFO, format="mine %(message)s")'
    shell.write("tasks.py", OWN_LOGGING.format(configuration=own))
    assert shell.run("run", "tasks.py").err == "mine loading\nmine running\nmine warned\n"
    own = (
        'logging.config.dictConfig({"version": 1, "handlers": {"h": {"class": "logging.StreamHandler"}}, '
        '"root": {"level": "INFO", "handlers": ["h"]}})'
    )
    shell.write("others.py", OWN_LOGGING.format(configuration=f"import logging.config; {own}"))
    assert shell.run("run", "others.py").err == "loading\nrunning\nwarned\n"


def test_a_module_without_logging_of_its_own_has_the_command_s(shell: Shell) -> None:
    shell.write("tasks.py", OWN_LOGGING.format(configuration=""))
    assert [line.split(" ", 2)[2] for line in shell.run("run", "tasks.py").err.splitlines()] == [
        "WARNING shop: warned"
    ]
    verbose = [line.split(" ", 2)[2] for line in shell.run("run", "tasks.py", "-v").err.splitlines()]
    assert {"INFO shop: loading", "INFO shop: running", "WARNING shop: warned"} <= set(verbose)


def test_garbage_is_not_collected_where_python_begins_so(shell: Shell) -> None:
    shell.write("tasks.py", "import gc\n\nasync def aiomain():\n    print(gc.isenabled())\n")
    assert shell.run("run", "tasks.py", "--url", "loopback:").out == "True\n"
    shell.write("sitecustomize.py", "import gc\n\ngc.disable()\n")
    done = shell.run("run", "tasks.py", "--url", "loopback:", env={"PYTHONPATH": str(shell.directory)})
    assert done.out == "False\n"


def test_the_collector_never_looks_through_what_the_command_imports(shell: Shell) -> None:
    shell.write(
        "tasks.py",
        """
        import gc, sys

        async def aiomain():
            for name in ("worker.worker", "transport.loopback", "router"):
                contents = vars(sys.modules[f"atasks.{name}"])
                print(any(item is contents for item in gc.get_objects()))
        """,
    )
    assert shell.run("run", "tasks.py").out == "False\nFalse\nFalse\n"
