"""Draw the mermaid blocks of docs/ as pictures in docs/pictures, which the site shows: `make pictures`.

Readers' browsers then need neither a script nor another host. Each picture holds the digest of its block, and
`make docs` fails for one that is older than its block. Takes the path of mermaid.min.js.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys

from mermaid import FOLDER, blocks, digest, name_of
from playwright.async_api import async_playwright

PAGE = "<!doctype html><body></body>"
DRAW = """async text => {
    mermaid.initialize({startOnLoad: false, theme: "neutral", htmlLabels: false,
                        flowchart: {htmlLabels: false, wrappingWidth: 420},
                        fontFamily: "system-ui, sans-serif", securityLevel: "strict"});
    return (await mermaid.render("picture", text)).svg;
}"""


async def main(script: str) -> None:
    """Draw what has no picture, or an old one; remove pictures that no block has."""
    wanted = {}
    for page in sorted(FOLDER.parent.rglob("*.md")):
        for number, text in enumerate(blocks(page.read_text()), 1):
            wanted[name_of(page.relative_to(FOLDER.parent).as_posix(), number)] = text
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.svg"):
        if path.name not in wanted:
            path.unlink()
    found = shutil.which("chromium") or shutil.which("google-chrome")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for name, text in wanted.items():
            path = FOLDER / name
            if path.exists() and digest(text) in path.read_text():
                continue
            page = await browser.new_page()
            await page.set_content(PAGE)
            await page.add_script_tag(path=script)
            svg = _sized(await page.evaluate(DRAW, text))
            path.write_text(f"{svg}<!-- {digest(text)} -->\n")
            await page.close()
            print(f"drew {path.relative_to(FOLDER.parents[1])}")
        await browser.close()


def _sized(svg: str) -> str:
    """The picture with the width that its text is made for; pages shrink it where they are narrower."""
    width = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+)', svg)
    assert width is not None
    return svg.replace('width="100%"', f'width="{float(width[1]):.0f}"', 1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
