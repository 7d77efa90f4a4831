"""Docstrings say who does what: none begins with a word that leaves the reader to find the subject or the verb."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.docs.pages import ROOT

PACKAGES = ("atasks", "atasks_cli", "benchmarks", "scenarios", "scripts", "tests")
RIDDLE = re.compile(r"(What|Whether|Where|How|It|Its|Is to|Are to|As|The same|Who|Whose|Of)\b")
"""The first words of docstrings that must be decoded."""


def notes(source: str) -> Iterator[tuple[int, str]]:
    """Every docstring, and every string below an attribute or a constant, with its line."""
    for node in ast.walk(ast.parse(source)):
        for child in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                text = child.value.value
                if isinstance(text, str):
                    yield child.lineno, text


def riddles(source: str) -> list[str]:
    """`line: text` of those that begin with one of the words."""
    return [f"{line}: {text.strip()}" for line, text in notes(source) if RIDDLE.match(text.strip())]


def sources(package: Path) -> list[Path]:
    """The files of a package, but for those in hidden folders: there the peers of benchmarks are installed."""
    files = sorted(package.rglob("*.py"))
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(package).parts)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_begins_with_a_riddle(package: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{each}"
        for file in sources(Path(ROOT, package))
        for each in riddles(file.read_text())
    ]
    assert not found, "say subject, verb and object:\n" + "\n".join(found)


def test_packages_that_are_installed_are_not_read(tmp_path: Path) -> None:
    for name in ("peers.py", ".envs/peer/lib/site-packages/peer.py", ".venv/code.py", "inner/code.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert sources(tmp_path) == [tmp_path / "inner/code.py", tmp_path / "peers.py"]


def test_every_place_of_a_docstring_is_looked_at() -> None:
    source = '''
        """What it is."""
        LIMIT = 3
        """How many."""

        class Thing:
            """Whether it is."""

            kept: int
            """It is kept."""

            def method(self):
                """The same for a method."""
                self.name = ""
                """Its name."""
    '''
    assert sorted(each.split(":")[0] for each in riddles(dedent(source).lstrip())) == sorted(
        ["1", "3", "6", "9", "12", "14"]
    )


def test_a_sentence_is_no_riddle() -> None:
    source = '"""The Whole: a worker runs calls."""\nLIMIT = 3\n"""Calls per worker. What is over it waits."""\n'
    assert riddles(source) == []
