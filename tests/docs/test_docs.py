"""The documentation does what it says.

Every Python block and every command of every page is run, in the order of the page, in a directory of its own and
against a broker; links lead somewhere; tests, files and names that are mentioned exist; tables list what there is.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import get_args

import click
import pytest

import atasks
from atasks import errors, pipeline, wire
from atasks.failures import failures
from atasks.options import TaskOptions
from atasks.pipeline.stages.options import StageOptions
from atasks_cli.exits import Exit
from atasks_cli.main import run_command
from tests.docs.pages import PAGES, ROOT, Page, table
from tests.docs.reader import DATABASE, NOT_RUN, URL, Reader

LANGUAGES = {"python", "console", "mermaid", "text"}

COMES_WITH_ATASKS = {"atasks"} | {
    re.split(r"\W", line.replace("-", "_"), maxsplit=1)[0].replace("_", "-")
    for line in requires("atasks") or ()
    if "extra ==" not in line
}

cached_distributions = cache(packages_distributions)

SUPPLIER = {"asgiref": "django", "opentelemetry": "opentelemetry-sdk"}
"""Modules, and the package that a reader installs for them: one that depends on what has them."""

BY_NAME = {page.name: page for page in PAGES}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def needs_broker(page: Page) -> bool:
    """True if the page connects to a broker, or runs workers or clients, which do."""
    return any(
        URL.search(block.text) or "--mode" in block.text
        for block in page.blocks
        if block.language in ("python", "console")
    )


@pytest.fixture
def reader(page: Page, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Reader]:
    url = None
    if needs_broker(page):
        broker = request.getfixturevalue("broker")
        url = broker.add_vhost() if broker.controllable else broker.url  # pages use the default names of queues
    database = None
    if any(DATABASE in block.text for block in page.blocks):
        database = request.getfixturevalue("postgres_url")
    reader = Reader(tmp_path, url, database)
    yield reader
    reader.kill()
    if url is not None and broker.controllable:
        broker.remove_vhost(url)


@each_page
def test_what_the_page_shows_works(page: Page, reader: Reader) -> None:
    for block in page.blocks:
        reader.follow(block)
    reader.close()


@each_page
def test_blocks_are_of_a_known_language(page: Page) -> None:
    assert {block.language for block in page.blocks} <= LANGUAGES
    assert not re.search(r"^\s+```|^~~~", page.prose, re.MULTILINE), "a block that begins inside a line is not run"


def test_commands_that_are_not_run_are_mentioned() -> None:
    text = "\n".join(block.text for page in PAGES for block in page.blocks if block.language == "console")
    assert [command for command in NOT_RUN if f"$ {command}\n" not in text] == []


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.path.parent / file).resolve() if file else page.path
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in BY_NAME[path.relative_to(ROOT).as_posix()].anchors, f"{page.name} links to {target}"


def needed_packages(page: Page) -> set[str]:
    """The distributions that its Python blocks import, besides those that come with atasks."""
    imported: set[str] = set()
    for block in page.blocks:
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.Import):
                    imported.update(alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    imported.add(node.module)
    distributions = cached_distributions()
    needed = {
        SUPPLIER.get(name, distributions[name][0].replace("_", "-").lower())
        for name in (module.split(".")[0] for module in imported)
        if name in distributions
    }
    return needed - COMES_WITH_ATASKS


@each_page
def test_packages_that_a_page_imports_are_installed_by_it(page: Page) -> None:
    installed = set(re.split(r"[\s\[\],\"]+", " ".join(re.findall(r"pip install ([^`#\n]+)", page.text))))
    assert needed_packages(page) <= installed


def test_every_page_is_reached_from_the_readme() -> None:
    found = {
        (page.path.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([\w./-]+\.md)", page.prose)
    }
    assert {page.path for page in PAGES} - found <= {ROOT / "README.md"}


@each_page
def test_files_that_are_mentioned_exist(page: Page) -> None:
    for name in re.findall(
        r"`((?:atasks|atasks_cli|tests|docs|scenarios|scripts|benchmarks)/[\w./-]*)[`:]", page.text
    ):
        assert (ROOT / name).exists(), f"{page.name} mentions {name}"


@each_page
def test_tests_that_are_mentioned_exist(page: Page) -> None:
    for file, name in re.findall(r"`([\w/]+\.py)::([\w:]+)`", page.text):
        body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
        for part in name.split("::"):
            found = [item for item in body if getattr(item, "name", None) == part]
            assert found, f"{page.name} mentions {file}::{name}"
            body = getattr(found[0], "body", [])


def test_every_promise_of_delivery_names_its_test() -> None:
    page = BY_NAME["docs/delivery.md"]
    promises = re.findall(r"^- .*(?:\n  .*)*", page.prose, re.MULTILINE)
    assert len(promises) > 30
    assert [promise for promise in promises if "::test_" not in promise] == []


@each_page
def test_names_that_are_mentioned_exist(page: Page) -> None:
    for name in re.findall(r"`(atasks(?:\.\w+)+)[`(]", page.prose):
        resolve(name)


def resolve(name: str) -> object:
    """Return the object that a dotted name leads to; an error if it leads nowhere."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def test_diagrams_name_functions_that_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "atasks").rglob("*.py"))
    diagrams = "\n".join(
        block.text for block in BY_NAME["docs/architecture.md"].blocks if block.language == "mermaid"
    )
    names = set(re.findall(r"(\w+)\(", diagrams))
    assert len(names) > 10
    assert [name for name in names if f"def {name}(" not in source] == []


def test_module_map_is_complete() -> None:
    listed = {row[0] for row in table(BY_NAME["docs/architecture.md"].section("## Modules"))}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "atasks").rglob("*.py")}
    packages = {
        "atasks/contrib/django/",
        "atasks/pipeline/",
        "atasks/testing/",
        "atasks/transport/backends/amqp/",
        "atasks/transport/backends/local/",
    }
    small = {name for name in modules if name.endswith(("__init__.py", "__main__.py"))}
    unlisted = {name for name in modules - small - listed if not name.startswith(tuple(packages & listed))}
    assert unlisted == set()
    assert packages <= listed


@pytest.mark.parametrize(
    ("folder", "title"),
    [
        ("transport/backends/amqp", "The AMQP transport"),
        ("transport/backends/local", "The local transport"),
        ("pipeline", "Pipelines"),
    ],
)
def test_map_of_a_package_is_complete(folder: str, title: str) -> None:
    listed = {row[0] for row in table(BY_NAME["docs/architecture.md"].section(f"### {title}"))}
    package = ROOT / "atasks" / folder
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert listed == {name for name in modules if not name.endswith("__init__.py")}


@pytest.mark.parametrize(
    "envelope",
    [*get_args(wire.Envelope), wire.Ending, failures.Node],
    ids=lambda envelope: envelope.__name__,
)
def test_fields_on_the_wire(envelope: type) -> None:
    rows = table(BY_NAME["docs/wire.md"].section(f"### {envelope.__name__}"))
    config = envelope.__struct_config__  # type: ignore[attr-defined]
    fields = list(envelope.__struct_fields__)  # type: ignore[attr-defined]
    if config.tag is not None:
        fields.insert(0, "tag")
        assert rows[0][2].startswith(f"{config.tag}:")
    assert [row[1] for row in rows] == fields
    assert [row[0] for row in rows] == [str(number) for number in range(len(fields))]


def test_statuses_on_the_wire() -> None:
    rows = table(BY_NAME["docs/wire.md"].section("### Statuses"))
    assert {row[1]: int(row[0]) for row in rows} == {
        name: value for name, value in vars(wire.Status).items() if name.isupper()
    }


def test_functions_and_options_of_pipelines_are_described() -> None:
    page = BY_NAME["docs/pipelines-reference.md"]
    described = {row[0].split("(")[0] for row in table(page.section("## Functions"))}
    functions = {name for name in pipeline.__all__ if name.islower()}
    assert described == functions
    rows = table(page.section("## Options of a stage"))
    defaults = {field.name: field.default for field in dataclasses.fields(StageOptions)}
    assert [row[0] for row in rows] == list(defaults)
    assert {row[0]: ast.literal_eval(row[1].split(";")[0]) for row in rows} == defaults


def test_table_of_options() -> None:
    rows = table(BY_NAME["README.md"].section("## Options"))
    internal = ("extra", "viewer")
    defaults = {
        field.name: field.default for field in dataclasses.fields(TaskOptions) if field.name not in internal
    }
    assert {row[0]: ast.literal_eval(row[1]) for row in rows if row[0] not in ("name", "namespace")} == defaults


def test_every_error_is_described() -> None:
    rows = table(BY_NAME["docs/errors.md"].section("## All errors"))
    assert sorted(row[0] for row in rows) == sorted(errors.__all__)
    for name, *_ in rows:
        assert hasattr(atasks, name)


def test_every_option_of_the_command_is_described() -> None:
    rows = table(BY_NAME["docs/cli.md"].section("## Options"))
    described = {row[0].split()[0] for row in rows}
    options = [parameter for parameter in run_command.params if isinstance(parameter, click.Option)]
    assert described == {name for option in options for name in option.opts if "-h" not in option.opts}


def test_options_that_are_mentioned_exist() -> None:
    """Options of our commands and programs, but for those of `others`, which are of other programs."""
    others = {"--strict", "--time", "--wait"}
    folders = ("atasks_cli", "atasks/contrib", "benchmarks", "scenarios", "tests/faults", "tests/fuzz")
    sources = [file for folder in folders for file in Path(ROOT, folder).rglob("*.py")]
    known = {option for file in sources for option in re.findall(r'"(--[a-z][a-z-]+)', file.read_text())}
    mentioned = {
        (page.name, option) for page in PAGES for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.text)
    }
    assert len(mentioned) > 100
    assert sorted(each for each in mentioned if each[1] not in known | others) == []


def test_every_exit_code_is_described() -> None:
    rows = table(BY_NAME["docs/cli.md"].section("## Exit codes"))
    assert [int(row[0]) for row in rows] == [code.value for code in Exit]


def test_rows_of_the_comparison_are_those_of_the_measurement() -> None:
    measured = table(BY_NAME["docs/performance.md"].section("## Beside others"))
    figures = {row[0].strip("*"): [cell.strip("*") for cell in row[1:4]] for row in measured}
    rows = table(BY_NAME["docs/comparison.md"].section("## What was measured"))
    assert len(rows) == 10
    assert {row[0]: row[1:] for row in rows} == {row[0]: figures[row[0]] for row in rows}


def test_figures_of_the_first_page_are_those_of_the_measurement() -> None:
    figures = re.findall(
        r"\d[\d .]*\d(?= calls/s| ms| times| KiB)", BY_NAME["docs/index.md"].section("## Five facts")
    )
    assert len(figures) >= 6
    assert [figure for figure in figures if figure not in BY_NAME["docs/performance.md"].text] == []
