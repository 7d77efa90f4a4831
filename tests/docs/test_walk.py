"""The walk of docs/architecture.md is the way that a call really takes, and its glossary lacks no class."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import atasks
from atasks import atask
from tests.docs.pages import PAGES, ROOT

PAGE = next(page for page in PAGES if page.name == "docs/architecture.md")
PACKAGE = Path(atasks.__file__).parent


@atask(namespace="tests-walk")
async def add(a: int, b: int) -> int:
    return a + b


async def called() -> list[tuple[str, str]]:
    """The functions of the package that one await over the loopback runs, in their order, with their files."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found.append((frame.f_code.co_qualname, path.relative_to(PACKAGE).as_posix()))

    async with atasks.connect("loopback:", namespace="tests-walk"):
        await add(1, 2)
        sys.setprofile(note)
        try:
            assert await add(1, 2) == 3
        finally:
            sys.setprofile(None)
    return found


def steps(title: str) -> list[tuple[str, str]]:
    """The functions and files that a walk names, in its order."""
    rows = [
        re.findall(r"`([^`]+)`", line) for line in PAGE.section(title).splitlines() if re.match(r"\| \d", line)
    ]
    return [(row[0], row[1]) for row in rows]


def test_the_walk_is_the_way_of_a_call() -> None:
    way = iter(asyncio.run(called()))
    walk = steps("## One await, there and back")
    assert len(walk) > 15
    missing = [step for step in walk if step not in way]  # `in` goes on behind the step before
    assert not missing, f"not called, or not in this order: {missing[0]}"


def test_the_detour_names_functions_that_exist() -> None:
    detour = steps("## The same await over RabbitMQ")
    assert len(detour) > 9
    for name, file in detour:
        *owner, function = name.split(".")
        source = ast.parse((PACKAGE / "transport/backends/amqp" / file).read_text())
        classes = [node for node in source.body if isinstance(node, ast.ClassDef) and [node.name] == owner]
        assert function in {getattr(node, "name", "") for node in classes[0].body}, f"{file} has no {name}"


def test_members_that_the_page_names_exist() -> None:
    """`Worker.cancel` is a method or an attribute of a class `Worker`, or of a class that it derives from."""
    classes: dict[str, list[str]] = {}
    for room in ("atasks", "atasks_cli"):
        for file in (ROOT / room).rglob("*.py"):
            text = file.read_text()
            lines = text.splitlines()
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                    classes.setdefault(node.name, []).append(source)
    missing = []
    for name, member in set(re.findall(r"`([A-Z]\w+)\.(\w+)", PAGE.prose)):
        sources = classes.get(name, [])
        bases = [base for source in sources for base in re.findall(r"\w+", source.partition(":")[0])]
        sources = [*sources, *(source for base in bases for source in classes.get(base, []))]
        if not re.search(rf"\b{member}\b", "\n".join(sources)):
            missing.append(f"{name}.{member}")
    assert not missing, missing


def test_every_class_is_explained() -> None:
    """On this page, or, if programs import it or are given it, on any page."""
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGE.prose))))
    public = set(re.findall(r"\w+", " ".join(file.read_text() for file in PACKAGE.glob("**/__init__.py"))))
    listed = {"messages.py", "queries.py", "blueprint.py", "wire.py", "errors.py"}  # a file of these is a list
    unexplained = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.name not in listed and file.relative_to(PACKAGE).parts[0] not in ("testing", "contrib", "web")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        and not re.match(r"_|State$|\w+(Options|OptionsDict|Decorator)$", node.name)
        and node.name not in named | public
    ]
    assert not unexplained, unexplained
