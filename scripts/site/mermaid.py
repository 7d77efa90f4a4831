"""The mermaid blocks of pages, and the pictures that belong to them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["BLOCK", "FOLDER", "blocks", "digest", "name_of"]

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(markdown: str) -> list[str]:
    """The mermaid blocks of a page, in order."""
    return BLOCK.findall(markdown)


def name_of(page: str, number: int) -> str:
    """The name of the picture of a page's block, which counts from 1."""
    return f"{page.removesuffix('.md').replace('/', '-')}-{number}.svg"


def digest(text: str) -> str:
    """The words in a picture about the block that it was drawn from."""
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"
