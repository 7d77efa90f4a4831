"""Hooks of the site: pages and files from outside of docs/, and drawn diagrams."""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from mermaid import BLOCK, FOLDER, digest, name_of
from tables import stacked

logger = logging.getLogger("mkdocs.hooks.atasks")

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
}
"""Pages outside of docs/ -> their names in the site."""
ELSEWHERE = re.compile(r"""<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)=["'](https?://[^"']*)""")
"""A file of another host that browsers load with a page."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of docs/, and every file that a page links to."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    for page in list(files.documentation_pages()):
        for target in LINK.findall(page.content_string):
            path = _path(target, page.src_uri)
            if not path.startswith("docs/") and path not in OUTSIDE and (ROOT / path).is_file():
                name = f"files/{path}"
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead to what `on_files` has added, and show the picture of each diagram."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it would hold this page alone
    drawn = 0

    def picture(match: re.Match[str]) -> str:
        nonlocal drawn
        drawn += 1
        path = FOLDER / name_of(uri, drawn)
        if not path.is_file() or digest(match[1]) not in path.read_text():
            logger.warning("%s: diagram %d has no picture, or an old one: run `make pictures`", uri, drawn)
        target = posixpath.relpath(f"pictures/{path.name}", posixpath.dirname(uri) or ".")
        return f"[![diagram]({target}){{.diagram}}]({target})"

    def moved(match: re.Match[str]) -> str:
        path = _path(match[1], uri)
        inside = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")
        return posixpath.relpath(inside, posixpath.dirname(uri) or ".")

    return BLOCK.sub(picture, LINK.sub(moved, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Have a phone show tables of words row by row."""
    return stacked(content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse what browsers would load from other hosts."""
    for url in ELSEWHERE.findall(output):
        logger.warning("%s loads %s: the site asks no other host", page.file.src_uri, url)
    return output


def _path(target: str, uri: str) -> str:
    """The path of a link's target in the repository."""
    outside = {name: source for source, name in OUTSIDE.items()}
    source = outside.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
