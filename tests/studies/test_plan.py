"""Plans: the committed one, what is refused, and the jobs that follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_samples import content, opened, written

from sam_bench.api import TrainSpec
from sam_bench.errors import InputError
from sam_bench.studies.estimate import estimate, passes_of
from sam_bench.studies.jobs import Measurement, Model
from sam_bench.studies.numbers import numbers_of
from sam_bench.studies.opening import open_study
from sam_bench.studies.plan import load_plan
from sam_bench.studies.results import read_study
from sam_bench.studies.runner import part_of


def _tiny(folder: Path) -> Any:
    return open_study(load_plan(), "tiny", folder=folder, dataset="cifar10-jpeg.npz", precision="fp32", device="cpu")


@pytest.mark.parametrize(
    ("scale", "models"), [("smoke", 13), ("tiny", 75), ("small", 46), ("full", 87), ("full-wrn", 27)]
)
def test_the_committed_plan_has_so_many_models_at_each_scale(tmp_path: Path, scale: str, models: int) -> None:
    study = open_study(load_plan(), scale, folder=tmp_path, dataset="mine.npz", precision="fp32")
    jobs = study.jobs()
    assert len({job.name for job in jobs}) == len(jobs)
    assert sum(isinstance(job, Model) for job in jobs) == models
    for row in study.rows:
        study.training(Model(row, 0))


def test_a_training_is_the_run_that_the_command_line_makes(tmp_path: Path) -> None:
    typed = TrainSpec(
        recipe="sam",
        dataset="cifar10-jpeg.npz",
        settings={"rho": 0.2, "epochs": 8},
        arch_options={"width": 8},
        limit_train=10000,
        validation=0,
        precision="fp32",
        seed=3,
    )
    assert _tiny(tmp_path).training(Model("sam-02", 3)).first_difference(typed) is None


def test_a_row_may_have_another_network_of_the_same_width(tmp_path: Path) -> None:
    study = _tiny(tmp_path)
    spec = study.training(Model("input-gradient-1", 0))
    assert spec.arch_options == {"width": 8, "activation": "silu"}
    assert study.training(Model("standard", 0)).arch_options == {"width": 8}


def test_the_largest_scale_is_on_a_wide_network_and_says_so(tmp_path: Path) -> None:
    study = open_study(load_plan(), "full-wrn", folder=tmp_path, dataset="mine.npz", precision="fp32")
    spec = study.training(Model("sam-02", 0))
    assert (spec.arch, spec.arch_options) == ("wideresnet", {"depth": 28, "width": 10})
    assert numbers_of(read_study(study))["about"]["network"] == "WideResNet-28-10"
    assert passes_of(study, "sam-02") == 200


def test_a_row_of_twice_the_epochs_has_them(tmp_path: Path) -> None:
    assert _tiny(tmp_path).training(Model("standard-twice", 0)).method.recipe.epochs == 16


def test_the_main_rows_come_first_seed_by_seed_and_a_model_before_its_measurements(tmp_path: Path) -> None:
    study = _tiny(tmp_path)
    jobs = study.jobs()
    models = [job for job in jobs if isinstance(job, Model)]
    main = [row for row, each in study.rows.items() if each.seeds == "main"]
    assert models[: len(main)] == [Model(row, 0) for row in main]
    for kind in (True, False):
        seeds = [model.seed for model in models if (model.row in main) == kind]
        assert seeds == sorted(seeds)
    for job in jobs:
        if isinstance(job, Measurement):
            assert jobs.index(job.model) < jobs.index(job)


def test_all_rows_are_attacked_by_pgd_before_anything_dearer_is_measured(tmp_path: Path) -> None:
    names = [job.evaluation if isinstance(job, Measurement) else "" for job in _tiny(tmp_path).jobs()]
    dear = names.index("pgd-matched")
    assert set(names[:dear]) == {"", "clean", "pgd-linf", "pgd-l2"}
    assert set(names[dear:]) == {"pgd-matched", "autoattack", "published-fault", "minimum-norm"}


def test_what_is_for_main_rows_or_some_rows_only_is_measured_on_those(tmp_path: Path) -> None:
    study = _tiny(tmp_path)
    assert set(study.evaluations("sam-02")) == set(study.plan.evaluations)
    assert set(study.evaluations("at")) == {"pgd-linf", "pgd-l2", "autoattack"}


def test_the_parts_share_all_jobs_and_have_none_in_common(tmp_path: Path) -> None:
    jobs = _tiny(tmp_path).jobs()
    parts = [part_of(jobs, part, 3) for part in (1, 2, 3)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)
    assert max(map(len, parts)) - min(map(len, parts)) < 25
    with pytest.raises(InputError, match="part='4/3' must be 1/3 to 3/3"):
        part_of(jobs, 4, 3)


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(plan: dict[str, Any]) -> None:
        for name in path[:-1]:
            plan = plan[name]
        if to is None:
            del plan[path[-1]]
        else:
            plan[path[-1]] = to

    return change


_PASSES = {"rule": "passes", "a": "sam", "b": "standard", "ratio": 2}
_AT_2 = {"rule": "more", "a": "sam-02", "b": "standard", "of": "pgd-linf", "eps": ["2/255"], "least": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("rows", "sam-02", "colour", to="red"), "rows.sam-02.colour: Extra inputs are not permitted"),
        (_set("rows", "sam-02", "strength", to="much"), "rows.sam-02.strength: 'much' is not a radius"),
        (_set("rows", "sam-02", "seeds", to="many"), "rows.sam-02.seeds: must be 'main' or 'other'"),
        (_set("rows", "standard", to=None), "rows has no row standard"),
        (_set("evaluations", "pgd-linf", "eps", to=[]), "evaluations.pgd-linf: must have eps exactly if"),
        (_set("evaluations", "pgd-linf", "measure", to="minimum-norm"), "must have either attack or measure"),
        (_set("evaluations", "pgd-linf", "only", to=["sma"]), "evaluations.pgd-linf.only names 'sma'"),
        (_set("scales", "mini", "rows", to=["sma"]), "scales.mini.rows names 'sma', which is not there; there are st"),
        (_set("scales", "mini", "first", to={}), "scales.mini.first.pgd-linf must be a number of test images"),
        (_set("scales", "mini", "width", to=0), "scales.mini.width: must be greater than or equal to 1"),
        (_set("statistics", "level", to=2), "statistics"),
        (_set("statistics", "seed", to=-1), "statistics"),
        (_set("claims", "C1", "parts", to=[]), "claims.C1.parts"),
        (_set("claims", "C4", "parts", to=[_PASSES]), "claims.C4 names 'sam', which is not there"),
        (_set("claims", "C1", "parts", to=[_AT_2]), "claims.C1 asks for pgd-linf at 2/255, a radius that is not"),
        (_set("version", to=2), "version: must be 1"),
    ],
)
def test_a_mistake_in_a_plan_is_told_with_its_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    plan = content()
    change(plan)
    with pytest.raises(InputError) as refused:
        load_plan(written(tmp_path, plan))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_recipe_that_does_not_exist_is_told_with_its_row(tmp_path: Path) -> None:
    plan = content()
    plan["rows"]["sam-02"]["recipe"] = "sma"
    study = opened(tmp_path / "study", plan)
    with pytest.raises(InputError, match=r"row sam-02 of the plan cannot be trained: .*'sma'"):
        study.training(Model("sam-02", 0))


def test_a_folder_is_of_one_study(tmp_path: Path) -> None:
    _tiny(tmp_path)
    with pytest.raises(InputError, match="holds the study with scale tiny, not small"):
        open_study(load_plan(), "small", folder=tmp_path, dataset="cifar10-jpeg.npz")
    with pytest.raises(InputError, match="holds the study with precision fp32, not bf16"):
        open_study(load_plan(), "tiny", folder=tmp_path, dataset="cifar10-jpeg.npz", precision="bf16")
    kept = open_study(load_plan(), "tiny", folder=tmp_path, read_only=True)
    assert (kept.dataset_name, kept.precision) == ("cifar10-jpeg", "fp32")


def test_a_data_set_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scale tiny is on cifar10-jpeg: give its FILE\.npz"):
        open_study(load_plan(), "tiny", folder=tmp_path)
    unread = open_study(load_plan(), "tiny", folder=tmp_path, read_only=True)
    with pytest.raises(InputError, match=r"scale tiny is on cifar10-jpeg: give its FILE\.npz"):
        estimate(unread)
