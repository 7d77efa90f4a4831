"""`scripts/venv.sh`: when it installs, and by whom, with a pip and a uv that only say what they were asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = """
[project]
dependencies = ["click"]
"""
PYTHON = """#!/bin/sh
case "$*" in *" install "*)
    echo "$*" >>"$LOG"
    case "$*" in $BROKEN) exit 1; esac
esac
"""


class Checkout:
    """A checkout with the script, and a virtual environment whose Python is made of a few lines."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "pyproject.toml"
        self.project.write_text(PROJECT)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)
        self._folder = folder
        self._log = folder / "log"

    def set_up(self, *extras: str, broken: str = "") -> tuple[int, list[str]]:
        """The exit code of the script, and which extras it has installed. `broken`: a pattern of the shell for the
        installations that fail."""
        code, installed = self.install(*extras, broken=broken)
        return code, [what for _, what in installed if what != "uv"]

    def install(self, *extras: str, broken: str = "") -> tuple[int, list[tuple[str, str]]]:
        """The exit code of the script, and who has been asked to install what."""
        self._log.write_text("")
        environ = {key: value for key, value in os.environ.items() if key not in ("VENV", "PYTHON")}
        done = subprocess.run(
            [self._folder / "scripts" / "venv.sh", *extras],
            env={**environ, "LOG": str(self._log), "BROKEN": broken},
            capture_output=True,
            check=False,
        )
        words = [line.split() for line in self._log.read_text().splitlines()]
        return done.returncode, [(each[1], each[-1]) for each in words]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_it_installs_once(checkout: Checkout) -> None:
    assert checkout.set_up("test", "lint") == (0, [".[test,lint]"])
    assert checkout.set_up("test", "lint") == (0, [])
    assert checkout.set_up("test") == (0, [])


def test_it_installs_what_is_asked_for_beside_what_is_there(checkout: Checkout) -> None:
    assert checkout.set_up("test") == (0, [".[test]"])
    assert checkout.set_up("test", "lint") == (0, [".[lint]"])
    assert checkout.set_up("lint", "test") == (0, [])


def test_a_dependency_that_was_added_is_installed(checkout: Checkout) -> None:
    """Each extra is installed again when it is asked for next: the dependency may be of any of them."""
    checkout.set_up("test", "lint")
    checkout.project.write_text(PROJECT.replace('"click"', '"click", "msgspec"'))
    assert checkout.set_up("test") == (0, [".[test]"])
    assert checkout.set_up("test") == (0, [])
    assert checkout.set_up("test", "lint") == (0, [".[lint]"])
    checkout.project.write_text(PROJECT)
    assert checkout.set_up("test", "lint") == (0, [".[test,lint]"])


def test_an_installation_that_failed_is_tried_again(checkout: Checkout) -> None:
    checkout.set_up("test")
    checkout.project.write_text(PROJECT.replace("click", "msgspec"))
    assert checkout.set_up("test", broken="*") == (1, [".[test]"])
    assert checkout.set_up("test") == (0, [".[test]"])
    assert checkout.set_up("test") == (0, [])


def test_the_package_alone_is_installed_once_and_comes_with_every_extra(checkout: Checkout) -> None:
    assert checkout.set_up() == (0, ["."])
    assert checkout.set_up() == (0, [])
    assert checkout.set_up("test") == (0, [".[test]"])
    assert checkout.set_up() == (0, [])


def test_the_package_alone_is_not_installed_beside_an_extra(checkout: Checkout) -> None:
    assert checkout.set_up("test") == (0, [".[test]"])
    assert checkout.set_up() == (0, [])


def test_uv_installs_and_pip_where_it_cannot(checkout: Checkout) -> None:
    uv, by_uv, by_pip = ("pip", "uv"), ("uv", ".[test]"), ("pip", ".[test]")
    assert checkout.install("test", broken="*") == (1, [uv, by_pip])
    assert checkout.install("test", broken="* uv") == (0, [uv, by_pip])
    checkout.project.write_text(PROJECT.replace("click", "msgspec"))
    assert checkout.install("test", broken="-m uv *") == (0, [uv, by_uv, by_pip])
    checkout.project.write_text(PROJECT)
    assert checkout.install("test") == (0, [uv, by_uv])
