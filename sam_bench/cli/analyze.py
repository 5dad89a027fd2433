"""`sam-bench analyze`: a command for each analysis."""

from __future__ import annotations

from typing import Any

import click

from sam_bench.analysis import ANALYSES, Analysis, ModelAnalysis, RecordAnalysis
from sam_bench.api.analyzing import run_analysis
from sam_bench.api.specs.analyze import AnalyzeSpec
from sam_bench.cli import common
from sam_bench.cli.groups import Group
from sam_bench.cli.options import Command, field_options, given_fields, given_settings, setting_options

_OF_LABELS = {"dataset", "dataset_name", "data_dir", "image_size"}
_NOT_OPTIONS = {"analysis", "subjects", "settings", "allow_large_eps"}


class _Analyses(Group):
    noun = "analysis"


@click.group("analyze", cls=_Analyses)
def command() -> None:
    """Ask something of models or records: numbers as JSON, and a figure.

    Without a MODEL all models of the zoo are asked. Analyses of records take their files.

    \b
    sam-bench analyze calibration
    sam-bench analyze sharpness sam-preactresnet18 standard-preactresnet18 --n-examples 500
    sam-bench analyze frontier evaluations/*/*.json
    """


def _command_of(analysis: type[Analysis]) -> click.Command:
    settings = {name: [("analysis", "", field)] for name, field in analysis.model_fields.items()}
    params = [
        *_subjects(analysis),
        *field_options(AnalyzeSpec, called=dict.fromkeys(set(AnalyzeSpec.options()) - _fields(analysis), "")),
        *setting_options(settings),
    ]

    @click.command(analysis.method, cls=Command, params=params, help=_sentence(analysis.summary))
    @common.quiet_option
    @common.json_option
    def run(quiet: bool, as_json: bool, **options: Any) -> None:
        fields = given_fields(AnalyzeSpec, options) | {"subjects": options.get("subjects", ())}
        spec = AnalyzeSpec(**fields, analysis=analysis.method, settings=given_settings(options, settings))
        result = run_analysis(spec, reporter=common.reporter(quiet), command=common.command_line())
        if as_json:
            common.print_json({"measured": result.measured, "findings": result.findings})
            return
        for line in result.lines:
            click.echo(line)
        click.echo(f"numbers: {result.numbers}; figure: {', '.join(map(str, result.figures))}")

    return run


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _subjects(analysis: type[Analysis]) -> list[click.Parameter]:
    if issubclass(analysis, ModelAnalysis):
        return [click.Argument(["subjects"], metavar="[MODEL]...", nargs=-1)]
    if issubclass(analysis, RecordAnalysis):
        return [click.Argument(["subjects"], metavar="RECORD...", nargs=-1)]
    return []


def _fields(analysis: type[Analysis]) -> set[str]:
    """The fields of the spec that mean something to this kind of analysis."""
    if issubclass(analysis, ModelAnalysis):
        return set(AnalyzeSpec.options()) - _NOT_OPTIONS
    if issubclass(analysis, RecordAnalysis):
        return {"output", "zoo"} | (_OF_LABELS if analysis.needs_labels else set())
    return {"output", "seed"}


for _analysis in ANALYSES:
    command.add_command(_command_of(_analysis))
