"""Groups of commands: a misspelt command is answered with the nearest names, an error knows its command."""

from __future__ import annotations

from typing import Any

import click

from sam_bench.errors import SamBenchError, StoppedError, unknown_name


class CommandFailedError(Exception):
    """An error on its way to the entry point, with the command whose options its message may name."""

    def __init__(self, error: SamBenchError | StoppedError, command: click.Command | None) -> None:
        super().__init__(error, command)
        self.error, self.command = error, command


class Group(click.Group):
    """A click group, with our answer to an unknown command, and summaries that are not cut off."""

    noun = "command"
    """What its commands are called in that answer."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest names for a misspelt command."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise unknown_name(self.noun, args[0], known)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with the first sentence of its help."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=1000)) for name, each in commands.items() if each])

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; what fails is told with its command."""
        try:
            return super().invoke(ctx)
        except (SamBenchError, StoppedError) as error:
            name = ctx.invoked_subcommand
            raise CommandFailedError(error, self.get_command(ctx, name) if name else None) from error
