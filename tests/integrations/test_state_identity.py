"""A state file goes on only with the model, images, norm and radius it was begun with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import robustbench
import torch
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.integrations.autoattack_adapter import AutoAttack
from sam_bench.integrations.state import EvaluationState
from sam_bench.integrations.state_identity import identity_of

Cut = Callable[[Any], Any]


@pytest.fixture
def short(shorten: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """RobustBench's AutoAttack with its iterations cut."""
    original = robustbench.eval.AutoAttack
    monkeypatch.setattr(robustbench.eval, "AutoAttack", lambda *args, **kwargs: shorten(original(*args, **kwargs)))


class Masked(nn.Module):
    """The same logits, with an input gradient that is a tenth of the true one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(0.1 * x + (0.9 * x).detach())


class Shifted(nn.Module):
    """The same weights behind another normalisation, which stands in a plain attribute."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.2) / 0.7)


def retrained(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    return other


@pytest.mark.usefixtures("short")
def test_benchmark_refuses_the_state_of_another_model_and_of_another_radius(
    model: nn.Module, data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    settings: dict[str, Any] = {"n_examples": 8, "data_dir": str(data_dir), "aa_state_path": path}
    robustbench.benchmark(model, eps=0.08, **settings)
    before = path.read_text()
    with pytest.raises(InputError, match=r"state\.json belongs to a run on a model with other weights; delete it"):
        robustbench.benchmark(retrained(model), eps=0.08, **settings)
    with pytest.raises(InputError, match=r"belongs to a run at eps 0\.08, not 0\.3"):
        robustbench.benchmark(model, eps=0.3, **settings)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "L2"}, "in norm Linf, not L2"),
        ({"eps": 0.05}, r"at eps 0\.08, not 0\.05"),
        ({"x": 1}, "on other images or labels"),
        ({"y": 1}, "on other images or labels"),
        ({"model": retrained}, "on a model with other weights"),
        ({"model": Shifted}, "on a model with equal weights and other logits"),
        ({"model": Masked}, "on a model with equal logits and another input gradient"),
    ],
    ids=["norm", "eps", "images", "labels", "weights", "normalisation", "gradient"],
)
def test_a_state_of_another_run_is_refused_with_what_differs(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    x, y = batch[0][:8], batch[1][:8]
    path = tmp_path / "state.json"
    settings: dict[str, Any] = {"norm": "Linf", "eps": 0.08, "verbose": False, "seed": 0}
    shorten(AutoAttack(model, **settings)).run_standard_evaluation(x, y, state_path=path)
    other = change.pop("model", lambda same: same)(model)
    x, y = (x.flip(0) if change.pop("x", 0) else x), (y.flip(0) if change.pop("y", 0) else y)
    with pytest.raises(InputError, match=f"belongs to a run {message}; delete it"):
        AutoAttack(other, **(settings | change)).run_standard_evaluation(x, y, state_path=path)


def test_the_same_run_goes_on_when_wrapped_rounded_random_or_without_a_gradient(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path
) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x + torch.rand_like(x))

    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.detach()) * (1 + 1e-4)

    x, y = batch[0][:6], batch[1][:6]
    settings: dict[str, Any] = {"eps": 0.08, "verbose": False, "version": "custom", "attacks_to_run": ["square"]}
    pairs = [(model, nn.DataParallel(model)), (Noisy(), Noisy()), (Rounding(), Rounding()), (model.forward,) * 2]
    for number, (first, second) in enumerate(pairs):
        path = tmp_path / f"{number}.json"
        shorten(AutoAttack(first, **settings)).run_standard_evaluation(x, y, state_path=path)
        shorten(AutoAttack(second, **settings)).run_standard_evaluation(x, y, state_path=path)


def test_the_state_of_a_model_with_other_noise_is_refused(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path
) -> None:
    def noisy(size: float) -> Callable[[Tensor], Tensor]:
        return lambda x: model(x + size * torch.rand_like(x))

    x, y = batch[0][:6], batch[1][:6]
    settings: dict[str, Any] = {"eps": 0.08, "verbose": False, "version": "custom", "attacks_to_run": ["square"]}
    path = tmp_path / "state.json"
    shorten(AutoAttack(noisy(0.1), **settings)).run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(InputError, match="other logits; delete it"):
        AutoAttack(noisy(0.9), **settings).run_standard_evaluation(x, y, state_path=path)


def test_asking_a_model_who_it_is_changes_neither_it_nor_the_images_nor_what_is_drawn_next(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    def in_place(x: Tensor) -> Tensor:
        torch.rand(3)
        return model(x.sub_(0.5))

    x, y = batch
    kept, drawn = x.clone(), torch.get_rng_state()
    one = identity_of(in_place, in_place, x, y, norm="L2", eps=1.0, device="cpu")
    assert one.gradients is not None and min(one.gradients) > 0
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_state_that_does_not_say_what_it_belongs_to_is_taken_with_a_warning(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path
) -> None:
    x, y = batch[0][:6], batch[1][:6]
    path = tmp_path / "state.json"
    shorten(AutoAttack(model, eps=0.08, verbose=False)).run_standard_evaluation(x, y, state_path=path)
    content = json.loads(path.read_text())
    del content["_identity"]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="does not say which model, images, norm and eps"):
        AutoAttack(model, eps=0.08, verbose=False).run_standard_evaluation(x, y, state_path=path)
    assert EvaluationState.from_disk(path).identity is None


@pytest.mark.parametrize(("first", "then"), [(2, 6), (6, 2)])
def test_a_run_resumed_with_another_batch_size_attacks_every_example(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path, first: int, then: int
) -> None:
    class Killed(nn.Module):
        """The model, until an attack's second batch begins; then the process is killed."""

        def forward(self, x: Tensor) -> Tensor:
            if path.exists():
                running = json.loads(path.read_text()).get("_running")
                if running is not None and running["batches_done"]:
                    raise KeyboardInterrupt
            return model(x)

    x, y = batch
    path = tmp_path / "state.json"
    settings: dict[str, Any] = {"eps": 1.0, "seed": 0, "verbose": False, "version": "custom"}
    one_attack = {**settings, "attacks_to_run": ["apgd-ce"]}
    with pytest.raises(KeyboardInterrupt):
        shorten(AutoAttack(Killed(), **one_attack)).run_standard_evaluation(x, y, bs=first, state_path=path)
    content = json.loads(path.read_text())
    assert content["_running"]["batch_size"] == first and sum(content["_robust_flags"]) > 12
    del content["_identity"]  # that of the killed one
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="does not say"):
        shorten(AutoAttack(model, **one_attack)).run_standard_evaluation(x, y, bs=then, state_path=path)
    assert EvaluationState.from_disk(path).robust_accuracy == 0
