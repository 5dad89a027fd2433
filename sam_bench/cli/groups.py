"""Groups of commands that answer a misspelt one with the nearest names and the list."""

from __future__ import annotations

import click

from sam_bench.errors import unknown_name


class Group(click.Group):
    """A click group, with our answer to an unknown command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest names for a misspelt command."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise unknown_name("command", args[0], known)
        return super().resolve_command(ctx, args)
