"""Recipes: what ships is valid, overrides land where they belong, and nonsense is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_bench.errors import InputError
from sam_bench.records import Augmentation, Recipe
from sam_bench.training import PARTS, build_method, load_recipe, override, recipe_names, settings_of_methods
from sam_bench.training.method import PLAIN


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_builds_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.summary and recipe.source and recipe.good_for
    method = build_method(recipe)
    again = Recipe.model_validate_json(method.recipe.model_dump_json())
    assert again == method.recipe
    assert build_method(again).recipe == method.recipe


def test_the_three_methods_are_points_on_the_two_axes() -> None:
    names = ("standard", "sam", "at")
    points = {name: (load_recipe(name).inputs.method, load_recipe(name).weights.method) for name in names}
    assert points == {"standard": ("none", "none"), "sam": ("none", "sam"), "at": ("pgd", "none")}


def test_bare_dotted_and_part_overrides_land_where_they_belong() -> None:
    recipe = override(
        load_recipe("sam"),
        {"rho": "0.4", "optimizer.lr": 0.05, "epochs": "3", "flip": False, "schedule": "one-cycle", "peak": 0.2},
    )
    method = build_method(recipe)
    assert method.weights.model_dump() == {"rho": 0.4}
    assert method.optimizer.lr == 0.05 and method.recipe.epochs == 3 and not method.recipe.augmentation.flip
    assert method.schedule.method == "one-cycle" and method.schedule.model_dump()["peak"] == 0.2


def test_a_new_method_on_an_axis_brings_its_own_settings() -> None:
    method = build_method(override(load_recipe("standard"), {"weights": "sam", "rho": 0.1, "inputs": "fgsm"}))
    assert method.recipe.weights.settings["rho"] == 0.1
    assert method.recipe.inputs.settings["eps"] == "8/255"


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("standard", {"rho": 0.1}, r"--rho does not apply: it belongs to weights 'sam'"),
        ("sam", {"step_size": 0.1}, r"--step-size does not apply: it belongs to inputs 'fgsm', inputs 'pgd'"),
        ("sam", {"rhoo": 0.1}, r"unknown setting 'rhoo'. Did you mean 'rho'"),
        ("sam", {"weight.rho": 0.1}, r"unknown part of a recipe 'weight'. Did you mean 'weights'"),
        ("sam", {"weights": "samm"}, r"unknown weight perturbation 'samm'. Did you mean 'sam'"),
        ("sam", {"rho": "big"}, r"weights\.rho: .*number.*'big'"),
        ("sam", {"epochs": 0}, r"epochs: .*greater than or equal to 1"),
        ("sam", {"padding_mode": "circular"}, r"padding_mode: .*'reflect' or 'zeros'"),
        ("sam", {"lr": -1}, r"optimizer\.lr: .*greater than 0"),
    ],
)
def test_a_wrong_override_is_named(recipe: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_method(override(load_recipe(recipe), settings))


def test_a_users_yaml_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "gentle.yaml"
    path.write_text("summary: a gentle SAM\nweights: {method: sam, rho: 0.03}\nepochs: 2\n")
    recipe = load_recipe(path)
    assert recipe.name == "gentle" and build_method(recipe).recipe.weights.settings == {"rho": 0.03}
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("summary: x\nepoch: 3\n", "unknown field 'epoch'. Did you mean 'epochs'"),
        ("- a\n", "must be a mapping"),
        ("summary: [\n", "is not YAML"),
        ("epochs: 3\n", "summary: Field required"),
        ("summary: x\nweights: {rho: 1}\n", "weights.method: Field required"),
    ],
)
def test_a_wrong_yaml_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"mine.yaml.*{message}"):
        load_recipe(path)


def test_unknown_recipes_and_missing_files_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'sma'. Did you mean 'sam'.*Available: at, sam, standard"):
        load_recipe("sma")
    with pytest.raises(InputError, match=r"cannot read recipe nowhere\.yaml"):
        load_recipe("nowhere.yaml")


def test_a_settings_name_means_one_thing_only() -> None:
    """The command line offers a setting by its bare name: two parts must not share one."""
    for name, owners in settings_of_methods().items():
        assert len({part for part, _, _ in owners}) == 1, name
        assert name not in PLAIN and name not in PARTS and name not in Augmentation.model_fields
        assert all(field.description for _, _, field in owners), name
