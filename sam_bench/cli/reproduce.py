"""`sam-bench reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sam_bench.cli import common
from sam_bench.cli.options import Command, Option
from sam_bench.device import choose_device
from sam_bench.errors import InputError, SamBenchError
from sam_bench.parallel import usable_cores
from sam_bench.studies.estimate import Estimate, Line, estimate
from sam_bench.studies.opening import open_study, refuse_missing_data
from sam_bench.studies.packing import ARCHIVE, pack, unpack, unpacked
from sam_bench.studies.plan import WEI2023, load_plan
from sam_bench.studies.report import write_report
from sam_bench.studies.runner import Failure, run_study

_PLANS = {"wei2023": WEI2023}


def _part(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal()):
        raise InputError("must be like 1/3, the first of three parts", field="part", value=text)
    return int(k), int(n)


@click.command(
    "reproduce",
    cls=Command,
    params=[
        click.Argument(["study"], metavar="STUDY", type=click.Choice([*_PLANS])),
        Option(["--scale"], default="smoke", show_default=True, metavar="NAME", first=1, heading="Most used",
               help="smoke (minutes), tiny (hours), small (a day), full (days of a GPU) or full-wrn (weeks of one)."),
        Option(["--dataset"], heading="Most used", first=2,
               help="FILE.npz or FOLDER, where the scale's data set is one of your own.  [default: the scale's]"),
        Option(["--output"], heading="Most used", first=3, type=common.FOLDER,
               help="Folder of models, records and report.  [default: reproduce/STUDY-SCALE]"),
        Option(["--precision"], default="auto", show_default=True, type=click.Choice(["auto", "bf16", "fp32"]),
               heading="Device", help="Of all trainings; auto decides once and keeps it in the folder."),
        Option(["--workers"], type=click.IntRange(min=1), heading="Device",
               help="Processes that share the work on this machine.  [default: one a core, at most 4; 1 on a GPU]"),
        Option(["--part"], metavar="K/N", default="1/1", heading="Device",
               help="Every N-th model from the K-th on. Machines that share the folder need it only if that knows no "
                    "locks."),
        Option(["--report-only"], is_flag=True, heading="Most used", first=5,
               help="Write the report of what is there; nothing is trained or attacked, and no data are needed."),
        Option(["--dry-run"], is_flag=True, heading="Most used", first=4,
               help="Print what would be done, with passes and hours on this device."),
        Option(["--pack"], is_flag=True, heading="Output",
               help="Pack cards, records and notes into results.tar.xz beside the report, and link to it."),
        Option(["--device"], default="auto", show_default=True, heading="Device", help="auto, cpu, cuda, cuda:1, …."),
        Option(["--data-dir"], default=Path("data"), show_default=True, heading="Data",
               type=common.FOLDER, help="Where torchvision's data sets are kept."),
    ],
)  # fmt: skip
@common.quiet_option
def command(study: str, quiet: bool, **options: Any) -> None:
    """Train, attack and compare what a study's plan says; write a report with a verdict for each claim.

    Stopped at any point, the same command goes on. Started several times, also on several machines that share the
    folder, the processes share the work.

    \b
    sam-bench reproduce wei2023
    sam-bench reproduce wei2023 --scale tiny --dataset cifar10-jpeg.npz --dry-run
    sam-bench reproduce wei2023 --scale tiny --report-only
    """
    plan, scale = load_plan(_PLANS[study]), options["scale"]
    folder = options["output"] or Path("reproduce") / f"{study}-{scale}"
    shared = {name: options[name] for name in ("dataset", "precision", "device", "data_dir")}
    if options["dry_run"]:
        with unpacked(folder) as there:
            for line in _planned(estimate(open_study(plan, scale, folder=there, read_only=True, **shared))):
                click.echo(line)
        return
    failures: list[Failure] = []
    if not options["report_only"]:
        refuse_missing_data(options["dataset"])
        unpack(folder)
        failures = run_study(
            open_study(plan, scale, folder=folder, **shared),
            reporter=common.reporter(quiet),
            command=common.command_line(),
            workers=options["workers"] or _workers(options["device"]),
            part=_part(options["part"]),
        )
    if options["pack"]:
        click.echo(f"packed: {pack(folder)}")
    with unpacked(folder) as there:
        opened = open_study(plan, scale, folder=there, read_only=True, **shared)
        archive = ARCHIVE if options["pack"] or there != folder else ""
        paths = write_report(opened, folder, command=common.command_line(), archive=archive)
    _say(paths, failures)


def _workers(device: str) -> int:
    return min(4, usable_cores()) if choose_device(device)[0].type == "cpu" else 1


def _planned(found: Estimate) -> list[str]:
    """The plan as lines: what is left, passes, hours."""
    lines = [f"{'training':<18}{'left':>9}{'passes':>12}{'hours':>9}"]
    lines += [_planned_line(line) for line in found.trainings]
    lines += ["", f"{'measurement':<18}{'left':>9}{'passes':>12}{'hours':>9}"]
    lines += [_planned_line(line) for line in found.measurements]
    return [
        *lines,
        "",
        "Passes of a training are per training example; those of an attack are of one model, if nothing is broken.",
        f"Hours are of one process on this device, for what is left, from {found.basis}: "
        f"{1000 * found.seconds:.3f} ms a pass of an image. Those of attacks are at most so many.",
        f"In all {found.hours:.2f} hours.",
    ]


def _planned_line(line: Line) -> str:
    return f"{line.what:<18}{f'{line.left} of {line.planned}':>9}{line.passes:>12,.0f}{line.hours:>9.2f}"


def _say(paths: dict[str, Path], failures: list[Failure]) -> None:
    numbers = json.loads(paths["json"].read_text(encoding="utf-8"))
    for name, claim in numbers["claims"].items():
        click.echo(f"{name}: {claim['verdict']}. {claim['text']}")
    click.echo(f"report: {paths['md']}, {paths['html']}; numbers: {paths['json']}")
    for failure in failures:
        click.echo(f"{failure.job} failed: {failure.reason}", err=True)
    if failures:
        count = f"{len(failures)} job{'' if len(failures) == 1 else 's'} failed"
        raise SamBenchError(f"{count}; mend what can be mended and give the same command again")
