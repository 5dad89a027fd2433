"""Recipes: what ships is valid, overrides land where they belong, and nonsense is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sam_bench.errors import InputError
from sam_bench.perturb.inputs import PGD
from sam_bench.records import Augmentation, Recipe
from sam_bench.training import (
    PARTS,
    build_recipe,
    load_recipe,
    override,
    recipe_names,
    recipe_text,
    settings_of_methods,
)
from sam_bench.training.build import PLAIN
from sam_bench.training.recipes import ALIASES, faithful_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_builds_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.summary and recipe.source and recipe.good_for
    method = build_recipe(recipe)
    again = Recipe.model_validate_json(method.recipe.model_dump_json())
    assert again == method.recipe
    assert build_recipe(again).recipe == method.recipe


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_recipe_says_of_its_cost_is_what_it_costs(name: str) -> None:
    words = {2: "twice", 6: "six times", 11: "eleven times", 12: "twelve times"}
    cost = round(build_recipe(load_recipe(name)).passes_per_epoch, 3)
    said = [number for number, word in words.items() if word in load_recipe(name).good_for]
    said += [float(number) for number in re.findall(r"([\d.]+) times (?:the cost|that) of", load_recipe(name).good_for)]
    assert all(number == pytest.approx(cost) for number in said)
    assert said or cost <= 2


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("at", {"eps": "4/255"}, {"eps": "4/255", "step_size": "1/255"}),  # as in at-linf-4
        ("at", {"inputs.eps": 0.1}, {"eps": "0.1", "step_size": "0.025"}),
        ("at", {"eps": "4/255", "step_size": "2/255"}, {"eps": "4/255", "step_size": "2/255"}),
        ("at", {"eps": "8/255"}, {"eps": "8/255", "step_size": "2/255"}),
        ("at-l2-32", {"eps": "1/255"}, {"eps": "1/255", "step_size": "0.5/255"}),
        ("fast-at", {"eps": "4/255"}, {"eps": "4/255", "step_size": "5/255"}),
        ("n-fgsm", {"eps": "1/255"}, {"eps": "1/255", "step_size": "1/255", "noise_eps": "2/255"}),
        ("n-fgsm", {"eps": "1/255", "noise_eps": "1/255"}, {"step_size": "1/255", "noise_eps": "1/255"}),
        ("at", {"inputs": "fgsm", "eps": "1/255"}, {"eps": "1/255", "step_size": None}),
    ],
)
def test_steps_and_noise_stay_in_proportion_to_a_new_radius(
    name: str, settings: dict[str, Any], expected: dict[str, str | None]
) -> None:
    found = build_recipe(override(load_recipe(name), settings)).recipe.inputs.settings
    assert {key: None if found[key] is None else str(found[key]) for key in expected} == expected


def test_a_perturbation_that_would_begin_after_the_end_is_refused() -> None:
    short = override(load_recipe("trades-awp"), {"epochs": 9})
    with pytest.raises(InputError, match="start_epoch=9 is not before the end of 9 epochs, so that awp would never "):
        build_recipe(short)
    assert build_recipe(override(short, {"start_epoch": 8})).recipe.epochs == 9
    assert build_recipe(override(load_recipe("trades-awp"), {"epochs": 10})).recipe.epochs == 10


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_a_recipe_is_found_by_its_other_names(alias: str, name: str) -> None:
    assert load_recipe(alias) == load_recipe(name) and recipe_text(alias) == recipe_text(name)
    assert alias not in recipe_names()


def test_the_grid_of_radii_is_the_extensions() -> None:
    """Linf and L2, radius, steps and step size in 1/255, as the published table has them."""
    linf = {"1": (5, 0.5), "2": (5, 1.0), "4": (10, 1.0), "8": (10, 2.0)}
    l2 = {"16": (5, 8.0), "32": (5, 16.0), "64": (5, 32.0), "128": (5, 64.0)}
    for norm, grid in (("Linf", linf), ("L2", l2)):
        for eps, (steps, size) in grid.items():
            attack = build_recipe(load_recipe(f"at-{norm.lower()}-{eps}")).inputs
            assert isinstance(attack, PGD) and attack.norm == norm and attack.steps == steps
            assert attack.eps * 255 == pytest.approx(float(eps)) and attack.step_size is not None
            assert attack.step_size * 255 == pytest.approx(size)


@pytest.mark.parametrize("name", faithful_names())
def test_a_faithful_recipe_differs_in_what_its_file_says_and_nothing_else(name: str, tmp_path: Path) -> None:
    published = yaml.safe_load(recipe_text(name))["faithful"]
    plain, faithful = (build_recipe(load_recipe(name, faithful=given)).recipe for given in (False, True))
    assert (plain.name, faithful.name) == (name, f"{name}-faithful")
    changed = {
        setting: value
        for part in PARTS
        for setting, value in getattr(faithful, part).settings.items()
        if value != getattr(plain, part).settings.get(setting)
    }
    assert changed == {key: str(value) if key in ("eps", "step_size") else value for key, value in published.items()}
    assert faithful.augmentation == plain.augmentation and faithful.epochs == plain.epochs
    shown = tmp_path / "shown.yaml"
    shown.write_text(recipe_text(name, faithful=True))
    assert build_recipe(load_recipe(shown)).recipe == faithful


def test_the_faithful_gradalign_peaks_where_its_authors_script_does() -> None:
    faithful = build_recipe(load_recipe("gradalign", faithful=True))
    assert faithful.schedule.factor(0.4) == 1 and faithful.schedule.factor(0.7) == pytest.approx(0.5)


def test_the_papers_recipes_have_a_faithful_form_and_others_say_which_have() -> None:
    assert {"standard", "sam", "at", "sam-at"} <= set(faithful_names())
    with pytest.raises(InputError, match=r"faithful does not apply: recipe asam has none; .*at, .*sam, .*have"):
        load_recipe("asam", faithful=True)


def test_the_three_methods_are_points_on_the_two_axes() -> None:
    names = ("standard", "sam", "at")
    points = {name: (load_recipe(name).inputs.method, load_recipe(name).weights.method) for name in names}
    assert points == {"standard": ("none", "none"), "sam": ("none", "sam"), "at": ("pgd", "none")}


def test_bare_dotted_and_part_overrides_land_where_they_belong() -> None:
    recipe = override(
        load_recipe("sam"),
        {"rho": "0.4", "optimizer.lr": 0.05, "epochs": "3", "flip": False, "schedule": "one-cycle", "peak": 0.2},
    )
    method = build_recipe(recipe)
    assert method.weights.model_dump()["rho"] == 0.4
    assert method.optimizer.lr == 0.05 and method.recipe.epochs == 3 and not method.recipe.augmentation.flip
    assert method.schedule.method == "one-cycle" and method.schedule.model_dump()["peak"] == 0.2


def test_a_recipe_with_a_part_replaced_is_no_longer_described_in_its_own_words() -> None:
    at = load_recipe("at")
    assert override(at, {"eps": "4/255", "weights": "none"}).summary == at.summary
    changed = override(at, {"weights": "awp", "averaging": "ema"})
    assert changed.summary == "the recipe at with weights awp, averaging ema"
    assert changed.good_for == "" and changed.source == f"{at.source}; changed: weights awp, averaging ema"


def test_a_new_method_on_an_axis_brings_its_own_settings() -> None:
    method = build_recipe(override(load_recipe("standard"), {"weights": "sam", "rho": 0.1, "inputs": "fgsm"}))
    assert method.recipe.weights.settings["rho"] == 0.1
    assert method.recipe.inputs.settings["eps"] == "8/255"


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("standard", {"rho": 0.1}, r"rho does not apply: it belongs to weights 'aace', .*'sam'"),
        (
            "sam",
            {"step_size": 0.1},
            r"step_size does not apply: it belongs to inputs 'fgsm', 'fgsm-pgi', 'free', 'n-fgsm'",
        ),
        ("sam", {"rhoo": 0.1}, r"unknown setting 'rhoo'. Did you mean 'rho'"),
        ("sam", {"weight.rho": 0.1}, r"unknown part of a recipe 'weight'. Did you mean 'weights'"),
        ("sam", {"weights": "samm"}, r"unknown weight perturbation 'samm'. Did you mean 'sam'"),
        ("sam", {"rho": "big"}, r"weights\.rho: .*number.*'big'"),
        ("sam", {"epochs": 0}, r"epochs: .*greater than or equal to 1"),
        ("sam", {"padding_mode": "circular"}, r"padding_mode: .*'reflect' or 'zeros'"),
        ("sam", {"lr": -1}, r"optimizer\.lr: .*greater than 0"),
        ("sam", {"rho": True}, r"weights\.rho: must be a number, not true"),
        ("at", {"steps": True}, r"inputs\.steps: must be a number, not true"),
        ("sam", {"m": False}, r"weights\.m: must be a number, not false"),
        ("standard", {"mixup": True}, r"mixup: must be a number, not true"),
        ("standard", {"weights": {"method": "sam"}}, "weights must be the name of a method, not {.*}; its settings"),
        ("standard", {"weights": None}, "weights must be the name of a method, not None"),
    ],
)
def test_a_wrong_override_is_named(recipe: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_recipe(override(load_recipe(recipe), settings))


def test_a_users_yaml_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "gentle.yaml"
    path.write_text("summary: a gentle SAM\nweights: {method: sam, rho: 0.03}\nepochs: 2\n")
    recipe = load_recipe(path)
    assert recipe.name == "gentle" and build_recipe(recipe).recipe.weights.settings["rho"] == 0.03
    assert load_recipe(str(path)) == recipe
    assert recipe_text(str(path)) == path.read_text()


def test_a_users_yaml_needs_no_field(tmp_path: Path) -> None:
    """What is left out is as in `standard`; the file gives the name."""
    path = tmp_path / "plain.yaml"
    path.write_text("{}")
    texts = {"name": "plain", "summary": "the recipe plain", "good_for": "", "source": ""}
    expected = build_recipe(load_recipe("standard")).recipe.model_copy(update=texts)
    assert build_recipe(load_recipe(path)).recipe == expected


def test_a_file_whose_name_is_no_recipes_name_can_have_one(tmp_path: Path) -> None:
    path = tmp_path / "my recipe.yaml"
    path.write_text("epochs: 2\n")
    with pytest.raises(InputError, match=r"'my recipe' is not a usable name: .*; rename the file, or add name: to it$"):
        load_recipe(path)
    path.write_text("name: mine\nepochs: 2\n")
    assert load_recipe(path).name == "mine"
    path.write_text("name: my recipe\n")
    with pytest.raises(InputError, match=r"'my recipe' is not a usable name: .* at most 100 characters$"):
        load_recipe(path)


def test_a_wrong_faithful_setting_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("inputs: {method: pgd}\nfaithful: {bn_mod: update}\n")
    with pytest.raises(InputError, match=r"mine\.yaml: unknown setting 'bn_mod'\. Did you mean 'bn_mode'"):
        load_recipe(path, faithful=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("summary: x\nepoch: 3\n", "unknown field 'epoch'. Did you mean 'epochs'"),
        ("- a\n", "must be a mapping"),
        ("summary: [\n", "is not YAML"),
        ("summary: x\nfaithful: bn_mode\n", "faithful must be a mapping of settings"),
        ("summary: x\nweights: {rho: 1}\n", "weights.method: Field required"),
        ("weights:\n", r"weights must be a mapping such as \{method: none\}"),
        ("rho: 0.1\n", r"rho is a setting of weights; write weights: \{method: …, rho: …\}"),
        ("flip: false\n", r"flip is a setting of augmentation; write augmentation: \{flip: …\}"),
        ("weights: {method: sam, rho: big}\n", "weights.rho: must be a valid number"),
        ("weights: {method: sam, rho: on}\n", "weights.rho: must be a number, not true"),
        ("weights: {method: none, rho: 1}\n", "weights.rho: weight perturbation 'none' takes no settings"),
        ("weights: {method: sam, roh: 1}\n", "weights: unknown setting of sam 'roh'. Did you mean 'rho'"),
        ("augmentation: {flop: true}\n", "augmentation: unknown setting 'flop'. Did you mean 'flip'"),
        ("weights:\n  method: sam\n  rho: 0,05\n", r"weights.rho: a number has no comma; decimals .* 0\.05"),
        ("weights: {method: sam, rho: 0,05}\n", r"weights: 5 is not the name of a setting; .* decimals take a point"),
        ("epochs: 1,000\n", "epochs: a number has no comma"),
    ],
)
def test_a_wrong_yaml_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"mine.yaml.*{message}"):
        load_recipe(path)


def test_unknown_recipes_and_missing_files_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"unknown recipe 'sma'. Did you mean .*'sam'.*Available: .*at, .*at-pgd10, .*sam, .*standard"
    ):
        load_recipe("sma")
    with pytest.raises(InputError, match=r"cannot read recipe nowhere\.yaml"):
        load_recipe("nowhere.yaml")


def test_a_settings_name_means_one_thing_only() -> None:
    """The command line offers a setting by its bare name: two parts must not share one."""
    for name, owners in settings_of_methods().items():
        assert len({part for part, _, _ in owners}) == 1, name
        assert name not in PLAIN and name not in PARTS and name not in Augmentation.model_fields
        assert all(field.description for _, _, field in owners), name
