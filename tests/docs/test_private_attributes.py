"""A test that looks inside of the package says so at its top: which private attributes, and why."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

FOREIGN = {"_fields", "_asdict", "_replace", "_exit"}
"""Attributes with such names that are public, by the documentation of Python."""


def attributes(tree: ast.Module) -> set[str]:
    """The private attributes that a file reads of other objects, and does not define itself."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    read, mine = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            owner = node.value
            name = owner.func.id if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) else ""
            if name == "super" or (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                mine.add(node.attr)
            else:
                read.add(node.attr)
    return read - mine - own - FOREIGN


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: file.name)
def test_private_attributes_are_named_at_the_top(file: Path) -> None:
    text = file.read_text()
    top, _, code = text.partition("\nfrom ")
    note = " ".join(re.findall(r"^#(?: (.*))?$", top, re.MULTILINE)).partition("Private attributes: ")[2]
    named, read = set(re.findall(r"\b_[a-z]\w*", note)), attributes(ast.parse(text))
    assert read <= named, f"say at the top why it reads {sorted(read - named)}"
    assert named <= set(re.findall(r"\w+", code)), "the note names what is not read any more"
