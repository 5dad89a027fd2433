"""One training step: what it counts, what precision leaves alone, and which weights a second pass sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_samples import Steps, digits, method_of, tiny_net

from sam_bench.data import to_float
from sam_bench.device import true_float32
from sam_bench.errors import InputError
from sam_bench.models import architecture_for, create_model
from sam_bench.perturb.inputs import InputPerturbation, cross_entropy
from sam_bench.perturb.weights import global_norm
from sam_bench.seeds import derive_seed
from sam_bench.training import PARTS
from sam_bench.training.step import Passes


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    split = digits().head(count)
    return to_float(split.images), split.labels


class Counter:
    """Examples that went through a network, forward and back, by whether its weights were being learned."""

    def __init__(self, model: nn.Module) -> None:
        self.passes = Passes()
        self._model, self._examples = model, 0
        model.register_forward_hook(self._forward)
        total = sum(parameter.numel() for parameter in model.parameters())
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: self._weigh(gradient.numel() / total))

    def _forward(self, model: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        side = "train" if any(parameter.requires_grad for parameter in model.parameters()) else "attack"
        self._add(f"{side}_forward", len(logits))
        self._examples = len(logits)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._add(f"{side}_backward", len(gradient)))

    def _weigh(self, share: float) -> None:
        self.passes.weight_gradients += share * self._examples

    def matches(self, counted: Passes) -> bool:
        """Whether what was counted is what was run; shares of weights up to the rounding of their sums."""
        exact = replace(counted, weight_gradients=self.passes.weight_gradients) == self.passes
        return exact and counted.weight_gradients == pytest.approx(self.passes.weight_gradients)

    def _add(self, field: str, examples: int) -> None:
        setattr(self.passes, field, getattr(self.passes, field) + examples)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 1, 0, 0)),
        ({"weights": "sam"}, (2, 2, 0, 0)),
        ({"inputs": "pgd", "steps": 3}, (1, 1, 3, 3)),
        ({"inputs": "fgsm"}, (1, 1, 1, 1)),
        ({"inputs": "pgd", "steps": 3, "weights": "sam"}, (2, 2, 3, 3)),
    ],
    ids=["standard", "sam", "at", "fast-at", "sam+at"],
)
def test_the_passes_counted_are_the_passes_run(settings: dict[str, Any], expected: tuple[int, ...]) -> None:
    model = tiny_net().train()
    counter = Counter(model)
    step = Steps(model, method_of("standard", settings), seed=0, precision="fp32")
    for number, size in enumerate((16, 16, 5)):
        step.at(*batch(size), step=number, progress=number / 3)
    assert counter.matches(step.passes)
    found = (
        step.passes.train_forward,
        step.passes.train_backward,
        step.passes.attack_forward,
        step.passes.attack_backward,
    )
    assert found == tuple(37 * each for each in expected)


@pytest.mark.parametrize("inputs", PARTS["inputs"].names())
@pytest.mark.parametrize("weights", PARTS["weights"].names())
def test_every_pair_counts_what_it_runs_in_bfloat16_too(inputs: str, weights: str) -> None:
    model = tiny_net().train()
    counter = Counter(model)
    step = Steps(model, method_of("standard", {"inputs": inputs, "weights": weights}), seed=0, precision="bf16")
    for number in range(2):
        loss = step.at(*batch(), step=number, progress=number / 2).loss
        assert loss.dtype == torch.float32 and bool(loss.isfinite())
    assert counter.matches(step.passes)
    state = [*model.state_dict().values(), *(parameter.grad for parameter in model.parameters())]
    state += [value for slots in step.optimizer.state.values() for value in slots.values() if isinstance(value, Tensor)]
    assert {tensor.dtype for tensor in state} <= {torch.float32, torch.int64}


def test_gradients_that_are_not_computed_are_not_counted() -> None:
    model = tiny_net().train()
    last = [*model.parameters()][-2:]
    share = sum(each.numel() for each in last) / sum(each.numel() for each in model.parameters())
    counted = []
    for settings in ({}, {"perturb_only": "last"}):
        step = Steps(model, method_of("sam", settings), seed=0, precision="fp32")
        step.at(*batch(16), step=0, progress=0)
        assert step.passes.train_backward == 32
        counted.append(step.passes.weight_gradients)
    assert counted == pytest.approx([32, 16 * (1 + share)])


def plain_gradient(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
    """The gradient at the network's present weights, in bfloat16 and an autocast region of its own."""
    torch.manual_seed(derive_seed(seed, "step", 0))
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    cross_entropy(logits, y).mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_sams_second_pass_in_bfloat16_is_taken_at_the_perturbed_weights() -> None:
    """Autocast caches its bfloat16 copies of the weights: with the first pass's, SAM would be SGD in disguise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)).train()
    probe, (x, y) = copy.deepcopy(model), batch()
    step = Steps(model, method_of("sam", {"rho": 0.5}), seed=7, precision="bf16")
    step.at(x, y, step=0, progress=0.5)
    taken = [parameter.grad for parameter in model.parameters()]

    at_w = plain_gradient(probe, x, y, 7)
    scale = 0.5 / (global_norm(at_w) + 1e-12)
    with torch.no_grad():
        for parameter, gradient in zip(probe.parameters(), at_w, strict=True):
            parameter.add_(gradient * scale)
    perturbed = plain_gradient(probe, x, y, 7)
    for ours, expected, unperturbed in zip(taken, perturbed, at_w, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
        assert (expected - unperturbed).abs().max() > 0.05 * unperturbed.abs().max()


@pytest.mark.parametrize("around", [true_float32, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_steps_in_bfloat16_see_their_own_weights_in_a_callers_region(around: Callable[[], Any]) -> None:
    learned = []
    for region in (nullcontext, around):
        model = tiny_net().train()
        step = Steps(model, method_of("sam", {"rho": 0.5}), seed=0, precision="bf16")
        with region():
            for number in range(3):
                step.at(*batch(), step=number, progress=0.0)
        learned.append([*model.parameters()])
    assert all(torch.equal(alone, inside) for alone, inside in zip(*learned, strict=True))


def test_bfloat16_changes_the_gradient_a_little_and_only_a_little() -> None:
    gradients = {}
    for precision in ("fp32", "bf16"):
        model = tiny_net().train()
        Steps(model, method_of(), seed=0, precision=precision).at(*batch(), step=0, progress=0.5)
        gradients[precision] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    difference = (gradients["fp32"] - gradients["bf16"]).norm() / gradients["fp32"].norm()
    assert 1e-5 < difference < 0.05


def test_a_step_is_a_function_of_its_number_whatever_was_drawn_before() -> None:
    outcomes = []
    for noise in (0, 5):
        model = tiny_net().train()
        step = Steps(model, method_of("at", {"steps": 2}), seed=0, precision="fp32")
        torch.rand(noise)
        result = step.at(*batch(), step=3, progress=0.3)
        outcomes.append([result.loss, result.hits, *model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def test_the_loss_and_hits_reported_are_those_at_the_unperturbed_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    x, y = batch()
    with torch.no_grad():
        logits = model(x)
    step = Steps(model, method_of("sam", {"rho": 1.0}), seed=0, precision="fp32")
    result = step.at(x, y, step=0, progress=0.0)
    assert result.loss.item() == pytest.approx(cross_entropy(logits, y).mean().item(), rel=1e-6)
    assert result.hits.item() == (logits.argmax(1) == y).sum().item()


@pytest.mark.parametrize(
    ("weights", "ascends"), [("none", False), ("noise", False), ("sam", True), ("asam", True), ("looksam", True)]
)
def test_the_norms_reported_are_those_of_the_gradients_before_and_after_the_ascent(weights: str, ascends: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    x, y = batch()
    plain = global_norm(torch.autograd.grad(cross_entropy(model(x), y).mean(), list(model.parameters())))
    step = Steps(model, method_of("standard", {"weights": weights}), seed=0, precision="fp32")
    result = step.at(x, y, step=0, progress=0.0)
    used = global_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(result.gradient_norm, used)
    assert (result.ascent_norm is not None) == ascends
    if result.ascent_norm is not None:
        torch.testing.assert_close(result.ascent_norm, plain)
        assert not torch.allclose(result.gradient_norm, plain)
    elif weights == "none":
        torch.testing.assert_close(result.gradient_norm, plain)


@pytest.mark.slow
def test_a_compiled_step_learns_the_same_weights() -> None:
    x, y = batch()
    weights = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)).train()
        step = Steps(model, method_of("sam"), seed=0, precision="fp32", compiled=compiled)
        for number in range(4):
            step.at(x, y, step=number, progress=number / 4)
        weights[compiled] = model.state_dict()
    assert list(weights[True]) == list(weights[False])
    for name, value in weights[False].items():
        # The running statistics among them: SAM's second pass must leave them alone when compiled, too.
        torch.testing.assert_close(weights[True][name], value, rtol=0, atol=1e-4)


def test_normalisation_stays_in_float32_under_bfloat16() -> None:
    architecture = architecture_for(
        "preactresnet10", num_classes=10, in_channels=1, image_size=8, mean=(0.3,), std=(0.4,), options={"width": 2}
    )
    model = create_model(architecture).train()
    seen: dict[str, torch.dtype] = {}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            kind = type(module).__name__
            module.register_forward_hook(lambda m, i, out, kind=kind: seen.update({kind: out.dtype}))
    Steps(model, method_of(), seed=0, precision="bf16").at(*batch(), step=0, progress=0.0)
    assert seen["Conv2d"] == torch.bfloat16
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.running_mean.dtype == torch.float32 for norm in norms if norm.running_mean is not None)


class Cropping(InputPerturbation):
    """Loses a row of pixels, which a network that pools would not notice."""

    method = "cropping"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x[:, :, 1:]


def test_an_input_perturbation_that_changes_the_images_shape_is_refused() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))
    step = Steps(model, replace(method_of(), inputs=Cropping()), seed=0, precision="fp32")
    with pytest.raises(
        InputError, match=r"'cropping' makes inputs of shape \[16, 1, 7, 8\] of images .* \[16, 1, 8, 8\]"
    ):
        step.at(*batch(), step=0, progress=0.0)
