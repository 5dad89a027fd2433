"""What a run says of itself when it starts."""

from __future__ import annotations

import pytest

from sam_bench.api.naming import describe
from sam_bench.records import ComponentSpec
from sam_bench.training import load_recipe


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("standard", "neither inputs nor weights perturbed; 100 epochs, batch size 128"),
        ("sam", "weights sam (rho 0.2); 100 epochs, batch size 128"),
        ("vit-sam", "weights sam (rho 0.2); images mixed (mixup 0.8, cutmix 1); 100 epochs, batch size 128"),
    ],
)
def test_a_run_says_what_it_perturbs_and_mixes(recipe: str, said: str) -> None:
    assert describe(load_recipe(recipe)) == said


def test_a_method_without_settings_has_no_brackets() -> None:
    recipe = load_recipe("standard").model_copy(update={"inputs": ComponentSpec(method="hers")})
    assert describe(recipe).startswith("inputs hers; ")
