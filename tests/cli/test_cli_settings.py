"""Options with values that cannot be: what was wrong and what would be right; exit code 2 and nothing written."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cli_runner import DIGITS, CommandLine
from pydantic.fields import FieldInfo

from sam_bench import api
from sam_bench.cli import evaluate as evaluate_command
from sam_bench.cli import train as train_command
from sam_bench.records import Augmentation, Radius
from sam_bench.training import PARTS

_EVALUATE = ["evaluate", "tiny", "--n-examples", "4", "--attack", "pgd"]
_LARGE = "is too large for {}: inputs are in [0, 1], so you probably mean {}; add --allow-large-eps to insist"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "abc"], "Invalid value for '--width': 'abc' is not a valid integer."),
        (["--width", "0"], "architecture 'preactresnet10': width: must be greater than or equal to 1 (given: 0)"),
        (["--arch-option", "width"], "Invalid value for --arch-option: 'width' is not KEY=VALUE"),
        (["--arch-option", "depth=3"], "architecture 'preactresnet10' has no option 'depth'; it takes width"),
        (["--epochs", "0"], "sam-bench: --epochs: must be greater than or equal to 1 (given: '0')"),
        (["--epochs", "1.5"], "--epochs: must be a valid integer (given: '1.5')"),
        (["--epochs", "many"], "--epochs: must be a valid integer (given: 'many')"),
        (["--batch-size", "1"], "--batch-size: must be greater than or equal to 2 (given: '1')"),
        (["--lr", "fast"], "--lr: must be a valid number (given: 'fast')"),
        (["--lr", "nan"], "--lr: must be a finite number (given: 'nan')"),
        (["--lr", "-1"], "--lr: must be greater than 0 (given: '-1')"),
        (["--milestones", "0.5,x"], "schedule.milestones.1: must be a valid number (given: 'x')"),
        (["--rho", "0.1"], "--rho does not apply: it belongs to weights 'aace', 'asam', "),
        (["--recipe", "sam", "--rho", "-1"], "--rho: must be greater than or equal to 0 (given: '-1')"),
        (["--recipe", "sam", "--steps", "3"], "--steps does not apply: it belongs to inputs 'pgd', and this is inputs"),
        (["--recipe", "at", "--steps", "0"], "--steps: must be greater than or equal to 1 (given: '0')"),
        (["--recipe", "at", "--norm", "L1"], "--norm: must be 'Linf' or 'L2' (given: 'L1')"),
        (["--recipe", "at", "--eps", "8/0"], "--eps: '8/0' is not a radius: it divides by zero"),
        (
            ["--recipe", "at", "--eps", "x"],
            "--eps: 'x' is not a radius: write a number or a fraction such as 8/25",
        ),
        (["--recipe", "at", "--step-size", "x"], "--step-size: 'x' is not a radius: write a number or a fraction"),
        (["--recipe", "at", "--bn-mode", "on"], "--bn-mode: must be 'train', 'eval' or 'update' (given: 'on')"),
        (
            ["--recipe", "at", "--step-size", "2"],
            "--step-size 2 is too large for Linf: inputs are in [0, 1], so you prob",
        ),
        (["--recipe", "n-fgsm", "--noise-eps", "16"], "--noise-eps 16 is too large for Linf"),
        (
            ["--inputs", "gaussian", "--std", "8"],
            "--std 8 is too large for Linf: inputs are in [0, 1], so you probably",
        ),
        (["--milestones", "50,75"], "milestones: 50,75: they are shares of the run between 0 and 1, each larger than"),
        (["--recipe", "swa", "--epochs", "3"], "--average-from 0.75 leaves the weights after 1 of 3 epochs to average"),
        (
            ["--recipe", "at-awp", "--perturb-only", "bn"],
            "--perturb-only bn does not fit: awp moves tensors of two or more",
        ),
        (["--recipe", "sam", "--interval", "9", "--epochs", "4", "--start-epoch", "1", "--batch-size", "16"], "none"),
        (["--limit-train", "0"], "--limit-train 0 must be at least 2: BatchNorm needs two images in a batch"),
        (["--limit-train", "1"], "--limit-train 1 must be at least 2: BatchNorm needs two images in a batch"),
        (["--validation", "-1"], "--validation -1 must be between 0 and 30: there are 32 training images, and at"),
        (["--validation", "31"], "--validation 31 must be between 0 and 30: there are 32 training images, and at"),
        (["--validation-eps", "x"], "Invalid value for '--validation-eps': 'x' is not a radius: write a number or"),
        (["--precision", "fp8"], "Invalid value for '--precision': 'fp8' is not one of 'auto', 'bf16', 'fp32'."),
        (["--device", "quantum"], "--device quantum cannot be used here"),
        (["--image-size", "2"], "--image-size 2 is too small: at least 4 pixels"),
        (["--image-size", "x"], "Invalid value for '--image-size': 'x' is not a valid integer."),
        (["--seed", "-1"], "--seed -1 must be between 0 and 9223372036854775807"),
        (["--seed", "99999999999999999999999"], "must be between 0 and 9223372036854775807"),
        (["--name", "../up"], "--name ../up cannot name a model: use letters, digits, '.', '_' and '-', starting"),
        (["--name", "two words"], "--name 'two words' cannot name a model: use letters, digits"),
        (["--name", ""], "--name '' cannot name a model: use letters, digits"),
        (["--threat", "Linff"], "Invalid value for '--threat': 'Linff' is not one of 'Linf', 'L2'."),
        (["--robustbench-dataset", "mnist"], "'mnist' is not one of 'cifar10', 'cifar100', 'imagenet'."),
        (
            ["--crop-padding", "8"],
            "--crop-padding: 8 pixels cannot be reflected in images of 8x8; use at most",
        ),
    ],
)
def test_train_says_what_is_wrong_with_an_option(cli: CommandLine, arguments: list[str], message: str) -> None:
    assert message in cli.refused(*DIGITS, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-examples", "0"], "--n-examples 0 must be between 1 and 500, the size of digits-8px's test set"),
        (["--n-examples", "501"], "--n-examples 501 must be between 1 and 500, the size of digits-8px's test set"),
        (["--n-examples", "x"], "Invalid value for '--n-examples': 'x' is not a valid integer."),
        (["--batch-size", "0"], "Invalid value for '--batch-size': 0 is not in the range x>=1."),
        (
            ["--attack", "autoattack", "--engine", "reference", "--rng", "upstream"],
            "--rng: upstream goes with engine fast only, as pyautoattack draws its random numbers itself",
        ),
        (
            ["--attack", "autoattack", "--suite", "square"],
            "--suite: version standard has its own attacks; give square with version custom",
        ),
        (["--steps", "0"], "--steps: must be greater than or equal to 1 (given: '0')"),
        (["--steps", "x"], "--steps: must be a valid integer (given: 'x')"),
        (["--version", "plus"], "--version does not apply to attack 'pgd': it belongs to autoattack; pgd takes steps,"),
        (
            ["--attack", "fgsm", "--steps", "3"],
            "--steps does not apply to attack 'fgsm': it belongs to pgd, pgd-margin; fgsm takes",
        ),
        (
            ["--attack", "autoattack", "--version", "pro"],
            "--version: must be 'standard', 'plus', 'rand' or 'custom'",
        ),
        (["--eps", "x"], "--eps: 'x' is not a radius: write a number or a fraction such as 8/255"),
        (["--eps", "-1/255"], "--eps: '-1/255' is not a radius"),
        (["--eps", ""], "--eps names no radius; give one or several, as in 1/255,2/255, or leave it out"),
        (["--eps", "1/255,"], "--eps: '' is not a radius: write a number or a fraction such as 8/255"),
        (["--eps", "2/255,1/255,2/255"], "--eps has 2/255 twice; take one of them away"),
        (["--search-precision", "bf16"], "--search-precision bf16 is for --attack autoattack, not pgd; leave it out"),
        (["--screen"], "--screen is for --attack autoattack, not pgd; leave it out"),
        (
            ["--attack", "autoattack", "--screen", "--search-precision", "bf16"],
            "--search-precision bf16 and --screen do not go together; leave one out",
        ),
        (["--search-precision", "fp16"], "Invalid value for '--search-precision': 'fp16' is not one of 'fp32', 'bf16'"),
        (["--norm", "L0"], "Invalid value for '--norm': 'L0' is not one of 'Linf', 'L2', 'L1'."),
        (["--norm", "L1", "--attack", "pgd"], "--norm L1: pgd searches in L2 and Linf; attack with autoattack"),
        (["--seed", "-1"], "--seed -1 must be between 0 and 9223372036854775807"),
        (["--device", "quantum"], "--device quantum cannot be used here"),
        (["--eps", "1/255,2/255", "--output", "a.json"], "--output names one file, but --eps gives several radii"),
        (["--output", "model_zoo"], "Invalid value for '--output': File 'model_zoo' is a directory"),
        (["--output", "results/"], "--output results must be a file that ends in .json, as in results.json"),
        (["--output", "file/a.json"], "no record can be written into file, because "),
        (["--output", "file/a.json"], "/file is a file"),
        (
            ["--dataset", "digits"],
            "model tiny takes images of 1 channel of 8x8, but data set digits has 1 channel of 16x16",
        ),
    ],
)
def test_evaluate_says_what_is_wrong_with_an_option(with_tiny: CommandLine, arguments: list[str], message: str) -> None:
    (with_tiny.folder / "file").write_text("in the way")
    if "digits" in arguments:
        arguments = [*arguments, "--image-size", "16"]
    assert message in with_tiny.refused(*_EVALUATE, *arguments)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("L2", "0.5"), ("L1", "12")])
def test_without_eps_the_radius_is_the_usual_one_of_the_norm(with_tiny: CommandLine, norm: str, eps: str) -> None:
    attack = ["--attack", "autoattack", "--version", "custom", "--suite", "square"] if norm == "L1" else []
    record = with_tiny.done(*_EVALUATE, *attack, "--norm", norm, "--json").json
    assert (record["norm"], record["eps"]) == (norm, eps)


@pytest.mark.parametrize(
    ("arguments", "attack"),
    [(["--screen"], "autoattack-screen"), (["--search-precision", "bf16"], "autoattack-bf16")],
)
def test_autoattack_searched_otherwise_goes_under_a_name_of_its_own(
    with_tiny: CommandLine, arguments: list[str], attack: str
) -> None:
    record = with_tiny.done("evaluate", "tiny", "--n-examples", "2", "--eps", "0.4", *arguments, "--json").json
    assert record["attack"] == attack
    assert record["warnings"]
    (written,) = with_tiny.folder.glob("evaluations/tiny/*.json")
    assert written.name.startswith(f"{attack}-Linf-0.4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("arguments", [DIGITS, _EVALUATE])
def test_a_gpu_that_is_not_there_is_named(with_tiny: CommandLine, arguments: list[str]) -> None:
    message = with_tiny.refused(*arguments, "--device", "cuda")
    assert message.startswith("sam-bench: --device cuda cannot be used here (")
    assert message.endswith("; use auto, cpu or cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*_EVALUATE, "--eps", "8"], f"--eps 8 {_LARGE.format('Linf', '8/255')}"),
        ([*_EVALUATE, "--eps", "1.0"], f"--eps 1.0 {_LARGE.format('Linf', '1.0/255')}"),
        # Refused before 1/255 is attacked with: no record of it is written.
        ([*_EVALUATE, "--eps", "1/255,8"], f"--eps 8 {_LARGE.format('Linf', '8/255')}"),
        ([*_EVALUATE, "--norm", "L2", "--eps", "128"], f"--eps 128 {_LARGE.format('L2', '128/255')}"),
        ([*DIGITS, "--recipe", "at", "--eps", "8"], f"--eps 8 {_LARGE.format('Linf', '8/255')}"),
        ([*DIGITS, "--validation-eps", "8"], f"--validation-eps 8 {_LARGE.format('Linf', '8/255')}"),
    ],
)
def test_an_eps_meant_in_units_of_255_is_refused(with_tiny: CommandLine, arguments: list[str], message: str) -> None:
    assert with_tiny.refused(*arguments) == f"sam-bench: {message}"


def test_an_eps_that_is_insisted_on_is_used(with_tiny: CommandLine) -> None:
    record = with_tiny.done(*_EVALUATE, "--attack", "fgsm", "--eps", "8", "--allow-large-eps", "--json").json
    assert (record["eps"], record["eps_float"]) == ("8", 8.0)
    train = with_tiny.done(
        *(*DIGITS, "--recipe", "at", "--eps", "8", "--step-size", "1", "--steps", "1", "--allow-large-eps", "--json")
    )
    assert train.json["card"]["recipe"]["inputs"]["eps"] == "8"


def test_a_large_eps_in_l2_is_what_a_user_may_mean(with_tiny: CommandLine) -> None:
    record = with_tiny.done(*_EVALUATE, "--norm", "L2", "--eps", "1.5", "--steps", "2", "--json").json
    assert (record["norm"], record["eps"]) == ("L2", "1.5")


def _settings() -> Iterator[Any]:
    for part, registry in PARTS.items():
        for cls in registry:
            for name, field in cls.model_fields.items():
                yield pytest.param(part, cls.method, name, field, id=f"{cls.method}-{name}")


def _another_value(field: FieldInfo) -> tuple[list[str], Any]:
    """Arguments for a value that is not the default, and the value as a recipe has it."""
    default, annotation = field.default, field.annotation
    if annotation is bool:
        return [], not default
    if annotation is str:
        return ["lamb"], "lamb"
    if annotation is int:
        return [str(default + 1)], default + 1
    if annotation is float:
        value = default / 2 if default else 0.25
        return [str(value)], value
    if typing.get_origin(annotation) is typing.Literal:
        value = next(choice for choice in typing.get_args(annotation) if choice != default)
        return [value], value
    if typing.get_origin(annotation) is tuple:
        return ["0.25,0.5"], [0.25, 0.5]
    if int in typing.get_args(annotation):
        return ["5"], 5
    if float in typing.get_args(annotation):
        return ["0.25"], 0.25
    assert Radius in (annotation, *typing.get_args(annotation))
    return ["3/255"], "3/255"


@pytest.mark.parametrize(("part", "method", "name", "field"), list(_settings()))
def test_every_setting_of_every_method_is_an_option_of_train(
    part: str, method: str, name: str, field: FieldInfo
) -> None:
    given, expected = _another_value(field)
    option = f"--{name.replace('_', '-')}"
    if field.annotation is bool and not expected:
        option = f"--no-{option[2:]}"
    # An objective may compare clean with perturbed inputs: they move.
    moving = ["--inputs", "fgsm"] if getattr(PARTS[part].get(method), "compares_inputs", False) else []
    needed = ["--opt", "lamb"] if method == "timm" and name != "opt" else []
    needed += ["--eps", "0.5"] if name == "norm" else []
    arguments = [f"--{part}", method, option, *given, *moving, *needed]
    context = train_command.command.make_context("train", arguments)
    recipe = train_command.spec_of(context.params).method.recipe
    spec = getattr(recipe, part)
    assert spec.method == method
    assert spec.model_dump(mode="json")[name] == expected


def test_one_milestone_needs_no_comma(cli: CommandLine) -> None:
    card = cli.done(*DIGITS, "--milestones", "0.5", "--json").json["card"]
    assert card["recipe"]["schedule"]["milestones"] == [0.5]


def test_help_documents_every_option_with_what_it_means_and_whose_it_is() -> None:
    options = {option: parameter for parameter in train_command.command.params for option in parameter.opts}
    fields = [
        (cls.method, *item) for registry in PARTS.values() for cls in registry for item in cls.model_fields.items()
    ]
    fields += [("augmentation", *item) for item in Augmentation.model_fields.items()]
    for method, name, field in fields:
        text = options[f"--{name.replace('_', '-')}"].help
        assert method in text[text.index("[") :]
        assert field.description
    for part in PARTS:
        text = options[f"--{part}"].help
        assert all(name in text for name in api.methods_by_part()[part])
    for parameter in [*train_command.command.params, *evaluate_command.command.params]:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_help_shows_every_option(cli: CommandLine) -> None:
    for name, command in (("train", train_command.command), ("evaluate", evaluate_command.command)):
        shown = cli.done(name, "--help").out
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if f" {option}" not in shown] == []
