"""A grid of runs through the command line: each registered, attacked, continued, and never in another's way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import ray
import torch
from cli_runner import DIGITS, CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_bench import api
from sam_bench.api import SweepSpec, sweeping
from sam_bench.data import load_dataset
from sam_bench.errors import InputError
from sam_bench.parallel import Job
from sam_bench.progress import SilentReporter
from sam_bench.records import EvaluationRecord, ModelCard, read_record

SWEEP = ["sweep", *DIGITS[1:]]
ATTACK = ["--attack", "pgd", "--attack-setting", "steps=2", "--attack-eps", "4/255,16/255", "--n-examples", "20"]


def test_every_combination_becomes_a_model_a_record_and_a_row(cli: CommandLine) -> None:
    command = [*SWEEP, "--recipe", "sam", "--rho", "0.1,0.4", "--seed", "0,1", *ATTACK]
    outcome = cli.done(*command, "--json")
    assert set(outcome.json["varies"]) == {"rho", "seed"}
    rows = {row["name"]: row for row in outcome.json["runs"]}
    base = "sam-rho04-preactresnet10-w2"
    assert set(rows) == {f"sam-{rho}preactresnet10-w2-seed{seed}" for rho in ("rho01-", "rho04-") for seed in (0, 1)}
    assert rows[f"{base}-seed1"]["settings"] == {"rho": "0.4", "seed": 1}
    for name, row in rows.items():
        (path,) = (cli.folder / "model_zoo").rglob(f"{name}.json")
        card = read_record(path, ModelCard)
        assert (row["clean"], row["passes"]) == (card.clean_accuracy, card.cost.passes)
        assert (card.seed, str(card.recipe.weights.settings["rho"])) == (
            row["settings"]["seed"],
            row["settings"]["rho"],
        )
        records = [read_record(each, EvaluationRecord) for each in (cli.folder / "evaluations" / name).glob("*.json")]
        assert {str(each.eps): each.robust_accuracy for each in records} == row["robust"]
        assert {each.settings["steps"] for each in records} == {2} and {each.n_examples for each in records} == {20}

    before = cli.files()
    again = cli.done(*command)
    assert cli.files() == before, "what is finished is not done again"
    head, *lines = again.out.splitlines()
    settings = outcome.json["varies"]
    accuracies = "clean (all) robust 4/255 (20) robust 16/255 (20)"
    assert head.split() == ["name", *settings, *accuracies.split(), "passes", "seconds"]
    expected = [[name, *(str(row["settings"][key]) for key in settings)] for name, row in rows.items()]
    assert [line.split()[:3] for line in lines] == expected

    one = cli.done(*DIGITS, "--recipe", "sam", "--rho", "0.4", "--seed", "1", "--name", "alone", "--json").json
    (path,) = (cli.folder / "model_zoo").rglob(f"{base}-seed1.json")
    assert one["card"]["weights"]["sha256"] == json.loads(path.read_text())["weights"]["sha256"]


@pytest.mark.parametrize(
    ("device", "gpus"), [("auto", [0, 1, 0]), ("cuda", [0, 1, 0]), ("cuda:1", [None] * 3), ("cpu", [None] * 3)]
)
def test_of_several_gpus_each_worker_has_one(
    device: str, gpus: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int | None] = []

    def looked_at(jobs: list[Job[Any]], *, workers: int, own: Callable[[int], dict[str, Any]], **_: Any) -> list[Any]:
        rows = []
        for worker, job in enumerate(jobs[:workers]):
            chosen.append(None)
            rows.append(job.function(**job.arguments, **own(worker), reporter=SilentReporter()))
        return rows

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.__setitem__(-1, gpu))
    monkeypatch.setattr(sweeping, "run_jobs", looked_at)
    card = SimpleNamespace(clean_accuracy=0.5, cost=Mock(), precision="fp32")
    monkeypatch.setattr(sweeping, "_finished", lambda *_: card)
    grid = {"recipe": ["standard"], "dataset": ["digits"], "seed": [0, 1, 2]}
    rows = api.sweep(grid, workers=3, device=device, run_dir=tmp_path, zoo=tmp_path).rows
    assert [row.error for row in rows] == [None] * 3 and chosen == gpus


def test_a_radius_that_is_insisted_on_is_attacked_with(cli: CommandLine) -> None:
    attack = ["--attack", "fgsm", "--attack-eps", "8", "--n-examples", "4", "--allow-large-eps"]
    (row,) = cli.done(*SWEEP, *attack, "--json").json["runs"]
    assert list(row["robust"]) == ["8"]


def test_a_run_that_fails_is_named_and_the_others_are_made(cli: CommandLine) -> None:
    command = [*SWEEP, "--lr", "1e30,0.1", "--schedule", "constant", "--batch-size", "16"]
    outcome = cli(*command)
    assert outcome.code == 1
    failed, made = "standard-preactresnet10-w2-lr1e30", "standard-preactresnet10-w2-lr01"
    first, second = (line.split()[:3] for line in outcome.out.splitlines()[1:])
    (card,) = (cli.folder / "model_zoo").rglob("*.json")
    assert first == [failed, "1e30", "failed"]
    assert second == [made, "0.1", f"{read_record(card, ModelCard).clean_accuracy:.2%}"]
    said, last = outcome.err.splitlines()[-2:]
    assert said.startswith(f"{failed} failed: training diverged: ")
    assert last.startswith(f"sam-bench: 1 of 2 runs failed: {failed}; ")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As a task on the cluster has: the sums of another number of threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_on_ray_the_runs_are_those_of_one_process(cli: CommandLine) -> None:
    grid = ["--seed", "0,1", "--attack", "fgsm", "--n-examples", "10"]
    here = cli.done(*SWEEP, *grid, "--json").json["runs"]
    for folder in ("runs", "model_zoo", "evaluations"):
        (cli.folder / folder).rename(cli.folder / f"{folder}-here")
    try:
        away = cli.done(*SWEEP, *grid, "--json", "--executor", "ray", "--ray-address", "local", "--workers", "1")
        assert not ray.is_initialized()
    finally:
        ray.shutdown()
    there = away.json["runs"]
    for row in (*here, *there):
        assert row.pop("seconds") > 0 and row["error"] is None
    assert there == here and len(here) == 2
    assert "standard-preactresnet10-w2-seed1: clean accuracy " in away.err
    weights = {path.name: path.read_bytes() for path in (cli.folder / "model_zoo").rglob("*.safetensors")}
    assert weights == {path.name: path.read_bytes() for path in (cli.folder / "model_zoo-here").rglob("*.safetensors")}
    assert not list(cli.folder.rglob(".sweep-*"))


def test_a_sweep_goes_on_where_it_was_interrupted_and_does_not_take_another_run_for_its_own(cli: CommandLine) -> None:
    command = [*SWEEP, "--seed", "0,1"]
    cli.done(*command)
    whole = cli.files()
    (cli.folder / "runs/standard-preactresnet10-w2-seed1/sweep.json").unlink()
    for path in [*(cli.folder / "model_zoo").rglob("*seed1*")]:
        path.unlink()
    continued = cli.done(*command)
    assert "resuming standard-preactresnet10-w2-seed1" in continued.err and "w2-seed0: " not in continued.err
    after = cli.files()
    assert after.keys() == whole.keys()
    assert all(content == whole[path] for path, content in after.items() if path.endswith((".safetensors", ".csv")))

    other = cli(*command, "--limit-train", "31")
    assert other.code == 1 and "sam-bench: 2 of 2 runs failed: " in other.err
    assert other.err.count("cannot resume runs/standard-preactresnet10-w2-seed") == 2
    assert cli.files() == after


def test_runs_that_chose_other_precisions_are_told(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = iter([2.0, 1.0])
    monkeypatch.setattr("sam_bench.training.precision.measured_gain", lambda *_: next(gains))
    monkeypatch.setattr("sam_bench.device.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    outcome = cli.done(*SWEEP, "--seed", "0,1", "--precision", "auto", "--json")
    assert [row["precision"] for row in outcome.json["runs"]] == ["bf16", "fp32"]
    assert "same precision (bf16: standard-preactresnet10-w2-seed0; the others fp32)" in outcome.err
    named = cli.done(*SWEEP, "--precision", "bf16,fp32", "--run-dir", "other", "--zoo", "zoo")
    assert "same precision" not in named.err


def test_a_run_whose_recipe_was_edited_is_not_taken_for_finished(cli: CommandLine) -> None:
    recipe = cli.folder / "mine.yaml"
    recipe.write_text(cli.done("recipes", "show", "sam").out.replace("name: sam", "name: mine"))
    command = [*SWEEP, "--recipe", "mine.yaml", "--seed", "0"]
    cli.done(*command)
    assert "resuming" not in cli.done(*command).err
    recipe.write_text(recipe.read_text().replace("method: sam", "method: asam"))
    edited = cli(*command)
    assert edited.code == 1 and "cannot resume runs/mine-" in edited.err


def test_a_run_whose_further_images_were_changed_is_not_taken_for_finished(cli: CommandLine) -> None:
    digits, file = load_dataset("digits", image_size=8), cli.folder / "more.npz"
    images = digits.test.images[:20].permute(0, 2, 3, 1).numpy()
    labels = digits.test.labels[:20].numpy()
    np.savez(file, image=images, label=labels)
    command = [*SWEEP, "--extra-data", "more.npz", "--extra-fraction", "0.5"]
    cli.done(*command)
    assert "resuming" not in cli.done(*command).err
    np.savez(file, image=images, label=labels[::-1])
    changed = cli(*command)
    assert changed.code == 1 and "cannot resume runs/standard-" in changed.err


def test_a_sweep_attacks_its_own_model_whatever_else_has_the_name(cli: CommandLine) -> None:
    # In L2, like the attack, so that the bare name would be taken for this one.
    cli.done(*DIGITS, "--recipe", "standard", "--seed", "5", "--name", "standard-preactresnet10-w2", "--threat", "L2")
    command = [*SWEEP, "--recipe", "standard", "--attack", "pgd", "--attack-setting", "steps=1"]
    cli.done(*command, "--attack-norm", "L2", "--attack-eps", "0.5", "--run-dir", "others")
    (path,) = (cli.folder / "evaluations").rglob("*.json")
    card = read_record(cli.folder / "model_zoo/digits-8px/Linf/standard-preactresnet10-w2.json", ModelCard)
    assert read_record(path, EvaluationRecord).checkpoint_sha256 == card.weights.sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "sam", "--rho", "0.1,0.10"], "two runs of the sweep would be called"),
        (["--seed", ",".join(map(str, range(1001)))], "a sweep has 1 to 1,000 runs, not 1,001 (1001 seed)"),
        (["--seed", "0,,1"], "'0,,1' has an empty value"),
        (["--seed", "0,-1"], "seed"),
        (["--recipe", "sam,sma"], "unknown recipe 'sma'. Did you mean "),
        (["--rho", "0.1,0.2"], "--rho does not apply: it belongs to weights "),
        (["--eps", "1/255", "--attack", "pgd"], "the radius of the attack on the trained models is --attack-eps"),
        (["--attack", "pdg"], "unknown attack 'pdg'. Did you mean 'pgd'"),
        (["--attack", "pgd", "--attack-setting", "stepz=3"], "--attack-setting stepz does not apply to attack 'pgd'"),
        (["--attack", "pgd", "--attack-eps", "8"], "--attack-eps 8 is too large for Linf"),
        (["--attack-eps", "1/255"], "--attack-eps does nothing without --attack; add --attack pgd"),
        (["--n-examples", "20"], "--n-examples does nothing without --attack"),
        (["--attack", "pgd", "--attack-eps", ""], "--attack-eps names no radius"),
        (["--ray-address", "auto"], "--ray-address auto goes with --executor ray only"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_trained(
    cli: CommandLine, arguments: list[str], message: str
) -> None:
    assert message in cli.refused(*SWEEP, *arguments)


def test_settings_of_a_method_that_replaces_the_recipes_tell_runs_apart(cli: CommandLine) -> None:
    found = cli.done(*SWEEP, "--weights", "sam", "--rho", "0.1,0.2", "--json").json["runs"]
    assert [row["name"] for row in found] == [f"standard-sam-rho{rho}-preactresnet10-w2" for rho in ("01", "02")]


def test_two_sweeps_with_one_seed_each_do_not_share_a_name(cli: CommandLine) -> None:
    for seed in ("3", "4"):
        (row,) = cli.done(*SWEEP, "--seed", seed, "--json").json["runs"]
        assert row["name"] == f"standard-preactresnet10-w2-seed{seed}"


def test_a_setting_that_is_a_list_varies_at_semicolons(cli: CommandLine) -> None:
    command = [*SWEEP, "--epochs", "2", "--milestones", "0.5,0.75;0.5", "--schedule", "piecewise"]
    names = [row["name"] for row in cli.done(*command, "--json").json["runs"]]
    assert names == ["standard-preactresnet10-w2-milestones05-075", "standard-preactresnet10-w2-milestones05"]


values = st.lists(st.integers(0, 10_000), min_size=1, max_size=3, unique=True)


@given(seed=values, epochs=values.map(lambda each: [1 + one for one in each]), width=values)
@settings(max_examples=10, deadline=None)
def test_the_grid_is_the_product_of_its_values_and_names_differ(
    seed: list[int], epochs: list[int], width: list[int]
) -> None:
    runs = SweepSpec.of({"recipe": ["sam", "at"], "seed": seed, "epochs": epochs, "width": width}).runs()
    assert len(runs) == 2 * math.prod(map(len, (seed, epochs, width)))
    assert len({run.name for run in runs}) == len(runs) and all(len(run.name) <= 100 for run in runs)
    points = {
        (spec.recipe, spec.seed, spec.settings["epochs"], spec.arch_options["width"])
        for spec in (run.spec for run in runs)
    }
    assert len(points) == len(runs)


def test_a_name_too_long_is_cut_and_still_its_own() -> None:
    options = {f"option_{number}": "long" * 5 for number in range(6)}
    names = [run.name for run in SweepSpec.of({"seed": [0, 1]}, arch_options=options).runs()]
    assert len(set(names)) == 2 and {len(name) for name in names} == {100}


def test_an_unknown_setting_and_an_empty_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown setting 'rhoo'\. Did you mean 'rho'"):
        api.sweep({"rhoo": [1]}, run_dir=tmp_path)
    with pytest.raises(InputError, match=r"1 to 1,000 runs, not 0 \(0 seed\)"):
        api.sweep({"seed": []}, run_dir=tmp_path)
    for grid in ({"rho": 0.1}, {"recipe": "sam"}, {"rho": "12"}, {"recipe": None}):
        with pytest.raises(InputError, match=r"must be a list of values, as in {'rho': \[0.1, 0.2\]}, not "):
            api.sweep(grid, run_dir=tmp_path)
