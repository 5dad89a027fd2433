"""What a loop of one's own can get wrong is refused; before, it went on with other images, weights or steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weights_samples import data, net

from sam_bench.attacks import ATTACKS
from sam_bench.errors import InputError
from sam_bench.perturb import FGSM, INPUT_PERTURBATIONS, LESAM, PGD, SAM, GaussianNoise, InputPerturbation, StepContext
from sam_bench.records import ComponentSpec


def step(model: nn.Module | None = None, loss_fn: Any = F.cross_entropy, **how: Any) -> Tensor:
    return SAM(rho=0.1).step_gradients(model or net(), loss_fn, *data(), **how)


class Temperature(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.temperature = value

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits * self.temperature, y)


def test_a_loss_that_learns_is_refused_unless_the_model_has_its_parameters() -> None:
    learns = Temperature(nn.Parameter(torch.ones(())))
    with pytest.raises(InputError, match=r"loss_fn has a parameter that learns \(temperature\).*part of the model"):
        step(loss_fn=learns)
    step(loss_fn=Temperature(nn.Parameter(torch.ones(()), requires_grad=False)))
    model = net()
    model.register_parameter("temperature", learns.temperature)  # type: ignore[arg-type]
    step(model, learns)
    assert learns.temperature.grad is not None


class Wrapped(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.inner, self.kind = net(), kind

    def forward(self, x: Tensor) -> Any:
        return self.kind([("logits", self.inner(x))])


@pytest.mark.parametrize("kind", [dict, tuple])
def test_a_model_that_returns_no_tensor_is_refused(kind: type) -> None:
    with pytest.raises(InputError, match=f"model must return the logits as a tensor, not as {kind.__name__}"):
        step(Wrapped(kind))


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_a_microbatch_without_an_example_is_refused(micro_batch: int) -> None:
    with pytest.raises(InputError, match=f"micro_batch={micro_batch} must be at least 1"):
        step(micro_batch=micro_batch)


def test_a_step_outside_of_the_run_is_refused() -> None:
    inside = {"epochs": 2, "steps_per_epoch": 3, "seed": 0}
    for place in (-1, 6):
        with pytest.raises(InputError, match=f"step={place} is not in a run of 2 epochs with 3 steps each"):
            StepContext.at(place, **inside)
    LESAM().step_gradients(net(), F.cross_entropy, *data(), at=StepContext.at(5, **inside))


IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
METHODS = [PGD(steps=1), FGSM(), GaussianNoise()]


def perturbed(method: InputPerturbation, x: Tensor) -> Tensor:
    return method(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), x, torch.arange(4) % 3)


@pytest.mark.parametrize("method", METHODS, ids=lambda each: each.method)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((IMAGES - 0.5) / 0.25, r"x must be in \[0, 1\], not in \[-[12].*let the model normalise its inputs"),
        (IMAGES * 255, r"x must be in \[0, 1\], not in"),
        (IMAGES.where(IMAGES < 0.5, torch.nan), r"x must be in \[0, 1\], not in \[nan, nan\]"),
        ((IMAGES * 255).byte(), r"x must be floats in \[0, 1\], not uint8"),
    ],
    ids=["normalised", "0 to 255", "NaN", "bytes"],
)
def test_inputs_outside_of_the_box_are_refused(method: InputPerturbation, x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        perturbed(method, x)


def test_no_perturbation_takes_inputs_of_any_range() -> None:
    x = (IMAGES - 0.5) / 0.25
    assert torch.equal(perturbed(INPUT_PERTURBATIONS.build(ComponentSpec(method="none")), x), x)


def test_a_radius_in_units_of_255_is_refused() -> None:
    with pytest.raises(InputError, match=r"eps='8' is too large for Linf: .*, so you probably mean 8/255"):
        perturbed(PGD(eps=8), IMAGES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(rho=-1), "rho: must be greater than or equal to 0 (given: -1)"),
        (lambda: PGD(norm="linf"), "norm: must be 'Linf' or 'L2' (given: 'linf')"),
        (lambda: PGD(eps="8/x"), "eps: '8/x' is not a radius: write a number or a fraction such as 8/255"),
        (lambda: PGD(loss="kl", random_start=False), "loss: kl needs random_start: at the clean input its slope is "),
        (lambda: PGD(stepz=3), "unknown setting of PGD 'stepz'. Did you mean 'steps'"),
        (lambda: ATTACKS.get("pgd")(steps=0), "steps: must be greater than or equal to 1 (given: 0)"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence_that_names_it(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    # Nor does the traceback show pydantic's own text.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_sum_is_refused_where_passes_see_parts_of_the_batch() -> None:
    loss_fn = nn.CrossEntropyLoss(reduction="sum")
    for sam, micro_batch in ((SAM(rho=0.1), 5), (SAM(rho=0.1, m=4), None)):
        with pytest.raises(InputError, match=r"^loss_fn gives a sum, which is wrong for a part of a batch"):
            sam.step_gradients(net(), loss_fn, *data(), micro_batch=micro_batch)
    model, (x, y) = net(), data()
    SAM(rho=0.0).step_gradients(model, loss_fn, x, y)  # of the whole batch at once it is what it says
    expected = torch.autograd.grad(loss_fn(model(x), y), list(model.parameters()))
    assert all(torch.allclose(p.grad, each) for p, each in zip(model.parameters(), expected, strict=True))  # type: ignore[arg-type]


def test_class_weights_are_refused_in_a_mean_where_passes_see_parts_of_the_batch() -> None:
    weights = torch.tensor([1.0, 10.0, 1.0])
    model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
    SAM(rho=0.1).step_gradients(model, nn.CrossEntropyLoss(weight=weights), x, y)  # the whole batch's own mean
    for sam, micro_batch in ((SAM(rho=0.1), 5), (SAM(rho=0.1, m=4), None)):
        with pytest.raises(InputError, match=r"^loss_fn gives a mean weighted by class, and the means of parts"):
            sam.step_gradients(model, nn.CrossEntropyLoss(weight=weights), x, y, micro_batch=micro_batch)
        each = nn.CrossEntropyLoss(weight=weights, reduction="none")
        sam.step_gradients(model, each, x, y, micro_batch=micro_batch)


@pytest.mark.parametrize(
    ("loss_fn", "ignored"),
    [
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=2), 2),
        (F.cross_entropy, -100),
        (partial(F.cross_entropy, ignore_index=2), 2),
    ],
)
def test_ignored_labels_are_refused_in_a_mean_where_passes_see_parts_of_the_batch(loss_fn: Any, ignored: int) -> None:
    model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 2
    one = y.clone()
    one[6] = ignored
    SAM(rho=0.1).step_gradients(model, loss_fn, x, one)  # the whole batch's own mean
    for sam, micro_batch in ((SAM(rho=0.1), 5), (SAM(rho=0.1, m=4), None)):
        with pytest.raises(InputError, match=r"^loss_fn gives a mean over the labels that it does not ignore, and the"):
            sam.step_gradients(model, loss_fn, x, one, micro_batch=micro_batch)
        sam.step_gradients(model, loss_fn, x, y, micro_batch=micro_batch)  # none of these is ignored


def test_what_a_partial_function_sets_is_refused_likewise() -> None:
    model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
    for settings, what in (
        ({"weight": torch.arange(3.0)}, "a mean weighted by class"),
        ({"reduction": "sum"}, "a sum"),
    ):
        with pytest.raises(InputError, match=rf"^loss_fn gives {what}"):
            SAM(rho=0.1).step_gradients(model, partial(F.cross_entropy, **settings), x, y, micro_batch=5)
