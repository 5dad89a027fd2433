"""Specs: what is marked identity makes another run, the command line and Python say the same, stubs are up to date."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import sam_bench
from sam_bench import api
from sam_bench.api import EvalSpec, SweepSpec, TrainSpec
from sam_bench.api.specs import Spec
from sam_bench.api.stubs import STUB, stub
from sam_bench.cli import evaluate as evaluate_command
from sam_bench.cli import sweep as sweep_command
from sam_bench.cli import train as train_command
from sam_bench.errors import InputError
from sam_bench.records import read_record
from sam_bench.training import RunConfig

TRAINED: dict[str, Any] = {
    "recipe": "sam",
    "dataset": "digits",
    "image_size": 8,
    "arch": "preactresnet10",
    "arch_options": {"width": 2},
    "settings": {"epochs": 1, "crop_padding": 0, "flip": False},
    "limit_train": 32,
    "precision": "fp32",
}

OTHER_TRAINING: dict[str, Any] = {
    "dataset": "own.npz",
    "image_size": 16,
    "dataset_name": "other",
    "data_dir": "elsewhere",
    "seed": 1,
    "allow_large_eps": True,
    "device": "cpu",
    "zoo": "other-zoo",
    "recipe": "standard",
    "faithful": True,
    "settings": {**TRAINED["settings"], "rho": 0.3},
    "arch": "preactresnet18",
    "arch_options": {"width": 3},
    "limit_train": 31,
    "validation": 8,
    "validation_eps": "1/255",
    "precision": "bf16",
    "compile": "on",
    "micro_batch": 8,
    "sync_ascent": True,
    "sync_bn": True,
    "init": "run",
    "extra_data": "own.npz",
    "extra_fraction": 0.5,
    "on_nan": "rollback",
    "select": "best",
    "name": "other",
    "robustbench_dataset": "cifar10",
    "threat": "L2",
    "weights_dtype": "float16",
    "authors": "somebody",
    "run_dir": "elsewhere",
    "keep": 2,
    "save_every": 1,
    "resume": True,
}

OTHER_EVALUATION: dict[str, Any] = {
    "dataset": "own.npz",
    "image_size": 16,
    "dataset_name": "other",
    "data_dir": "elsewhere",
    "seed": 1,
    "allow_large_eps": True,
    "device": "cpu",
    "zoo": "other-zoo",
    "attack": "fgsm",
    "settings": {"steps": 3},
    "norm": "L2",
    "eps": "1/255,2/255",
    "n_examples": 4,
    "batch_size": 4,
    "workers": 2,
    "executor": "ray",
    "ray_address": "auto",
    "output": "other.json",
    "record_dir": "other-records",
    "resume": "if-any",
    "save_adversarial": True,
    "second_attack": True,
}


def test_another_value_is_there_for_every_field() -> None:
    assert set(OTHER_TRAINING) == set(TrainSpec.options())
    assert set(OTHER_EVALUATION) == set(EvalSpec.options())


@pytest.mark.parametrize("field", OTHER_TRAINING)
def test_another_value_makes_another_training_exactly_if_the_field_is_identity(field: str) -> None:
    spec = TrainSpec(**TRAINED)
    if field == "faithful":
        spec = spec.but(recipe="at")
    other = spec.but(**{field: OTHER_TRAINING[field]})
    changed = spec.fingerprint() != other.fingerprint()
    assert changed == TrainSpec.options()[field].identity
    difference = spec.first_difference(other)
    assert (difference is None) == (not changed)
    named = {"settings": "weights.rho", "arch_options": "arch_options.width"}.get(field, field)
    assert difference is None or difference.field == named


@pytest.mark.parametrize("field", OTHER_EVALUATION)
def test_another_value_makes_another_evaluation_exactly_if_the_field_is_identity(field: str) -> None:
    spec = EvalSpec(attack="pgd")
    changed = spec.fingerprint() != spec.but(**{field: OTHER_EVALUATION[field]}).fingerprint()
    # PGD settles each example by itself: there the batch size decides nothing.
    assert changed == (EvalSpec.options()[field].identity and field != "batch_size")


def test_the_batch_size_is_identity_where_verdicts_depend_on_it() -> None:
    spec = EvalSpec(attack="autoattack", settings={"engine": "reference"})
    assert not spec.built.per_example
    assert spec.fingerprint() != spec.but(batch_size=4).fingerprint()
    assert "batch_size" not in EvalSpec(attack="autoattack").identity()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went to its end."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        api.train(**TRAINED, name="run")
    return folder


RESUMED = {
    **{name: OTHER_TRAINING[name] for name, each in TrainSpec.options().items() if each.identity},
    "dataset": "digits-16.npz",
    "compile": "on",
}


@pytest.mark.parametrize("field", RESUMED)
def test_resuming_is_refused_with_the_name_of_the_field(
    field: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    changes: dict[str, Any] = {field: RESUMED[field]}
    if field == "dataset":
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
        labels = np.arange(40) % 10
        np.savez("digits-16.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    if field in ("extra_data", "extra_fraction"):
        np.savez("own.npz", image=np.zeros((4, 8, 8, 1), np.uint8), label=np.arange(4))
        changes["extra_data"] = "own.npz"
    if field == "faithful":  # of these recipes only some have such a form
        changes |= {"recipe": "at", "settings": {**TRAINED["settings"], "steps": 1}}
    if field == "select":
        changes["validation"] = 8
    named = {"settings": r"weights\.rho", "arch_options": r"arch_options\.width", "faithful": "recipe"}.get(
        field, field
    )
    named = {"select": "validation", "extra_fraction": "extra_data"}.get(field, named)
    with pytest.raises(InputError, match=rf"cannot resume runs/run: it was started with (no )?{named}\b"):
        api.train(TrainSpec(**TRAINED, name="run", resume=True), **changes)


def test_resuming_under_another_name_registers_the_run_under_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    card = api.train(**TRAINED, name="other", run_dir="runs/run", resume=True, authors="somebody").card
    assert (card.name, card.authors) == ("other", "somebody")
    first = next((tmp_path / "model_zoo").rglob("run.json"))
    assert card.weights.sha256 == json.loads(first.read_text())["weights"]["sha256"]


def test_a_run_that_was_begun_before_it_said_what_was_asked_for_is_resumed_and_told_apart(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs/run/config.json"
    content = json.loads(path.read_text())
    assert content.pop("identity")["weights.rho"] == 0.2
    path.write_text(json.dumps(content))
    assert read_record(path, RunConfig).identity == {}
    api.train(**TRAINED, name="run", resume=True)
    with pytest.raises(InputError, match=r"it was started with seed=0 and this command gives seed=1"):
        api.train(**TRAINED, name="run", resume=True, seed=1)


def _options(command: click.Command) -> set[str]:
    return {param.name or "" for param in command.params if isinstance(param, click.Option)} - {"quiet", "as_json"}


def test_the_options_are_the_fields_of_the_spec_and_the_settings_of_the_methods() -> None:
    settings = {*api.settings_of_methods(), *api.methods_by_part()}
    settings |= {"epochs", "batch_size", "flip", "crop_padding", "padding_mode", "random_resized_crop"} | {
        "mixup",
        "cutmix",
    }
    trained = {*TrainSpec.options()} - {"settings"} | settings | {"width"}
    assert _options(train_command.command) == trained
    shorthands = {"screen", "search_precision"}
    assert _options(evaluate_command.command) == {*EvalSpec.options(), *api.settings_of_attacks(), *shorthands}
    of_a_run = {name for name, each in TrainSpec.options().items() if each.sweep is None} - {"settings"}
    attack = {"attack", "attack_norm", "attack_eps", "attack_settings", "n_examples"}
    assert _options(sweep_command.command) == trained - of_a_run | {*SweepSpec.options(), *attack}


def _parsed(module: Any, *arguments: str) -> Spec:
    params = module.command.make_context("x", [*arguments]).params
    spec: Spec = module.spec_of({name: params[name] for name in params if name not in ("quiet", "as_json")})
    return spec


def test_the_command_line_and_python_make_equal_specs() -> None:
    typed = _parsed(train_command, "--recipe", "at", "--width", "4", "--eps", "4/255", "--validation-eps", "2/255")
    assert typed == TrainSpec(
        recipe="at", arch_options={"width": 4}, settings={"eps": "4/255"}, validation_eps=np.float64(2 / 255)
    )
    typed = _parsed(train_command, "--recipe", "sam", "--rho", "0.1", "--sync-bn", "--name", "m", "--milestones", "0.5")
    said = TrainSpec.of("sam", settings={"rho": 0.1, "milestones": [0.5]}, sync_bn=True, name="m")
    assert typed.fingerprint() == said.fingerprint() and typed.but(settings=said.settings) == said
    assert typed.default_name() == said.default_name()
    typed = _parsed(
        evaluate_command, "m", "--attack", "pgd", "--eps", "1/255,2/255", "--second-attack", "--workers", "2"
    )
    assert typed == EvalSpec(attack="pgd", eps=["1/255", "2/255"], second_attack=True, workers=np.int8(2))
    arguments = ["--recipe", "sam,at", "--seed", "0,1", "--epochs", "3", "--device", "cpu", "--attack", "pgd"]
    typed = _parsed(sweep_command, *arguments, "--attack-eps", "1/255", "--attack-setting", "steps=2")
    grid = {"recipe": ["sam", "at"], "seed": [0, 1], "epochs": ["3"]}
    attack = {"attack": "pgd", "attack_eps": "1/255", "attack_settings": {"steps": 2}}
    swept = SweepSpec.of(grid, device="cpu", **attack)
    assert {run.name for run in typed.runs()} == {run.name for run in swept.runs()}
    assert (typed.train, dict(typed.varies), typed.evaluation) == (swept.train, dict(swept.varies), swept.evaluation)


def test_a_spec_is_frozen_and_python_takes_it_in_the_place_of_keywords() -> None:
    spec = TrainSpec.of("sam", "digits", seed=np.int64(3))
    assert (spec.recipe, spec.dataset, spec.seed) == ("sam", "digits", 3) and type(spec.seed) is int
    assert TrainSpec.of(spec) is spec and TrainSpec.of(spec, seed=4) == TrainSpec.of("sam", "digits", seed=4)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 4
    with pytest.raises(InputError, match=r"unknown argument 'sed'\. Did you mean 'seed'"):
        TrainSpec(sed=1)
    for name, mapping in (("rho", "settings"), ("epochs", "settings"), ("width", "arch_options")):
        with pytest.raises(InputError, match=rf"^{name} is no argument; give it as {mapping}={{'{name}': …}}$"):
            TrainSpec(**{name: 1})
    with pytest.raises(InputError, match=r"^steps is no argument; give it as settings={'steps': …}$"):
        EvalSpec(steps=20)
    with pytest.raises(TypeError, match="multiple values for argument 'recipe'"):
        TrainSpec.of("sam", recipe="at")
    with pytest.raises(TypeError, match="'digits' must be given by name"):
        EvalSpec.of("digits", attack="pgd")


def test_what_a_field_is_called_in_a_sweep_is_what_its_errors_call_it() -> None:
    for fields, said in (
        ({"attack_eps": "x"}, "attack_eps: 'x' is not a radius"),
        ({"attack_eps": 8}, "attack_eps='8' is too large for Linf"),
        ({"attack_norm": "L0"}, "unknown attack_norm 'L0'"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            SweepSpec.of({}, attack="pgd", **fields)
    with pytest.raises(InputError, match=r"device=\['cpu', 'cuda'\] has one value for all runs of a sweep"):
        SweepSpec.of({"device": ["cpu", "cuda"]})


def test_the_stub_is_made_from_the_specs() -> None:
    assert STUB.read_text(encoding="utf-8") == stub(), "run `make stubs`"
    for verb, spec in ((sam_bench.train, TrainSpec), (sam_bench.evaluate, EvalSpec)):
        (signature,) = re.findall(rf"def {verb.__name__}\((.*?)\) ->", stub(), flags=re.DOTALL)
        assert [name for name in spec.options() if f"    {name}: " not in signature] == []
        assert inspect.getdoc(verb)
