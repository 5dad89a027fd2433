"""A second attack, other packages' attacks and the batch size, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runner import CommandLine

from sam_bench.records import EvaluationRecord, read_record

_WEAK = ["--attack", "pgd", "--steps", "1", "--step-size", "1/255", "--no-random-start"]


def test_a_second_opinion_is_printed_warned_of_and_kept(with_tiny: CommandLine) -> None:
    command = ["evaluate", "tiny", *_WEAK, "--eps", "0.15", "--n-examples", "30", "--output", "record.json"]
    alone = with_tiny.done(*command)
    assert "second" not in alone.out + alone.err
    done = with_tiny.done(*command, "--second-attack", "--resume")
    record = read_record(with_tiny.folder / "record.json", EvaluationRecord)
    opinion = record.second_opinion
    assert opinion is not None and len(opinion.broken) > 3
    assert (opinion.attack, opinion.settings["steps"], opinion.settings["restarts"]) == ("pgd-margin", 100, 10)
    assert done.out.splitlines() == [
        alone.out.strip(),
        f"tiny: second attack {opinion.robust_accuracy:.2%} (pgd-margin broke {len(opinion.broken)} more, "
        f"{opinion.seconds:.0f} s)",
    ]
    assert f"warning: second-opinion: pgd-margin broke a further {opinion.gap:.2%} of all examples" in done.err
    assert f"second attack: pgd-margin on the {record.verdicts.count('robust')} examples that pgd left" in done.err
    again = with_tiny.done(*command, "--second-attack", "--resume", "--json")
    assert EvaluationRecord(**again.json) == record and "record.json is finished: nothing to resume" in again.err


def test_pgd_margin_is_not_asked_about_itself(with_tiny: CommandLine) -> None:
    message = with_tiny.refused("evaluate", "tiny", "--attack", "pgd-margin", "--second-attack")
    assert "--second-attack runs pgd-margin, which is the attack itself" in message


@pytest.mark.parametrize(
    ("name", "settings"),
    [("torchattacks:PGD", {"alpha": 1 / 255, "steps": 3}), ("foolbox:LinfPGD", {"rel_stepsize": 0.25, "steps": 3})],
)
def test_other_packages_attacks_run_by_name(name: str, settings: dict[str, float], with_tiny: CommandLine) -> None:
    given = [f"--attack-setting={key}={value}" for key, value in settings.items() if key != "steps"]
    command = ["evaluate", "tiny", "--attack", name, *given, "--steps", "3", "--eps", "8/255", "--n-examples", "8"]
    printed = with_tiny.done(*command, "--json").json
    assert printed["attack"] == name and printed["engine"].split()[0] == name.split(":")[0]
    assert settings.items() <= printed["settings"].items() and printed["batch_size"] == 128
    assert set(printed["verdicts"]) <= {"robust", "misclassified", name} and "second_opinion" not in printed
    (path,) = Path("evaluations/tiny").iterdir()
    assert path.name.startswith(name.replace(":", "_")) and read_record(path, EvaluationRecord)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--attack", "torchattacks:PGD", "--attack-setting", "stepz=3"],
            "--attack-setting stepz does not apply to attack 'torchattacks:PGD': no attack has it; torchattacks:PGD "
            "takes alpha, steps, random_start",
        ),
        (
            ["--attack", "torchattacks:PGD", "--restarts", "3"],
            "--restarts does not apply to attack 'torchattacks:PGD': it belongs to pgd, pgd-margin; torchattacks:PGD t",
        ),
        (
            ["--attack", "pgd", "--steps", "3", "--attack-setting", "steps=4"],
            "--attack-setting steps is given by its own option, too; leave one of them",
        ),
        (["--attack", "pgd", "--attack-setting", "steps"], "Invalid value for --attack-setting: 'steps' is not KEY="),
        (["--attack", "torchattacks:PGDL2"], "--norm Linf: torchattacks:PGDL2 searches in L2; choose another of torch"),
        (["--attack", "torchattacks:PDG"], "unknown attack of torchattacks 'PDG'. Did you mean 'PGD'"),
        (["--attack", "foolbox:LinfPDG"], "unknown attack of foolbox 'LinfPDG'. Did you mean 'LinfPGD'"),
        (["--attack", "torchattacks:PGD", "--workers", "2"], "cannot be shared among processes"),
        (["--batch-size", "all"], "Invalid value for '--batch-size': 'all' is not a valid integer"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_be_right(
    arguments: list[str], message: str, with_tiny: CommandLine
) -> None:
    assert message in with_tiny.refused("evaluate", "tiny", "--n-examples", "4", *arguments)


def test_the_batch_size_is_found_said_and_recorded(with_tiny: CommandLine) -> None:
    command = [
        "evaluate",
        "tiny",
        "--attack",
        "fgsm",
        "--eps",
        "8/255",
        "--n-examples",
        "4",
        "--device",
        "cpu",
        "--json",
    ]
    found = with_tiny.done(*command)
    assert found.json["batch_size"] == 512 and "batch size 512 (so many small images fill a pass)" in found.err
    given = with_tiny.done(*command, "--batch-size", "3")
    assert given.json["batch_size"] == 3 and "batch size 3 (asked for)" in given.err
    assert given.json["verdicts"] == found.json["verdicts"]


def test_help_tells_how_other_packages_attacks_are_named(cli: CommandLine) -> None:
    text = " ".join(cli.done("evaluate", "--help").out.split())
    assert "pgd-margin, foolbox:NAME, torchattacks:NAME" in text
    assert "--attack-setting KEY=VALUE" in text and "--second-attack" in text and "--batch-size INT|auto" in text
