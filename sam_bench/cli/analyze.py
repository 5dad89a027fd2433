"""`sam-bench analyze`."""

from __future__ import annotations

from typing import Any

import click

from sam_bench.analysis import ANALYSES
from sam_bench.api.analyzing import run_analysis
from sam_bench.api.specs.analyze import AnalyzeSpec
from sam_bench.cli import common
from sam_bench.cli.options import Command, field_options, given_fields, given_settings, setting_options

_SETTINGS: dict[str, Any] = {}
for _analysis in ANALYSES:
    for _name, _field in _analysis.model_fields.items():
        _SETTINGS.setdefault(_name, []).append(("analysis", _analysis.method, _field))

_LIST = "\n".join(f"    {each.method:<14} {each.summary}" for each in ANALYSES)


@click.command(
    "analyze",
    cls=Command,
    params=[
        click.Argument(["analysis"], metavar="NAME"),
        click.Argument(["subjects"], metavar="[MODEL|RECORD]...", nargs=-1),
        *field_options(AnalyzeSpec, called={"analysis": "", "subjects": "", "settings": "", "allow_large_eps": ""}),
        *setting_options(_SETTINGS),
    ],
    help=f"""Ask something of models or records: numbers as JSON, and a figure.

    \b
{_LIST}

    Without a MODEL all models of the zoo are asked. Analyses of records take their files.

    \b
    sam-bench analyze calibration
    sam-bench analyze calibration sam-preactresnet18 standard-preactresnet18 --n-examples 500
    """,
)
@common.quiet_option
@common.json_option
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Run one analysis."""
    fields = given_fields(AnalyzeSpec, options) | {"subjects": options["subjects"]}
    spec = AnalyzeSpec(**fields, settings=given_settings(options, _SETTINGS))
    result = run_analysis(spec, reporter=common.reporter(quiet), command=common.command_line())
    if as_json:
        common.print_json({"measured": result.measured, "findings": result.findings})
        return
    for line in result.lines:
        click.echo(line)
    click.echo(f"numbers: {result.numbers}; figure: {', '.join(map(str, result.figures))}")
