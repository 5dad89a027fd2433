"""Validation: what it measures, and that it asks no more of the device's memory than learning does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_samples import digits, method_of, run, tiny_net

from sam_bench import api
from sam_bench.models.normalize import NormalizedModel
from sam_bench.perturb.inputs import PGD
from sam_bench.records import Radius
from sam_bench.training.validate import ROBUST_EXAMPLES, validate


class Watched(nn.Module):
    """Remembers what it was given: the clean images that it judged, and those whose gradient was wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()
        self.learned, self.judged, self.attacked = list[Tensor](), list[Tensor](), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        given = self.learned if self.training else self.attacked if x.requires_grad else self.judged
        given.append(x.detach().clone())
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize(("micro_batch", "most"), [(4, 4), (None, 32), (64, 32)])
def test_validation_takes_no_more_examples_at_a_time_than_learning(
    micro_batch: int | None, most: int, tmp_path: Path
) -> None:
    model, split = Watched(), digits().select(torch.arange(100, 700))
    method = method_of("standard", {"epochs": 1, "batch_size": 32})
    run(tmp_path, method, train=digits().head(64), validation=split, model=model, micro_batch=micro_batch)
    for given in (model.learned, model.judged, model.attacked):
        assert max(len(x) for x in given) == most
    assert sum(len(x) for x in model.attacked) == 10 * ROBUST_EXAMPLES


@pytest.mark.parametrize(("micro_batch", "most"), [(4, 4), (None, 32)])
def test_the_test_at_the_end_takes_no_more_examples_at_a_time_than_learning(
    micro_batch: int | None, most: int, tmp_path: Path
) -> None:
    judged: list[int] = []

    def watch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(module, NormalizedModel) and not module.training:
            judged.append(len(given[0]))

    hook = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        card = api.train(
            "standard",
            "digits-8px",
            arch="preactresnet10",
            arch_options={"width": 2},
            settings={"epochs": 1, "batch_size": 32, "crop_padding": 0},
            limit_train=64,
            validation=0,
            micro_batch=micro_batch,
            run_dir=tmp_path / "run",
            zoo=tmp_path / "zoo",
        ).card
    finally:
        hook.remove()
    tried, *tested = judged  # the new network is tried on a few images before anything is learned
    assert tried == 4 and sum(tested) == 500 and max(tested) == most
    assert 0 < card.clean_accuracy < 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_figures_do_not_depend_on_how_many_are_taken_at_a_time(norm: str) -> None:
    split, found, starts = digits().select(torch.arange(300, 900)), [], []
    pgd = PGD(norm=norm, eps=Radius("0.1"), steps=1, bn_mode="eval")
    for at_a_time in (256, 512, 100, 7):
        model = Watched()
        found.append(validate(model, split, pgd, seed=3, at_a_time=at_a_time))
        starts.append(torch.cat(model.attacked))
    for start, figures in zip(starts[1:], found[1:], strict=True):
        assert torch.equal(start, starts[0])
        # Rounding may decide an example that lies at the boundary.
        assert abs(figures.clean - found[0].clean) <= 1 / len(split)
        assert abs(figures.robust - found[0].robust) <= 2 / ROBUST_EXAMPLES
