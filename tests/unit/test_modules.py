"""The name of a module on every side of a call, and what the command line says of one that cannot be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atasks import modules
from atasks.errors import LoadError
from atasks.modules import dotted_name, load

REPORT = """
import logging, sys
logging.basicConfig(format="LOG %(message)s")
from atasks import modules
name = modules.main_name()
assert modules.main_name() == name
print(name, name is not None and sys.modules[name] is sys.modules["__main__"])
"""


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def python(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(modules.__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def report(*arguments: str, cwd: Path, stdin: str | None = None) -> str:
    done = python(*arguments, cwd=cwd, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


# --- the name of the program


@pytest.mark.parametrize("run", ["script.py", "./script.py"])
def test_script_is_known_by_its_stem(tmp_path: Path, run: str) -> None:
    write(tmp_path / "script.py", REPORT)
    assert report(run, cwd=tmp_path) == "script True"


def test_script_name_need_not_be_an_identifier(tmp_path: Path) -> None:
    write(tmp_path / "my-script.py", REPORT)
    assert report("my-script.py", cwd=tmp_path) == "my-script True"


def test_file_in_a_package_has_the_same_name_run_as_a_file_and_as_a_module(tmp_path: Path) -> None:
    write(tmp_path / "pkg" / "__init__.py")
    write(tmp_path / "pkg" / "sub" / "__init__.py")
    write(tmp_path / "pkg" / "sub" / "mod.py", REPORT)
    assert report("pkg/sub/mod.py", cwd=tmp_path) == "pkg.sub.mod True"
    assert report("-m", "pkg.sub.mod", cwd=tmp_path) == "pkg.sub.mod True"


def test_main_of_a_package_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path / "pkg" / "__init__.py")
    write(tmp_path / "pkg" / "__main__.py", REPORT)
    assert report("-m", "pkg", cwd=tmp_path) == "pkg.__main__ True"
    assert report("pkg/__main__.py", cwd=tmp_path) == "pkg.__main__ True"


def test_package_file_that_is_run_can_still_import_its_submodules(tmp_path: Path) -> None:
    write(tmp_path / "pkg" / "__init__.py", REPORT + "import pkg.other\nprint(pkg.other.here)")
    write(tmp_path / "pkg" / "other.py", "here = 'found'")
    assert report("pkg/__init__.py", cwd=tmp_path) == "pkg True\nfound"


def test_what_has_no_file_has_no_name(tmp_path: Path) -> None:
    assert report("-c", REPORT, cwd=tmp_path) == "None False"
    assert report("-", cwd=tmp_path, stdin=REPORT) == "None False"


def test_prompt_of_the_standard_library_has_no_name(tmp_path: Path) -> None:
    done = python(
        "-m", "code", "-q", cwd=tmp_path, stdin="from atasks.modules import main_name\nmain_name() is None\n"
    )
    assert "True" in done.stdout
    assert "False" not in done.stdout


def test_directory_and_file_without_suffix_have_no_name(tmp_path: Path) -> None:
    write(tmp_path / "app" / "__main__.py", REPORT)
    write(tmp_path / "job", REPORT)
    assert report("app", cwd=tmp_path) == "None False"
    assert report("app/__main__.py", cwd=tmp_path) == "None False"
    assert report("job", cwd=tmp_path) == "None False"


def test_script_named_like_a_loaded_module_has_no_name_and_says_so_once(tmp_path: Path) -> None:
    write(tmp_path / "atexit.py", REPORT)  # built in, so it is never shadowed by a script
    done = python("atexit.py", cwd=tmp_path)
    assert done.stdout.strip() == "None False"
    assert done.stderr.count("LOG") == 1
    assert "rename the file" in done.stderr


def test_an_earlier_copy_of_the_same_file_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "if __name__ == '__main__':\n    import script" + REPORT.replace("\n", "\n    "))
    assert report("script.py", cwd=tmp_path) == "script True"


IMPORTED_TWICE = """
import asyncio, sys
import atasks
from atasks import atask

class Refused(Exception):
    pass

class Thing:
    pass

@atask
async def refuse():
    raise Refused("so")

@atask
async def make():
    return Thing()

@atask
async def is_thing(thing):
    return type(thing) is Thing

@atask(executor="process")
def make_elsewhere():
    return Thing()

async def main():
    async with atasks.local(workers=1) if sys.argv[1:] else atasks.serve("loopback:"):
        try:
            await refuse()
        except Refused:
            print("caught")
        print(type(await make()) is Thing, await is_thing(Thing()), type(await make_elsewhere()) is Thing)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("where", [[], ["local"]])
@pytest.mark.parametrize(
    "init",
    ["from pkg.mod import Refused, make", "from . import mod", "import pkg.mod", "from .other import make", ""],
)
def test_a_module_that_its_package_imports_before_it_runs(tmp_path: Path, init: str, where: list[str]) -> None:
    write(tmp_path / "pkg" / "__init__.py", init)
    write(tmp_path / "pkg" / "other.py", "from pkg.mod import make")
    write(tmp_path / "pkg" / "mod.py", IMPORTED_TWICE)
    done = python("-W", "ignore::RuntimeWarning", "-m", "pkg.mod", *where, cwd=tmp_path)
    assert done.stdout.split("\n")[:2] == ["caught", "True True True"], done.stderr


def test_classes_of_a_script_in_a_package_unpickle_by_their_dotted_name(tmp_path: Path) -> None:
    write(tmp_path / "pkg" / "__init__.py")
    body = """
class Thing: pass
import pickle
data = pickle.dumps(Thing(), 0).replace(b"__main__", modules.main_name().encode())
print(type(pickle.loads(data)) is Thing)
"""
    write(tmp_path / "pkg" / "mod.py", REPORT + body)
    assert report("pkg/mod.py", cwd=tmp_path) == "pkg.mod True\nTrue"


def test_spawned_process_resolves_the_script_of_its_parent(tmp_path: Path) -> None:
    body = """
import multiprocessing
from atasks.modules import MAIN_NAMES, main_name
seen = (__name__ in MAIN_NAMES, main_name())
def child(queue): queue.put(seen + (main_name(),))
if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=child, args=(queue,))
    process.start()
    print(queue.get())
    process.join()
"""
    write(tmp_path / "script.py", body)
    assert report("script.py", cwd=tmp_path) == "(True, 'script', 'script')"


# --- the name of a file


@pytest.mark.parametrize(
    ("file", "name", "root"),
    [
        ("a.py", "a", "."),
        ("pkg/__init__.py", "pkg", "."),
        ("pkg/__main__.py", "pkg.__main__", "."),
        ("pkg/mod.py", "pkg.mod", "."),
        ("pkg/../pkg/mod.py", "pkg.mod", "."),
        ("pkg/gap/sub/mod.py", "sub.mod", "pkg/gap"),
        ("v1.2/mod.py", "mod", "v1.2"),
        ("my.script.py", "my_script", "."),
        ("2nd-try.py", "2nd-try", "."),
    ],
)
def test_dotted_name(tmp_path: Path, file: str, name: str, root: str) -> None:
    for package in ("pkg", "pkg/gap/sub", "v1.2"):
        write(tmp_path / package / "__init__.py")
    write(tmp_path / file)
    assert dotted_name(tmp_path / file) == (name, Path(os.path.normpath(tmp_path / root)))


def test_script_behind_a_link_keeps_its_name_and_finds_its_neighbours(here: Path) -> None:
    write(here / "lib" / "real.py", "import neighbour")
    write(here / "lib" / "neighbour.py")
    (here / "bin").mkdir()
    (here / "bin" / "job.py").symlink_to(here / "lib" / "real.py")
    assert load("bin/job.py").__name__ == "job"
    assert "neighbour" in sys.modules


# --- loading


def test_file_and_module_are_the_same(here: Path) -> None:
    write(here / "pkg_one" / "__init__.py")
    write(here / "pkg_one" / "mod.py")
    module = load("pkg_one/mod.py")
    assert module.__name__ == "pkg_one.mod"
    assert load("pkg_one.mod") is module
    assert load(str(here / "pkg_one" / "mod.py")) is module


def test_file_finds_its_neighbours_first(here: Path) -> None:
    write(here / "deep" / "task_file.py", "import beside\nfound = beside.here")
    write(here / "deep" / "beside.py", "here = 1")
    assert load("deep/task_file.py").found == 1
    assert sys.path[0] == str(here / "deep")


def test_module_is_found_in_the_current_directory(here: Path) -> None:
    write(here / "task_module.py")
    assert load("task_module").__file__ == str(here / "task_module.py")


@pytest.mark.parametrize("file", ["my-script.py", "my.script.py", "2nd.py"])
def test_file_of_any_name_loads(here: Path, file: str) -> None:
    write(here / file, "value = 3")
    module = load(file)
    assert module.value == 3
    assert module.__name__ == dotted_name(here / file)[0]
    assert sys.modules[module.__name__] is module
    assert load(file) is module


def test_installed_package_loads(here: Path) -> None:
    assert load("json.tool") is sys.modules["json.tool"]


def refusal(target: str) -> str:
    with pytest.raises(LoadError) as caught:
        load(target)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_file_names_close_ones(here: Path) -> None:
    write(here / "dir" / "worker.py")
    assert refusal("dir/workr.py") == "no such file: dir/workr.py; did you mean dir/worker.py?"
    assert refusal("dir/worker") == "no such file: dir/worker; did you mean dir/worker.py?"
    assert refusal("dir.worker.py") == "no such file: dir.worker.py; did you mean dir/worker.py?"
    assert "no directory nowhere" in refusal("nowhere/worker.py")
    assert "give a Python file or a module name" in refusal("zzzzzz.py")


def test_missing_module_names_close_ones(here: Path) -> None:
    write(here / "pkg_two" / "__init__.py")
    write(here / "pkg_two" / "worker.py")
    assert refusal("pkg_too") == "no such module: pkg_too; did you mean pkg_two?"
    assert refusal("pkg_two.workr") == "no such module: pkg_two.workr; did you mean pkg_two.worker?"
    assert refusal("pkg_two.worker.add") == (
        "no such module: pkg_two.worker.add; pkg_two.worker is a module, not a package: give pkg_two.worker"
    )
    assert sys.prefix in refusal("zzzzzz")


@pytest.mark.parametrize("target", ["", ".", "..mod", "a..b", "__main__"])
def test_what_is_no_module_name(here: Path, target: str) -> None:
    assert refusal(target).startswith("not a module name")


def test_missing_import_inside_a_module_is_told_from_a_missing_module(here: Path) -> None:
    write(here / "importer.py", "\nimport no_such_library\n")
    expected = "cannot import importer: ModuleNotFoundError: No module named 'no_such_library' (importer.py:2)"
    assert refusal("importer") == expected
    assert refusal("importer.py") == expected.replace("import importer", "import importer.py")


def test_module_that_raises_names_the_line_of_the_users_code(here: Path) -> None:
    write(here / "failing.py", "import failing_helper\n")
    write(here / "failing_helper.py", "import json\n\njson.loads('{')\n")
    message = refusal("failing.py")
    assert message.startswith("cannot import failing.py: JSONDecodeError: ")
    assert message.endswith(" (failing_helper.py:3)")
    with pytest.raises(LoadError) as caught:
        load("failing.py")
    assert type(caught.value.__cause__).__name__ == "JSONDecodeError"


def test_message_of_several_lines_becomes_one(here: Path) -> None:
    write(here / "wordy.py", "raise ValueError('one\\ntwo\\n  three')")
    assert refusal("wordy.py") == "cannot import wordy.py: ValueError: one two three (wordy.py:1)"


def test_syntax_error_names_its_line(here: Path) -> None:
    write(here / "broken_syntax.py", "\n\ndef (:\n")
    message = refusal("broken_syntax.py")
    assert message.startswith("cannot import broken_syntax.py: SyntaxError: ")
    assert message.endswith(" (broken_syntax.py:3)")


def test_package_that_fails_is_the_reason(here: Path) -> None:
    write(here / "pkg_bad" / "__init__.py", "1/0")
    write(here / "pkg_bad" / "mod.py")
    assert refusal("pkg_bad/mod.py") == (
        "cannot import pkg_bad/mod.py: ZeroDivisionError: division by zero (pkg_bad/__init__.py:1)"
    )


def test_script_that_exits_on_import(here: Path) -> None:
    write(here / "exiting.py", "import sys\nsys.exit(0)")
    message = refusal("exiting.py")
    assert message.startswith("exiting.py ends the program when it is imported (exiting.py:2): ")
    assert "__main__" in message


def test_keyboard_interrupt_is_not_a_load_error(here: Path) -> None:
    write(here / "interrupted.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load("interrupted.py")


def test_failed_file_can_be_loaded_again(here: Path) -> None:
    path = write(here / "fails.once.py", "raise ValueError")
    assert refusal("fails.once.py").startswith("cannot import fails.once.py: ValueError")
    path.write_text("value = 'fixed now'")
    assert load("fails.once.py").value == "fixed now"


def test_file_without_suffix(here: Path) -> None:
    write(here / "plain_file")
    write(here / "notes.txt")
    assert refusal("plain_file") == "plain_file is not a Python file by its name: rename it to plain_file.py"
    assert refusal("./notes.txt") == "notes.txt is not a Python file by its name: rename it to notes.txt.py"


def test_directories(here: Path) -> None:
    write(here / "pkg_three" / "__init__.py")
    write(here / "pkg_three" / "__main__.py")
    write(here / "loose" / "one.py")
    (here / "empty").mkdir()
    assert refusal("./pkg_three/") == (
        "pkg_three is a directory: name a file in it: pkg_three/__main__.py or pkg_three/__init__.py"
    )
    assert refusal("./loose") == "loose is a directory: name a file in it: loose/one.py"
    assert refusal("./empty") == "empty is a directory: name a file"
    assert "directory without __init__.py" in refusal("loose")
    assert load("pkg_three").__name__ == "pkg_three"


def test_two_files_of_one_name(here: Path) -> None:
    write(here / "left" / "same_name.py")
    write(here / "right" / "same_name.py")
    write(here / "same_name.py")
    load("left/same_name.py")
    message = refusal("right/same_name.py")
    assert "right/same_name.py would be the module 'same_name', which is already left/same_name.py" in message
    assert "left/same_name.py" in refusal("same_name")


def test_two_packages_of_one_name(here: Path) -> None:
    for side in ("left", "right"):
        write(here / side / "pkg_same" / "__init__.py")
        write(here / side / "pkg_same" / f"{side}.py")
    load("left/pkg_same/left.py")
    assert "already left/pkg_same/__init__.py" in refusal("right/pkg_same/right.py")


def test_file_named_like_a_module_of_the_interpreter(here: Path) -> None:
    write(here / "time.py")
    assert "already a built-in module: rename it" in refusal("time.py")
    assert "already a built-in module: rename it" in refusal("time")


def test_main_outside_of_a_package(here: Path) -> None:
    write(here / "app" / "__main__.py")
    assert "rename the file" in refusal("app/__main__.py")
