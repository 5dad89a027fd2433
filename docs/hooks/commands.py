"""A page for each command, made from the command itself: its text, its arguments, its options under their headings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sam_bench.cli.main import cli
from sam_bench.cli.options import HEADINGS


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation."""
    section = next(each for each in config.nav or [] if "Commands" in each)
    names = cli.list_commands(click.Context(cli))
    section["Commands"] = ["commands/index.md", *({name: f"commands/{name}.md"} for name in names)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `commands/index.md` and a page for each command."""
    context = click.Context(cli, info_name="sam-bench")
    rows = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        text = "\n".join(_page(command, click.Context(command, info_name=name, parent=context)))
        files.append(File.generated(config, f"commands/{name}.md", content=text))
        rows.append(f"| [`{name}`]({name}.md) | {_escaped(command.get_short_help_str(limit=200))} |")
    overview = [
        "# Commands",
        "",
        inspect.cleandoc(cli.help or ""),
        "",
        "| command | what it does |",
        "| --- | --- |",
        *rows,
    ]
    files.append(File.generated(config, "commands/index.md", content="\n".join(overview)))
    return files


def _page(command: click.Command, context: click.Context, level: int = 1) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}"
    yield from ("", *_description(command), "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"{context.command_path} {usage}", "```", "")
    for heading, records in _options(command, context):
        yield from (f"**{heading}**", "", "| option | meaning |", "| --- | --- |")
        yield from (f"| `{option}` | {_escaped(meaning)} |" for option, meaning in records)
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _page(below, click.Context(below, info_name=name, parent=context), level + 1)


def _description(command: click.Command) -> Iterator[str]:
    """The command's text; what click keeps as it is (after a backspace) are commands to type."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ("```bash", paragraph.removeprefix("\b").strip(), "```", "")
        else:
            yield from (paragraph, "")


def _options(command: click.Command, context: click.Context) -> list[tuple[str, list[tuple[str, str]]]]:
    """The options that the help shows, under its headings."""
    groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
    for option in sorted(command.get_params(context), key=lambda each: getattr(each, "first", 0)):
        record = option.get_help_record(context)
        if record is not None:
            groups.setdefault(getattr(option, "heading", "Output"), []).append(record)
    return [(heading, records) for heading, records in groups.items() if records]


def _escaped(text: str) -> str:
    """Text without Markdown's signs, `code` apart."""
    for sign in "|<[]*":
        text = text.replace(sign, f"\\{sign}")
    return text
