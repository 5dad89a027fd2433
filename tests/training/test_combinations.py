"""Every sensible point of the plane trains; the rest is refused before anything runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from training_samples import Steps, assert_same, digits, method_of, tiny_net

from sam_bench.data import to_float
from sam_bench.errors import InputError
from sam_bench.perturb import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.training import PARTS, build_recipe, load_recipe, override, recipe_names

_QUICK = {"pgd": {"steps": 2}, "entropy-sgd": {"inner_steps": 2}, "swa": {"average_from": 0.0}}

SEARCHES: dict[str, dict[str, Any]] = {
    "restarts": {"inputs": "pgd", "steps": 2, "restarts": 2},
    "trades": {"inputs": "pgd", "steps": 2, "loss": "kl", "start": "gaussian", "objective": "trades"},
    "best in L2": {"inputs": "pgd", "steps": 2, "norm": "L2", "eps": 0.5, "iterate": "best"},
    "published BatchNorm": {"inputs": "pgd", "steps": 2, "bn_mode": "update"},
}


def trains(settings: dict[str, Any]) -> None:
    """Two steps move the weights and keep them finite; the pass counter is what the parts announce."""
    model = tiny_net().train()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    method = method_of("standard", settings)
    step = Steps(model, method, seed=0, precision="fp32")
    split = digits().head(16)
    for number in range(2):
        result = step.at(to_float(split.images), split.labels, step=number, progress=(number + 0.5) / 2)
        assert result.loss.isfinite() and 0 <= int(result.hits) <= 16 and result.gradient_norm.isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert (step.average is None) == (method.averaging.method == "none")
    forward, backward = method.search_passes  # none where the objective does not look
    assert (step.passes.attack_forward, step.passes.attack_backward) == (32 * forward, 32 * backward)


@pytest.mark.parametrize("weights", PARTS["weights"].names())
def test_every_combination_of_parts_trains_two_steps_or_is_refused_with_the_reason(weights: str) -> None:
    averages = PARTS["averaging"].names()
    refused = []
    pairs = itertools.product(enumerate(PARTS["inputs"].names()), enumerate(PARTS["objective"].names()))
    for (row, inputs), (column, objective) in pairs:
        average = averages[(row + column) % len(averages)]
        names = {"inputs": inputs, "weights": weights, "objective": objective, "averaging": average}
        settings = dict(names)
        for name in names.values():
            settings |= _QUICK.get(name, {})
        try:
            trains(settings)
        except InputError as error:
            refused.append((inputs, objective))
            assert f"objective '{objective}'" in str(error) and "choose inputs" in str(error)
    comparing = ("gradalign", "mart", "start-pairing", "trades")
    assert refused == [
        (inputs, objective)
        for inputs, objective in itertools.product(PARTS["inputs"].names(), PARTS["objective"].names())
        if (objective == "input-gradient" and inputs != "none") or (objective in comparing and inputs == "none")
    ]


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=list(SEARCHES))
@pytest.mark.parametrize("weights", ["none", "sam", "awp"])
def test_every_kind_of_search_trains_beside_a_weight_perturbation(weights: str, settings: dict[str, Any]) -> None:
    trains({"weights": weights, **settings})


@pytest.mark.parametrize("weights", [cls.method for cls in WEIGHT_PERTURBATIONS if issubclass(cls, Ascent)])
def test_at_rho_zero_a_weight_perturbation_is_none_beside_an_objective_of_several_passes(weights: str) -> None:
    """Dropout included: every pass of a step draws the same masks."""
    states, passes = [], []
    for chosen in ({}, {"weights": weights, "rho": 0} | ({"example_share": 1} if weights == "esam" else {})):
        recipe = override(load_recipe("trades"), {"batch_size": 16, "crop_padding": 1, "steps": 1, **chosen})
        model, split = tiny_net().train(), digits().head(16)
        method = build_recipe(recipe)
        step = Steps(model, method, seed=0, precision="fp32")
        for number in range(3):
            step.at(to_float(split.images), split.labels, step=number, progress=number / 3)
        states.append(model.state_dict())
        counted = step.passes.train_forward, step.passes.train_backward
        passes.append((counted, method.weights.passes_with(method.objective.passes)))
    assert_same(*states)
    if weights == "aace":
        (_, first), (counted, stated) = passes
        assert stated == (first[0] + 1, first[1] + 1)
        assert counted == (48 * stated[0], 48 * stated[1])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains_two_steps_on_the_smallest_of_networks(name: str) -> None:
    recipe = override(load_recipe(name), {"batch_size": 16, "crop_padding": 1})
    model = tiny_net().train()
    step = Steps(model, build_recipe(recipe), seed=0, precision="fp32")
    split = digits().head(16)
    for number in range(2):
        result = step.at(to_float(split.images), split.labels, step=number, progress=(number + 0.5) / 2)
        assert result.loss.isfinite()
