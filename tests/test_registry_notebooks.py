"""A cell of a notebook that registers something can be run again; another's name stays taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from torch import Tensor, nn

from sam_bench.models import register_architecture
from sam_bench.models import registry as architectures
from sam_bench.perturb import WEIGHT_PERTURBATIONS, BatchLoss
from sam_bench.perturb.weights.ascent import Ascent


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    yield
    WEIGHT_PERTURBATIONS._classes.pop("mine", None)
    architectures._ENTRIES.pop("mine", None)


def method_cell(value: float = 0.0) -> type[Ascent]:
    @WEIGHT_PERTURBATIONS.register("mine")
    class Mine(Ascent):
        rho: float = value

        def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None: ...

    return Mine


def architecture_cell() -> Callable[..., nn.Module]:
    @register_architecture("mine")
    def mine(*, num_classes: int) -> nn.Module:
        return nn.Identity()

    return mine


def test_a_method_that_is_defined_again_replaces_the_one_before() -> None:
    method_cell()
    again = method_cell(0.5)
    assert WEIGHT_PERTURBATIONS.get("mine") is again

    class Other(Ascent):
        pass

    with pytest.raises(ValueError, match="weight perturbation 'mine' is registered twice"):
        WEIGHT_PERTURBATIONS.register("mine")(Other)


def test_an_architecture_that_is_defined_again_replaces_the_one_before() -> None:
    architecture_cell()
    again: Any = architecture_cell()
    assert architectures._ENTRIES["mine"].build is again

    def other(*, num_classes: int) -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match="architecture 'mine' is registered twice"):
        register_architecture("mine")(other)
