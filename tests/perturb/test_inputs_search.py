"""What a search of inputs promises beyond its ball: never to lose what it found, and the sources' own rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.perturb.inputs import (
    FGSM,
    INPUT_PERTURBATIONS,
    NFGSM,
    PGD,
    GaussianNoise,
    cross_entropy,
    input_gradient,
    kl_divergence,
)
from sam_bench.records import ComponentSpec
from sam_bench.seeds import generator, row_generator

norms = st.sampled_from(["Linf", "L2"])
seeds = st.integers(0, 1000)


def net(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layer: nn.Module = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), layer, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 25, 4)).double()


def images(seed: int = 0, count: int = 5) -> tuple[Tensor, Tensor]:
    draws = generator(seed, "images")
    x = torch.rand(count, 2, 5, 5, generator=draws, dtype=torch.float64)
    return x, torch.randint(4, (count,), generator=draws)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model(x), y)


@given(seed=seeds, norm=norms, restarts=st.integers(2, 4), size=st.floats(0.01, 2.0))
@settings(max_examples=25, deadline=None)
def test_each_further_restart_keeps_the_highest_loss_of_every_example(
    seed: int, norm: str, restarts: int, size: float
) -> None:
    model, (x, y) = net(seed).eval(), images(seed)
    attack: dict[str, Any] = {"norm": norm, "eps": 0.2, "steps": 3, "step_size": size}
    one = PGD(**attack).perturb(model, x, y, generator=generator(seed))
    fewer, more = (
        PGD(**attack, restarts=count).perturb(model, x, y, generator=generator(seed))
        for count in (restarts - 1, restarts)
    )
    assert (losses(model, more, y) >= losses(model, fewer, y)).all()
    assert (losses(model, fewer, y) >= losses(model, one, y)).all()


@given(seed=seeds, norm=norms, restarts=st.integers(1, 3), size=st.floats(0.05, 5.0), steps=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_the_best_iterate_is_the_highest_of_all_that_the_ascent_passed(
    seed: int, norm: str, restarts: int, size: float, steps: int
) -> None:
    """However large the step: what overshoots is not taken."""
    model, (x, y) = net(seed).eval(), images(seed)
    attack = PGD(norm=norm, eps=0.3, steps=steps, step_size=size, restarts=restarts, iterate="best")
    found = attack.perturb(model, x, y, generator=generator(seed))
    draws = generator(seed)
    passed = []
    for _ in range(restarts):
        x_adv = attack.ball.sample(x, draws)
        passed.append(x_adv)
        for _ in range(steps):
            x_adv = attack.ball.step(x_adv, x, input_gradient(model, x_adv, y)[1], size)
            passed.append(x_adv)
    highest = torch.stack([losses(model, point, y) for point in passed]).amax(0)
    torch.testing.assert_close(losses(model, found, y), highest, rtol=0, atol=1e-12)


@given(seed=seeds, norm=norms, eps=st.floats(0.001, 0.5), spec=st.sampled_from(["plain", "kl", "restarts", "best"]))
@settings(max_examples=30, deadline=None)
def test_every_search_stays_in_ball_and_box(seed: int, norm: str, eps: float, spec: str) -> None:
    extra: dict[str, dict[str, Any]] = {
        "plain": {},
        "kl": {"loss": "kl", "start": "gaussian"},
        "restarts": {"restarts": 2},
        "best": {"iterate": "best"},
    }
    x, y = images(seed)
    attack = PGD(norm=norm, eps=eps, steps=2, step_size=3 * eps, **extra[spec])
    found = attack.perturb(net(seed).eval(), x, y, generator=generator(seed))
    length = (found - x).flatten(1).norm(p=float("inf") if norm == "Linf" else 2, dim=1)
    assert (length <= eps + 1e-9).all() and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("bn_mode", ["eval", "train", "update"])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "pgd", "steps": 3},
        {"method": "pgd", "steps": 3, "restarts": 2},
        {"method": "pgd", "steps": 3, "iterate": "best"},
        {"method": "pgd", "steps": 3, "loss": "kl"},
        {"method": "pgd", "steps": 2, "loss": "kl", "restarts": 3, "iterate": "best"},
        {"method": "fgsm"},
        {"method": "n-fgsm"},
    ],
    ids=str,
)
def test_every_pass_is_counted_and_none_that_is_not_run(settings: dict[str, Any], bn_mode: str) -> None:
    attack = INPUT_PERTURBATIONS.build(ComponentSpec(**settings, bn_mode=bn_mode))
    model, (x, y) = net(norm=True).train(), images()
    forward, backward = [], []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        forward.append(1)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: backward.append(1))

    model.register_forward_hook(hook)
    before = int(model[1].num_batches_tracked)
    attack.perturb(model, x, y, generator=generator(0))
    assert (len(forward), len(backward)) == attack.passes
    moved = int(model[1].num_batches_tracked) - before
    assert moved == (attack.passes[0] if bn_mode == "update" else 0)


def test_kl_pgd_agrees_with_torchattacks_from_an_equal_start() -> None:
    model, (x, y) = net().eval(), images()
    ours = PGD(eps=8 / 255, step_size=2 / 255, steps=10, loss="kl", start="gaussian")
    found = ours.perturb(model, x, y, generator=generator(4))
    # Theirs draws its start from the global stream: the same numbers, by giving that stream our seed.
    torch.manual_seed(generator(4).initial_seed())
    theirs = torchattacks.TPGD(model, eps=8 / 255, alpha=2 / 255, steps=10)(x, y)
    assert (found - theirs).abs().max() < 1e-5
    assert (found - x).abs().max() > 4 / 255


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_kl_divergence_is_torchs_and_zero_only_at_the_same_prediction(seed: int) -> None:
    draws = generator(seed)
    clean, other = (20 * torch.randn(6, 5, generator=draws, dtype=torch.float64) for _ in range(2))
    expected = F.kl_div(other.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(clean, other), expected, rtol=1e-9, atol=1e-12)
    assert (kl_divergence(clean, other) > 0).all()
    assert torch.equal(kl_divergence(clean, clean + 3).abs() < 1e-12, torch.ones(6, dtype=torch.bool))


def test_kl_divergence_of_sure_predictions_in_half_precision_is_finite_with_its_gradient() -> None:
    clean = torch.tensor([[90.0, -90.0], [80.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    other = torch.tensor([[-90.0, 90.0], [0.0, 80.0]], dtype=torch.bfloat16, requires_grad=True)
    found = kl_divergence(clean, other)
    found.sum().backward()
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx([180, 80])
    assert clean.grad.isfinite().all() and other.grad.isfinite().all()


@pytest.mark.parametrize("loss", [cross_entropy, lambda logits, y: kl_divergence(torch.ones(5, 4).double(), logits)])
def test_the_slope_climbed_is_that_of_finite_differences(loss: Any) -> None:
    model, (x, y) = net().eval(), images()
    _, gradient = input_gradient(model, x, y, loss)
    direction = torch.randn(x.shape, generator=generator("direction"), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        rise = (loss(model(x + step * direction), y) - loss(model(x - step * direction), y)) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), rise, rtol=1e-6, atol=1e-8)


def test_n_fgsm_steps_from_noise_outside_the_ball_and_is_not_clipped_to_it() -> None:
    model, (x, y) = net().eval(), images()
    x = 0.3 + 0.4 * x  # the box is out of reach
    attack = NFGSM(eps=0.05)
    found = attack.perturb(model, x, y, generator=generator(1))
    noise = 2 * 0.05 * (2 * torch.rand(x.shape, generator=generator(1), dtype=x.dtype) - 1)
    _, gradient = input_gradient(model, x + noise, y)
    torch.testing.assert_close(found, x + noise + 0.05 * gradient.sign(), rtol=0, atol=1e-12)
    assert (found - x).abs().max() > 2 * 0.05 and attack.reach == pytest.approx(0.15)
    assert attack.ball.eps == 0.05


def test_n_fgsm_without_noise_is_fgsm_without_a_random_start() -> None:
    model, (x, y) = net().eval(), images()
    plain = FGSM(random_start=False, step_size="8/255")
    found = NFGSM(noise_eps=0).perturb(model, x, y, generator=generator(1))
    torch.testing.assert_close(found, plain.perturb(model, x, y, generator=generator(1)), rtol=0, atol=1e-15)


def test_gaussian_noise_has_the_deviation_asked_for_and_asks_no_model() -> None:
    x = torch.full((40, 2, 16, 16), 0.5)
    noisy = GaussianNoise(std=0.1).perturb(nn.Identity(), x, torch.zeros(40), generator=generator(0))
    assert (noisy - x).std().item() == pytest.approx(0.1, rel=0.03)
    assert (noisy - x).mean().abs() < 0.003
    assert GaussianNoise(std=0.5).perturb(nn.Identity(), x, torch.zeros(40), generator=generator(0)).max() == 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    "spec",
    [
        {"method": "fgsm"},
        {"method": "n-fgsm"},
        {"method": "fgsm-pgi"},
        {"method": "pgd", "steps": 2, "restarts": 2},
        {"method": "pgd", "steps": 2, "loss": "kl", "start": "gaussian"},
        {"method": "gaussian"},
    ],
    ids=str,
)
def test_an_example_moves_the_same_way_in_whatever_part_of_its_batch(spec: dict[str, Any], norm: str) -> None:
    if spec["method"] != "gaussian":
        spec = spec | {"norm": norm, "eps": "8/255"}
    attack = INPUT_PERTURBATIONS.build(ComponentSpec(**spec))
    model, (x, y) = net().eval(), images(count=8)
    parts = []
    for first, last in ((0, 8), (0, 3), (3, 8)):
        if first == 0:
            attack.forget()
        draws = row_generator(5, first=first, total=8)
        parts.append(attack.perturb(model, x[first:last], y[first:last], generator=draws))
    torch.testing.assert_close(torch.cat(parts[1:]), parts[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"loss": "kl", "random_start": False}, r"inputs\.loss: kl needs random_start: .*slope is zero"),
        ({"restarts": 2, "random_start": False}, r"inputs\.restarts: more than one needs random_start"),
        ({"restarts": 0}, r"inputs\.restarts: must be greater than or equal to 1"),
        ({"loss": "hinge"}, r"inputs\.loss: must be 'cross-entropy' or 'kl'"),
        ({"bn_mode": "on"}, r"inputs\.bn_mode: must be 'train', 'eval' or 'update'"),
    ],
)
def test_a_search_that_cannot_work_is_refused_with_the_reason(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        INPUT_PERTURBATIONS.build(ComponentSpec(method="pgd", **spec))


def test_settings_in_a_dictionary_make_the_perturbation() -> None:
    assert PGD.model_validate({"steps": 3}) == PGD(steps=3)
