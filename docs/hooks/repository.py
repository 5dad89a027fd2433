"""Makes the site of the files as they lie in the repository, whose links work on GitHub.

README becomes the home page. The tutorial's notebook becomes a page with its outputs. A file that a page links to
outside of docs/ comes along: Markdown as a page, anything else as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""Pages of the site that nothing needs to link to."""

_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")

_sources: dict[str, PurePosixPath] = {}
"""A page of the site to its path in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files, and whatever they link to."""
    _sources.clear()
    waiting = [PurePosixPath(name) for name in FIRST]
    for file in list(files):
        path = PurePosixPath("docs", file.src_uri)
        if path.suffix == ".ipynb":
            files.remove(file)
        if path.suffix in (".md", ".ipynb"):
            waiting.append(path)
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        text = _text(path, files, config)
        if text is None:
            continue
        for target in (found[3] for part in _outside_code(text) for found in _LINK.finditer(part)):
            linked = _linked(target, path)
            if linked is not None and linked not in seen:
                seen.add(linked)
                waiting.append(linked)
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the analyses under their names."""
    assert config.nav is not None
    section = next(each["Analyses"] for each in config.nav if "Analyses" in each)
    pages = sorted((Path(config.docs_dir) / "analyses").glob("*.md"))
    section += [{path.stem.capitalize(): f"analyses/{path.name}"} for path in pages]
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links at the site's pages."""
    path = _sources.get(page.file.src_uri)
    if path is None:
        return markdown
    here = PurePosixPath(page.file.src_uri).parent

    def rewritten(found: re.Match[str]) -> str:
        linked = _linked(found[3], path)
        if linked is None:
            return found[0] if _outside(found[3]) or found[3].startswith("#") else found[2]
        _, mark, anchor = found[3].partition("#")
        return f"{found[1]}[{found[2]}]({os.path.relpath(_on_site(linked), here)}{mark}{anchor})"

    return "".join(_LINK.sub(rewritten, part) if plain else part for plain, part in _parts(markdown))


def _text(path: PurePosixPath, files: Files, config: MkDocsConfig) -> str | None:
    """Put a file of the repository on the site; the text of a page, None for any other file."""
    site, source = _on_site(path), ROOT / path
    if path.suffix == ".ipynb":
        text, outputs = MarkdownExporter().from_filename(source, {"output_files_dir": f"{path.stem}_files"})
        for name, content in outputs["outputs"].items():
            files.append(File.generated(config, str(PurePosixPath(site).parent / name), content=content))
        files.append(File.generated(config, site, content=text))
    elif files.get_file_from_path(site) is None:
        files.append(File.generated(config, site, abs_src_path=str(source)))
    if not site.endswith(".md"):
        return None
    _sources[site] = path
    return text if path.suffix == ".ipynb" else source.read_text(encoding="utf-8")


def _on_site(path: PurePosixPath) -> str:
    """Where a file of the repository is on the site."""
    if path == PurePosixPath("README.md"):
        return "index.md"
    inside = path.relative_to("docs") if path.is_relative_to("docs") else path
    return str(inside.with_suffix(".md") if path.suffix == ".ipynb" else inside)


def _linked(target: str, page: PurePosixPath) -> PurePosixPath | None:
    """The file of the repository that a link of a page leads to; None for any other link.

    A folder stands for its README. A folder without one is not on the site.
    """
    name = target.partition("#")[0]
    if not name or _outside(target):
        return None
    path = (ROOT / page.parent / name).resolve()
    if path.is_dir():
        path /= "README.md"
        if not path.exists():
            return None
    return PurePosixPath(path.relative_to(ROOT).as_posix())


def _outside(target: str) -> bool:
    return re.match(r"[a-z]+:", target) is not None


def _parts(markdown: str) -> list[tuple[bool, str]]:
    """The text in order: True with what is plain, False with a fenced block of code."""
    return [(index % 2 == 0, part) for index, part in enumerate(_FENCE.split(markdown))]


def _outside_code(markdown: str) -> list[str]:
    return [part for plain, part in _parts(markdown) if plain]
