"""The annotations of public names: everything that they name is there, also for who reads them at run time."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PUBLIC = (
    "atasks",
    "atasks.codecs",
    "atasks.errors",
    "atasks.options",
    "atasks.pipeline",
    "atasks.registry",
    "atasks.router",
    "atasks.supervisor",
    "atasks.transport.backends.amqp",
    "atasks.transport.backends.local",
    "atasks.transport.base",
)


@cache
def _checked(module: ModuleType) -> dict[str, Any]:
    """The names of a module as type checkers see them: with those that are imported for them alone."""
    names = dict(vars(module))
    tree = ast.parse(Path(module.__file__ or "").read_text())
    for block in tree.body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for node in block.body:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                source = importlib.import_module(node.module)
                for alias in node.names:
                    try:
                        found = getattr(source, alias.name)
                    except AttributeError:
                        found = _checked(source)[alias.name]
                    names[alias.asname or alias.name] = found
            else:
                exec(compile(ast.Module([node], []), str(module.__file__), "exec"), names)
    return names


def _public() -> Iterator[tuple[str, Any]]:
    for name in PUBLIC:
        module = importlib.import_module(name)
        for item in module.__all__:
            found = getattr(module, item)
            if inspect.isclass(found) or inspect.isfunction(found):
                yield f"{name}.{item}", found


def _annotated(item: Any) -> Iterator[Any]:
    """A function; a class with its methods and properties."""
    yield item
    for member in vars(item).values() if inspect.isclass(item) else ():
        if isinstance(member, (classmethod, staticmethod)):
            yield member.__func__
        elif isinstance(member, property):
            yield member.fget
        elif inspect.isfunction(member):
            yield member


@pytest.mark.parametrize("item", [pytest.param(item, id=name) for name, item in _public()])
def test_every_name_in_an_annotation_is_there(item: Any) -> None:
    """Though not always in the module: a program would wait at its start for all that its annotations name."""
    for found in _annotated(item):
        homes = [found.__module__, *(base.__module__ for base in getattr(found, "__mro__", ()))]
        names: dict[str, Any] = {}
        for home in homes:
            if home.startswith("atasks"):
                names = _checked(sys.modules[home]) | names
        typing.get_type_hints(found, localns=names)
