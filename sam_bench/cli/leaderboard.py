"""`sam-bench leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.groups import Group

_folder_option = click.option(
    "--folder",
    type=common.FOLDER,
    default=Path("leaderboards"),
    show_default=True,
    help="Folder of the leaderboards.",
)


@click.group("leaderboard", cls=Group)
def command() -> None:
    """Tables and pages of what the records say."""


_for_data = common.together(
    click.option("--dataset", help="The data, FILE.npz or FOLDER; default: DATA_DIR/<dataset>.npz, or by name."),
    common.data_dir_option("Where data are looked for, and downloaded to."),
    common.device_option,
)
_verifying = common.together(
    _for_data,
    click.option(
        "--audit", type=int, metavar="M", help="Run AutoAttack again on M of the examples that are claimed robust."
    ),
    click.option(
        "--beacon", metavar="TEXT", help="Decides which: a public text made after the entry, such as a commit's hash."
    ),
    click.option(
        "--attack-again",
        is_flag=True,
        help="Run AutoAttack on what rows without adversarial examples call broken, so that these are replayed, too.",
    ),
)


@command.command("build")
@_folder_option
@common.zoo_option
@click.option(
    "--robustbench",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="RobustBench's model_info folder, or a checkout that has one: its entries are shown beside ours.",
)
@click.option("--dataset", help="Data of the boards, FILE.npz or FOLDER, for the accuracy of each class.")
@common.offline_data_option
@common.json_option
def build(as_json: bool, **options: Any) -> None:
    """Write the Markdown, LaTeX and CSV tables, the figure, and pages that need no network."""
    built = api.build_leaderboard(**options)
    if as_json:
        common.print_json({form: str(path) for form, path in built.paths.items()})
    else:
        click.echo(built.paths["md"].read_text(encoding="utf-8"))
        click.echo(f"written: {', '.join(str(path) for path in built.paths.values())}", err=True)
    if built.missing:
        click.echo(built.missing, err=True)


@command.command("serve")
@_folder_option
@common.zoo_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: any that is free.")
def serve(folder: Path, zoo: Path | None, port: int) -> None:
    """Show the built pages at an address of this machine, until Ctrl-C."""
    http, address = api.serve(folder, zoo=zoo, port=port)
    click.echo(address)
    with http:
        http.serve_forever()


@command.command("submit")
@click.argument("model")
@click.argument("records", nargs=-1, required=True, type=common.FILE)
@_folder_option
@common.zoo_option
@click.option(
    "--replace",
    is_flag=True,
    help="Let a record replace a row over more or other test examples, or of a plug-in attack with other settings.",
)
@click.option(
    "--dataset", help="The model's data, FILE.npz or FOLDER, to hold records over its first examples against."
)
@common.offline_data_option
@common.json_option
def submit(model: str, records: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Write MODEL's entry from its card and RECORDS alone, and print what to send to RobustBench."""
    submission = api.submit(model, records, **options)
    if as_json:
        common.print_json(
            {
                "entry": str(submission.path),
                "model_info": submission.model_info,
                "issue_title": submission.issue_title,
                "issue": submission.issue,
                "notes": submission.notes,
            }
        )
        return
    click.echo(f"entry written to {submission.path}; `sam-bench leaderboard build` puts it into the tables", err=True)
    for note in submission.notes:
        click.echo(f"note: {note}", err=True)
    card = submission.entry.sam_bench
    click.echo(f"RobustBench's model_info/{submission.entry.dataset}/{card.threat}/{card.name}.json:\n")
    click.echo(submission.model_info)
    click.echo(f"The issue for RobustBench, titled {submission.issue_title!r}:\n")
    click.echo(submission.issue)


@command.command("evidence")
@click.argument("entry", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("records", nargs=-1)
@common.zoo_option
@_for_data
def evidence(entry: Path, records: tuple[str, ...], **options: Any) -> None:
    """Attack again what the rows of ENTRY call broken, and keep the adversarial examples.

    RECORDS are rows, as records/NAME.json; default all that have no adversarial examples.
    """
    written = api.add_evidence(entry, records, **options)
    for path in written:
        click.echo(f"written: {path}", err=True)
    if not written:
        click.echo("nothing to do: the adversarial examples are there", err=True)


@command.command("verify")
@click.argument("entry", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@common.zoo_option
@_verifying
@click.option(
    "--write", is_flag=True, help="Write the report that gives the entry its state; delete it if the audit refutes it."
)
@common.json_option
def verify(entry: Path, as_json: bool, **options: Any) -> int:
    """Check ENTRY, replay its records and audit it; exit code 0 only if everything holds."""
    found = api.verify_entry(entry, **options)
    verdict = "refused" if found.refuted else found.state
    if as_json:
        common.print_json(
            {
                "entry": str(entry),
                "passed": found.passed,
                "state": found.state,
                "checks": [vars(check) for check in found.checks],
                "rows": [{"state": row.state, **row.model_dump(mode="json")} for row in found.rows],
            }
        )
    else:
        for check in found.checks:
            click.echo(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.message}")
        for row in () if found.refuted else found.rows:
            click.echo(f"{row.state}  {row.record}")
        click.echo(f"{entry}: {verdict}")
    return 0 if found.passed else 1


@command.command("check")
@click.option("--base", required=True, metavar="REF", help="What the branch is to be merged into.")
@click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    help="A clean checkout of the branch.  [default: .]",
)
@_verifying
def check(base: str, **options: Any) -> int:
    """Verify the entries that a branch adds or changes, and refuse what else it touches; prints a table in Markdown."""
    found = api.check_pull_request(base, **options)
    click.echo(found.markdown(), nl=False)
    return 0 if found.passed else 1
