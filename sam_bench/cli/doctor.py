"""`sam-bench doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sam_bench.cli import common
from sam_bench.cli.spelling import spelling_of
from sam_bench.doctor import examine
from sam_bench.errors import SamBenchError


@click.command("doctor")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@common.zoo_option
@common.json_option
def command(data_dir: Path, zoo: Path | None, as_json: bool) -> None:
    """What is installed, what device, what is wrong and how to fix it; exit code 1 when something is."""
    findings = examine(data_dir=data_dir, zoo=zoo)
    if as_json:
        common.print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            click.echo(f"{finding.status:<6} {finding.what}: {finding.detail}")
            if finding.fix:
                click.echo(f"{'':<6} -> {SamBenchError(finding.fix).render(spelling_of(command))}")
    if any(finding.status == "wrong" for finding in findings):
        raise click.exceptions.Exit(1)
