"""The report: one Markdown text from the numbers, and the same text as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from sam_bench.records import write_atomic
from sam_bench.studies import figures
from sam_bench.studies.jobs import Study
from sam_bench.studies.numbers import Json, numbers_of
from sam_bench.studies.results import read_study

_IMAGE = re.compile(r'src="(figures/[a-z-]+\.svg)"')


def write_report(study: Study, folder: Path, *, command: str = "", archive: str = "") -> dict[str, Path]:
    """Write numbers, figures and report of what is there.

    Args:
        study: Read from its folder.
        folder: Where the report goes.
        command: For the report.
        archive: The file that cards and records are packed in, if they are; links lead there.

    Returns:
        `md`, `html` and `json` to their files.

    Raises:
        InputError: A card is of another run, or a file is damaged; names it.
        SamBenchError: A file cannot be written.
    """
    numbers = numbers_of(read_study(study), command=command)
    drawn = {
        "frontier": figures.frontier(numbers, "pgd-linf"),
        "radii": figures.curves(numbers, ["pgd-linf", "pgd-l2"]),
    }
    images: dict[str, bytes] = {}
    for name, files in drawn.items():
        for suffix, content in (files or {}).items():
            images[f"figures/{name}.{suffix}"] = content
            write_atomic(folder / "figures" / f"{name}.{suffix}", content)
    text = markdown(numbers, [name for name, files in drawn.items() if files], archive=archive)
    paths = {suffix: folder / f"report.{suffix}" for suffix in ("md", "html")} | {"json": folder / "numbers.json"}
    write_atomic(paths["json"], json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(paths["md"], text)
    write_atomic(paths["html"], html(text, images, title=numbers["about"]["title"]))
    return paths


def markdown(numbers: Json, drawn: list[str], *, archive: str = "") -> str:
    """The report's text. Links are relative to its folder."""
    environment = _environment(autoescape=False)
    environment.filters.update(number=_number, spread=_spread, link=lambda path, text: _link(path, text, archive))
    return environment.get_template("report.md.j2").render(**numbers, drawn=drawn, archive=archive)


def html(text: str, images: dict[str, bytes], *, title: str) -> str:
    """The same text as a page, its figures inside."""

    def inside(found: re.Match[str]) -> str:
        return f'src="data:image/svg+xml;base64,{base64.b64encode(images[found[1]]).decode()}"'

    body = MarkdownIt("commonmark").enable("table").render(text)
    return (
        _environment(autoescape=True)
        .get_template("report.html.j2")
        .render(title=title, body=Markup(_IMAGE.sub(inside, body)))
    )


def _environment(*, autoescape: bool) -> Environment:
    return Environment(
        loader=PackageLoader("sam_bench.studies", "."),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(found: Json | None, digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    if found is None or found["mean"] is None:
        return "–"
    return _number(found["mean"], digits) + ("" if found["sd"] is None else f" ± {_number(found['sd'], digits)}")


def _link(path: str, text: Any, archive: str) -> str:
    return f"[{text}]({archive or path})"
