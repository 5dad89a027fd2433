"""A misspelt name: the nearest ones first, then all there are; exit code 2 and nothing written."""

from __future__ import annotations

import pytest
from cli_runner import DIGITS, CommandLine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "sma"], "unknown recipe 'sma'. Did you mean 'swa' or 'sam' or 'wsam'? Available: "),
        (
            ["recipes", "show", "standrd"],
            "unknown recipe 'standrd'. Did you mean 'standard' or 'vit-standard'? A",
        ),
        ([*DIGITS, "--arch", "preactresnet81"], "unknown architecture 'preactresnet81'. Did you mean 'preactresnet18'"),
        ([*DIGITS, "--arch", "preactresnet81"], "Available: preactresnet10, preactresnet18, preactresnet34, "),
        ([*DIGITS, "--arch", "timm:resnet81"], "timm 1.0.9 has no model 'resnet81'. Did you mean 'timm:resnet18'"),
        ([*DIGITS, "--arch", "timm:resnet81"], "timm.list_models('*resnet*') in Python lists its "),
        ([*DIGITS, "--arch", "resnet18"], "unknown architecture 'resnet18'; timm has it: write 'timm:resnet18'"),
        ([*DIGITS, "--dataset", "digts"], "unknown data set 'digts'. Did you mean 'digits'? Available: cifar10, "),
        ([*DIGITS, "--dataset", "digts"], "The path of a FILE.npz or of a FOLDER with train/ and test/ works too."),
        (
            [*DIGITS, "--weights", "smaa"],
            "unknown weight perturbation 'smaa'. Did you mean 'sam' or 'wsam' or 'usam'? A",
        ),
        ([*DIGITS, "--inputs", "pgdd"], "unknown input perturbation 'pgdd'. Did you mean 'pgd'? Available: "),
        ([*DIGITS, "--optimizer", "adam"], "unknown optimizer 'adam'. Did you mean 'adamw'? Available: adamw, sgd, "),
        ([*DIGITS, "--schedule", "cosin"], "unknown schedule 'cosin'. Did you mean 'cosine'"),
        (["evaluate", "tiny", "--attack", "pdg"], "unknown attack 'pdg'. Did you mean 'pgd'? Available: autoattack, "),
        (["evaluate", "tniy", "--attack", "pgd"], "unknown model in the zoo model_zoo: 'tniy'. Did you mean 'tiny'?"),
        (["evaluate", "tniy", "--attack", "pgd"], "Available: tiny."),
        (["evaluate", "tiny", "--attack", "pgd", "--dataset", "digts"], "unknown data set 'digts'. Did you mean 'digi"),
        (["zoo", "show", "tniy"], "unknown model in the zoo model_zoo: 'tniy'. Did you mean 'tiny'?"),
        (["zoo", "verify", "tniy"], "unknown model in the zoo model_zoo: 'tniy'. Did you mean 'tiny'?"),
        (["leaderboard", "submit", "tniy", "r.json"], "unknown model in the zoo model_zoo: 'tniy'. Did you mean"),
        (["tran"], "unknown command 'tran'. Did you mean 'train'? Available: analyze, doctor, evaluate, leaderboard, "),
        (
            ["zoo", "shw"],
            "unknown command 'shw'. Did you mean 'show' or 'push'? Available: add, export, import, list, pull, ",
        ),
        (["recipes", "lst"], "unknown command 'lst'. Did you mean 'list'? Available: list, show."),
        (
            ["leaderboard", "bild"],
            "unknown command 'bild'. Did you mean 'build'? Available: build, check, evidence, serve, submit, verify.",
        ),
        ([*DIGITS, "--roh", "0.1"], "--roh"),
        ([*DIGITS, "--roh", "0.1"], "--rho"),
        (["evaluate", "tiny", "--esp", "8/255"], "--eps"),
        (["evaluate", "timm:resnet81", "--attack", "fgsm"], "unknown timm model 'resnet81'. Did you mean 'resnet18'"),
        (["evaluate", "timm:resnet81", "--attack", "fgsm"], "timm.list_models('*resnet*') lists what is near"),
        (["evaluate", "robustbench:Wong2020Fas", "--attack", "fgsm"], "(cifar10, Linf): 'Wong2020Fas'. Did you mean"),
        (["evaluate", "robustbench:Wong2020Fas", "--attack", "fgsm"], "'Wong2020Fast'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(
    with_tiny: CommandLine, arguments: list[str], message: str
) -> None:
    assert message in with_tiny.refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--dataset", "nowhere.npz"], "there is no file or folder nowhere.npz; a data set is one of cifar10"),
        (["train", "--dataset", "no/where"], "there is no file or folder no/where; a data set is one of cifar10, "),
        (["train", "--recipe", "nowhere.yaml"], "cannot read recipe nowhere.yaml: No such file or directory"),
        (["evaluate", "nowhere.safetensors"], "no such checkpoint file: nowhere.safetensors"),
        (["evaluate", "tiny", "--zoo", "nowhere"], "unknown model in the zoo nowhere: 'tiny'. There is none yet."),
        (["leaderboard", "submit", "tiny", "nowhere.json"], "cannot read nowhere.json: No such file or directory"),
        (["leaderboard", "build"], "leaderboards does not exist: `sam-bench leaderboard submit MODEL RECORD` makes"),
        (["evaluate"], "Missing argument 'MODEL'."),
        (["leaderboard", "submit", "tiny"], "Missing argument 'RECORDS...'."),
        (["train", "extra"], "Got unexpected extra argument (extra)"),
    ],
)
def test_what_is_not_there_is_named(with_tiny: CommandLine, arguments: list[str], message: str) -> None:
    assert message in with_tiny.refused(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [*DIGITS, "--zoo", "file"],
        ["evaluate", "tiny", "--zoo", "file"],
        ["zoo", "list", "--zoo", "file"],
        ["zoo", "verify", "--zoo", "file"],
        ["doctor", "--zoo", "file"],
    ],
)
def test_a_zoo_that_is_a_file_is_refused(cli: CommandLine, arguments: list[str]) -> None:
    (cli.folder / "file").write_text("no folder")
    assert "Invalid value for '--zoo': Directory 'file' is a file." in cli.refused(*arguments)


def test_a_zoo_variable_that_names_a_file_is_refused(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "file").write_text("no folder")
    monkeypatch.setenv("SAM_BENCH_ZOO", "file")
    assert cli.refused("zoo", "list") == "sam-bench: the zoo file is a file; it must be a folder"


def test_an_empty_zoo_is_said_to_be_empty(cli: CommandLine) -> None:
    outcome = cli.done("zoo", "list")
    assert outcome.out == "no models in model_zoo; `sam-bench train` makes one\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("summary: x\nepoch: 3\n", "r.yaml: unknown field 'epoch'. Did you mean 'epochs'? Available: augmentation, "),
        ("summary: x\nepochs: 0\n", "r.yaml: epochs: must be greater than or equal to 1 (given: 0)"),
        (
            "summary: x\nweights: {method: smaa}\n",
            "unknown weight perturbation 'smaa'. Did you mean 'sam' or 'wsam' or 'usam'?",
        ),
        (
            "summary: x\nweights: {method: sam, roh: 1}\n",
            "r.yaml: weights: unknown setting of sam 'roh'. Did you mean 'rho'? Available: bn_second_pass, interval, ",
        ),
        ("summary: x\nweights: sam\n", "r.yaml: weights must be a mapping such as {method: sam}"),
        (
            "just text\n",
            "r.yaml must be a mapping such as `weights: {method: sam}`; see `sam-bench recipes show standard`",
        ),
        ("a: [1\n", "r.yaml is not YAML: "),
    ],
)
def test_a_wrong_recipe_file_is_named_with_its_field(cli: CommandLine, text: str, message: str) -> None:
    (cli.folder / "r.yaml").write_text(text)
    assert message in cli.refused(*DIGITS, "--recipe", "r.yaml")
    assert message in cli.refused("recipes", "show", "r.yaml")
