"""docs/troubleshooting.md quotes messages that the code has."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT

PAGE = next(page for page in PAGES if page.name == "docs/troubleshooting.md")
SECTIONS = PAGE.text.partition("\n## It runs,")[0]
QUOTED = re.findall(r"^\| `([^`]+)` \|", SECTIONS, re.MULTILINE)
ANY = "\N{BULLET}"


def texts() -> str:
    """The code with each literal in one piece, and a mark where a message has something that differs."""
    source = "\n".join(
        path.read_text() for folder in ("atasks", "atasks_cli") for path in (ROOT / folder).rglob("*.py")
    )
    whole = re.sub(r"""["'][)\s]*\n\s*(\#.*\n\s*)?[fr]?["']""", "", source)
    return re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}|%(\.\d)?[srdgf]", ANY, whole)


CODE = texts()


def is_said(message: str) -> bool:
    """The code has a text with all parts of the message, in their order and in one line of code."""
    parts = [part for part in message.split("...") if part.strip()]
    pattern = r"[^\n]{0,90}?".join(re.escape(part.strip()) for part in parts)
    return re.search(pattern, CODE) is not None


@pytest.mark.parametrize("message", QUOTED)
def test_messages_that_are_quoted_exist(message: str) -> None:
    assert is_said(message)


def test_a_message_that_nobody_says_is_found() -> None:
    assert len(QUOTED) > 35
    assert not is_said("cannot reach ... because of the weather")
