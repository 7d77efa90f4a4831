"""The examples in docstrings of public names run, and print what they say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.docs.pages import Block
from tests.docs.reader import Reader
from tests.docs.test_docs import resolve
from tests.docs.test_site import DESCRIBED

EXAMPLE = re.compile(r"^ *```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def examples() -> list[Block]:
    """The examples of what the reference describes, and of its methods."""
    found: list[Block] = []
    for name in DESCRIBED:
        thing: Any = resolve(name)
        methods = vars(thing).values() if inspect.isclass(thing) else ()
        shown = [each for each in methods if inspect.isroutine(each) or isinstance(each, property)]
        for each in (thing, *shown):
            for text in EXAMPLE.findall(inspect.getdoc(each) or ""):
                found.append(Block(name, len(found), "python", dedent(text)))
    return found


def test_examples_of_docstrings(tmp_path: Path) -> None:
    reader = Reader(tmp_path, None)
    blocks = examples()
    assert len(blocks) >= 25
    try:
        for block in blocks:
            reader.follow(block)
        reader.close()
    finally:
        reader.kill()
