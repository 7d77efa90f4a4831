"""The site has every page and every public name, and its pictures are those of the diagrams."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

import atasks
import atasks.errors
import atasks.logging
import atasks.pipeline
import atasks.testing
import atasks.tracking
from atasks.contrib import faults, opentelemetry, prometheus
from atasks.contrib.django import testing as django_testing
from atasks.transport.whereabouts import Whereabouts
from tests.docs.pages import PAGES, ROOT
from tests.docs.test_docs import resolve

REFERENCE = [page for page in PAGES if page.name.startswith("docs/reference/")]
DIRECTIVE = re.compile(r"^::: ([\w.]+)$(?:\n    options:\n      members: (.*))?", re.MULTILINE)
DESCRIBED = {name: members for page in REFERENCE for name, members in DIRECTIVE.findall(page.text)}
"""The objects that the reference describes, and the members that it shows, if not all."""
ROOMS = [
    atasks,
    atasks.logging,
    atasks.pipeline,
    atasks.testing,
    atasks.tracking,
    django_testing,
    faults,
    opentelemetry,
    prometheus,
]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_the_reference_has_every_public_name(room: ModuleType) -> None:
    errors = (getattr(atasks, name) for name in atasks.errors.__all__)
    objects = {id(thing) for thing in (*map(resolve, DESCRIBED), *errors)}
    constants = {"BOUNDS", "PATIENCE"}  # numbers, which the texts of others name
    assert [
        name for name in room.__all__ if id(getattr(room, name)) not in objects and name not in constants
    ] == []


def members(thing: Any, shown: str) -> dict[str, Any]:
    """The public functions and properties that the reference shows of a class."""
    found = {
        name: member
        for name, member in vars(thing).items()
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
    }
    if shown in ("", "false"):
        return found if not shown else {}
    names = shown.strip("[]").split(", ")
    assert [name for name in names if not hasattr(thing, name)] == []
    return {name: member for name, member in found.items() if name in names}


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_the_reference_describes_has_docstrings(name: str) -> None:
    thing: Any = resolve(name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        silent = [each for each in members(thing, DESCRIBED[name]) if not inspect.getdoc(getattr(thing, each))]
        assert silent == []


def test_the_navigation_has_every_page_once() -> None:
    config = (ROOT / "scripts/site/mkdocs.yml").read_text()
    listed = re.findall(r"([\w/-]+\.md)$", config.partition("\nnav:\n")[2], re.MULTILINE)
    outside = {"start.md", "contributing.md", "changelog.md", "reporting.md"}
    pages = {page.name.removeprefix("docs/") for page in PAGES if page.name.startswith("docs/")}
    assert len(listed) == len(set(listed))
    assert set(listed) - outside == pages, "`nav` in scripts/site/mkdocs.yml and docs/ have other pages"


def script(name: str) -> ModuleType:
    """A module of scripts/site."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/site/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_phone_shows_tables_of_words_row_by_row_and_tables_of_numbers_as_they_are() -> None:
    stacked = script("tables").stacked
    words = "it says <code>why</code> & what to do about it, at some length"
    table = (
        "<table><tr><th>{}</th><th></th><th>x &amp; y</th></tr><tr><td>{}</td><td>a</td><td>{}</td></tr></table>"
    )
    numbers = table.format("a", "1", "2") + '<table class="other"><td>' + words + "</td></table>"
    assert stacked(numbers) == numbers
    assert stacked(f"<p>{table.format('<b>error</b>', 'one', words)}</p>") == (
        "<p><table data-stacked><tr><th><b>error</b></th><th></th><th>x &amp; y</th></tr>"
        f'<tr><td data-label="error">one</td><td>a</td><td data-label="x &amp; y">{words}</td></tr></table></p>'
    )


def test_pictures_are_drawn_from_the_diagrams_of_today() -> None:
    mermaid = script("mermaid")
    wanted = {
        mermaid.name_of(page.name.removeprefix("docs/"), number): mermaid.digest(text)
        for page in PAGES
        for number, text in enumerate(mermaid.blocks(page.text), 1)
    }
    drawn = {path.name: path.read_text() for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert set(drawn) == set(wanted), "run `make pictures`"
    assert [name for name, digest in wanted.items() if digest not in drawn[name]] == [], "run `make pictures`"


def diagrams(name: str) -> list[str]:
    """The texts of a page's diagrams."""
    (page,) = [page for page in PAGES if page.name == name]
    return [block.text for block in page.blocks if block.language == "mermaid"]


def test_tests_that_diagrams_name_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"\btest_\w+", "\n".join(text for page in PAGES for text in diagrams(page.name))))
    assert len(named) >= 3
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_states_of_a_call_are_those_of_a_timeout() -> None:
    states = set(re.findall(r"^ *(\w+) -->", diagrams("docs/how-a-call-travels.md")[1], re.MULTILINE))
    hints = get_args(get_type_hints(Whereabouts)["waits_for"])
    assert states - {"parked"} == {value for hint in hints for value in get_args(hint)}


def test_the_rooms_stand_as_the_import_contract_says() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["name"].startswith("The rooms of the house"))
    heights = {
        name.strip().removeprefix("atasks."): height
        for height, layer in enumerate(layers)
        for name in layer.split("|")
    }
    text = diagrams("docs/architecture.md")[1]
    rooms: dict[str, list[int]] = {}
    for key, label in re.findall(r'(\w+)\["([^"]+)"\]', text):
        rooms[key] = [heights[name] for name in re.findall(r"(\w+)(?:/|\.py)", label)]
    edges = re.findall(r"^ *(\w+)(?:\[[^\]]*\])? --> (\w+)", text, re.MULTILINE)
    assert len(edges) > 8
    assert [edge for edge in edges if max(rooms[edge[0]]) >= min(rooms[edge[1]])] == []
