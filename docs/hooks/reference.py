"""The Python pages: every public name of the modules that users import from, with its docstring."""

from __future__ import annotations

import importlib
import inspect

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo

from sam_bench.registry import Component

MODULES = (
    "sam_bench",
    "sam_bench.perturb",
    "sam_bench.attacks",
    "sam_bench.data",
    "sam_bench.models",
    "sam_bench.objectives",
    "sam_bench.records",
    "sam_bench.zoo",
    "sam_bench.leaderboard",
    "sam_bench.analysis",
    "sam_bench.api.specs",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation."""
    section = next(each for each in config.nav or [] if "Python" in each)
    section["Python"] = ["reference/index.md", *({path: f"reference/{path}.md"} for path in MODULES)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `reference/index.md` and a page for each module."""
    rows = []
    for path in MODULES:
        module = importlib.import_module(path)
        text, _, more = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
        names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        entries = [_entry(path, name, getattr(module, name)) for name in names]
        content = "\n".join([f"# {path}\n", text, "", more, "", *entries])
        files.append(File.generated(config, f"reference/{path}.md", content=content))
        rows.append(f"| [`{path}`]({path}.md) | {' '.join(text.split())} |")
    overview = ["# Python", "", "| module | what it holds |", "| --- | --- |", *rows]
    files.append(File.generated(config, "reference/index.md", content="\n".join(overview)))
    return files


def _entry(path: str, name: str, value: object) -> str:
    """What mkdocstrings is to show: of a registered class its settings, since its base class tells how it is called."""
    entry = f"::: {path}.{name}\n"
    if not (inspect.isclass(value) and issubclass(value, Component) and "method" in vars(value)):
        return entry  # no class that is registered under a name
    options = "    options: {members: false, merge_init_into_class: false, show_bases: false}\n"
    fields = value.model_fields
    keys = sorted(fields, key=lambda key: key not in value.__annotations__)  # first the ones of its own
    rows = [f"| `{key}` | {_default(fields[key])} | {fields[key].description} |" for key in keys]
    return "\n".join([entry + options, "| setting | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _default(field: FieldInfo) -> str:
    return "" if field.default is None or field.is_required() else f"`{field.default}`"
