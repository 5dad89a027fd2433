"""The documentation keeps to short sentences, names options that exist, and has no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from shape import ROOT, sentences

from sam_bench.cli.main import cli

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MEAN, LONGEST, README = 20, 40, 1000
OTHERS = {
    # torchrun's, pip's and make's
    "--nproc-per-node",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    found = sentences(page.read_text(encoding="utf-8"))
    words = [len(each.split()) for each in found]
    long = [each for each, count in zip(found, words, strict=True) if count > LONGEST]
    assert not long, "\n".join(long)
    assert sum(words) <= MEAN * len(words)


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            assert heading in _anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_are_those_of_a_command(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    written = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    unknown = written - _options(cli) - OTHERS
    assert not {option for option in unknown if f'"--{option.removeprefix("--").removeprefix("no-")}"' not in scripts}


def _options(command: click.Command) -> set[str]:
    """Every option of a command and of those below it."""
    context = click.Context(command)
    found = {each for option in command.get_params(context) for each in (*option.opts, *option.secondary_opts)}
    for name in command.list_commands(context) if isinstance(command, click.Group) else []:
        below = command.get_command(context, name)
        assert below is not None
        found |= _options(below)
    return found


def _anchors(text: str) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
