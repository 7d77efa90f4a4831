"""The pages of the documentation, and the blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "Page", "table"]

ROOT = Path(__file__).parent.parent.parent

FENCE = re.compile(r"^(```+)(.*)$")
FILE = re.compile(r"# ([\w./-]+\.py)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """The number of the first line of text."""
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the reader is told to create: a Python block whose first line is `# name.py`."""
        match = FILE.match(self.text.split("\n", 1)[0])
        return match[1] if match and self.language == "python" else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Page:
    """A Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        """The fenced blocks of the page, in order."""
        return list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        language, start, lines, fence = "", 0, [], ""
        for number, line in enumerate(self.text.split("\n"), 1):
            match = FENCE.match(line)
            if fence:
                if line == fence:
                    yield Block(self.name, start, language, "\n".join(lines) + "\n")
                    fence = ""
                else:
                    lines.append(line)
            elif match:
                fence, language, start, lines = match[1], match[2], number + 1, []
        assert not fence, f"{self.name}:{start}: this block does not end"

    @cached_property
    def prose(self) -> str:
        """The text without its blocks."""
        outside, fence = [], ""
        for line in self.text.split("\n"):
            match = FENCE.match(line)
            if fence:
                fence = "" if line == fence else fence
            elif match:
                fence = match[1]
            else:
                outside.append(line)
        return "\n".join(outside)

    @cached_property
    def anchors(self) -> set[str]:
        """The texts that a link may have after the `#`: the page's headings, spelled as GitHub does."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def section(self, heading: str) -> str:
        """The text below a heading, up to the next heading of that level or above."""
        level = heading.split(" ", 1)[0]
        _, found, rest = f"\n{self.text}".partition(f"\n{heading}\n")
        assert found, f"{self.name} has no heading {heading!r}"
        return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """The rows of the first table in the text, without its heading; cells without backticks."""
    rows: list[list[str]] = []
    for line in text.split("\n"):
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            rows.append([cell.strip().replace("`", "") for cell in cells])
        elif rows:
            break
    return rows[2:]


PAGES = [Page(ROOT / "README.md"), *map(Page, sorted((ROOT / "docs").rglob("*.md")))]
