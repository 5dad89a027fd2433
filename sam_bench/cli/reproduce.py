"""`sam-bench reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from sam_bench.cli import common
from sam_bench.cli.options import Command, Option
from sam_bench.device import choose_device
from sam_bench.errors import InputError, SamBenchError
from sam_bench.parallel import usable_cores
from sam_bench.studies.opening import open_study
from sam_bench.studies.plan import WEI2023, load_plan
from sam_bench.studies.runner import run_study

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
        click.Argument(["study"], type=click.Choice([*_PLANS])),
        Option(["--scale"], default="smoke", show_default=True, metavar="NAME", first=1, heading="Most used",
               help="smoke (minutes), tiny (hours), small (a day) or full (days of a GPU)."),
        Option(["--dataset"], heading="Most used", first=2,
               help="FILE.npz or FOLDER, where the scale's data set is one of your own.  [default: the scale's]"),
        Option(["--output"], heading="Most used", first=3, type=click.Path(path_type=Path, file_okay=False),
               help="Folder of models, records and report.  [default: reproduce/STUDY-SCALE]"),
        Option(["--precision"], default="auto", show_default=True, type=click.Choice(["auto", "bf16", "fp32"]),
               heading="Device", help="Of all trainings; auto decides once and keeps it in the folder."),
        Option(["--workers"], type=click.IntRange(min=1), heading="Device",
               help="Processes that share the work on this machine.  [default: one a core, at most 4; 1 on a GPU]"),
        Option(["--part"], metavar="K/N", default="1/1", heading="Device",
               help="Every N-th model from the K-th on. Machines that share the folder need it only if that knows no "
                    "locks."),
        Option(["--device"], default="auto", show_default=True, heading="Device", help="auto, cpu, cuda, cuda:1, …."),
        Option(["--data-dir"], default=Path("data"), show_default=True, heading="Data",
               type=click.Path(path_type=Path, file_okay=False), help="Where torchvision's data sets are kept."),
    ],
)  # fmt: skip
@common.quiet_option
def command(
    study: str,
    scale: str,
    dataset: str | None,
    output: Path | None,
    precision: str,
    workers: int | None,
    part: str,
    device: str,
    data_dir: Path,
    quiet: bool,
) -> None:
    """Train, attack and compare what a study's plan says; write a report with a verdict for each claim.

    Stopped at any point, the same command goes on. Started several times, also on several machines that share the
    folder, the processes share the work.

    \b
    sam-bench reproduce wei2023
    sam-bench reproduce wei2023 --scale small --dataset cifar10-jpeg.npz
    """
    opened = open_study(
        load_plan(_PLANS[study]),
        scale,
        folder=output or Path("reproduce") / f"{study}-{scale}",
        dataset=dataset,
        precision=precision,
        device=device,
        data_dir=data_dir,
    )
    if workers is None:
        workers = min(4, usable_cores()) if choose_device(device)[0].type == "cpu" else 1
    failures = run_study(
        opened,
        reporter=common.reporter(quiet),
        command=common.command_line(),
        workers=workers,
        part=_part(part),
    )
    for failure in failures:
        click.echo(f"{failure.job} failed: {failure.reason}", err=True)
    if failures:
        raise SamBenchError(f"{len(failures)} jobs failed; mend what can be mended and give the same command again")
