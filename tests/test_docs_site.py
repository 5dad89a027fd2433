"""The site builds, every link on it leads somewhere, and every command and public name has a place on it."""

from __future__ import annotations

import html.parser
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import sam_bench
from sam_bench import perturb
from sam_bench.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and what can be linked to on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given or (tag == "link" and "href" in given):
            self.loads.append(given.get("src", given.get("href", "")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page by its file; built as `make docs` builds it, which fails on a warning."""
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def test_links_and_anchors_lead_somewhere(site: dict[Path, Page]) -> None:
    dead, followed = [], 0
    for path, page in site.items():
        if path.name == "404.html":
            continue  # it may stand for any address, and so has absolute links
        for link in (*page.links, *page.loads):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            followed += 1
            if not target.exists() or (address.fragment and unquote(address.fragment) not in site[target].anchors):
                dead.append(f"{path.name}: {link}")
    assert not dead and followed > 1000


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert not [each for each in page.loads if urlsplit(each).netloc], path.name


def test_every_command_has_a_place(site: dict[Path, Page]) -> None:
    def check(command: click.Command, words: list[str], page: Page) -> None:
        assert "-".join(words) in page.anchors
        if isinstance(command, click.Group):
            for name, below in command.commands.items():
                check(below, [*words, name], page)

    pages = {path.stem: page for path, page in site.items() if path.parent.name == "commands"}
    context = click.Context(cli)
    assert set(pages) == {"index", *cli.list_commands(context)}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        check(command, ["sam-bench", name], pages[name])
    text = next(path for path in site if path.parent.name == "commands" and path.stem == "train").read_text()
    assert "--rho NUMBER" in text and "Radius of the ascent in weight space" in text


@pytest.mark.parametrize("module", [sam_bench, perturb], ids=lambda module: module.__name__)
def test_every_public_name_has_a_place(site: dict[Path, Page], module: object) -> None:
    name = module.__name__
    page = next(page for path, page in site.items() if path.name == f"{name}.html")
    missing = {each for each in module.__all__ if f"{name}.{each}" not in page.anchors}
    assert not missing


def test_the_keywords_of_the_verbs_are_described(site: dict[Path, Page]) -> None:
    text = next(path for path in site if path.name == "sam_bench.html").read_text(encoding="utf-8")
    assert "Training images held out to watch the run" in text and "<code>fields</code>" not in text


def test_guides_are_in_the_navigation(site: dict[Path, Page]) -> None:
    home = min((path for path in site if path.name == "index.html"), key=lambda path: len(path.parts))
    for guide in (ROOT / "docs").rglob("*.md"):
        assert str(guide.relative_to(ROOT / "docs").with_suffix(".html")) in site[home].links
