"""Perturbations in somebody's own loop: what the training step would learn, with autocast, DDP and any loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from team import run_as_team
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from weights_samples import build, data, largest_difference, net, plain_gradient

from sam_bench import perturb
from sam_bench.errors import InputError
from sam_bench.perturb import ASAM, ESAM, INPUT_PERTURBATIONS, PGD, SAM, WEIGHT_PERTURBATIONS, LookSAM, StepContext
from sam_bench.training import build_recipe, load_recipe, override
from sam_bench.training.step import TrainingStep

STEPS = 6


def batches() -> list[tuple[Tensor, Tensor]]:
    return [data(number, torch.float32) for number in range(STEPS)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", WEIGHT_PERTURBATIONS.names())
def test_a_loop_of_ones_own_learns_what_the_training_step_learns(method: str, precision: Any) -> None:
    recipe = build_recipe(override(load_recipe("standard"), {"weights": method, "schedule": "constant"}))
    ours, mine = (net(batch_norm=True, dtype=torch.float32) for _ in range(2))
    step = TrainingStep(ours, recipe, precision=precision, micro_batch=5)
    optimizer = recipe.optimizer.build(mine.parameters())
    own, loss_fn = build(method), nn.CrossEntropyLoss(reduction="none")
    for number, (x, y) in enumerate(batches()):
        at = StepContext.at(number, epochs=2, steps_per_epoch=3, seed=4)
        assert at == StepContext(seed=4, epoch=number // 3, step=number, progress=number / STEPS)
        expected = step(x, y, at=at).loss
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            mine.eval()(x)  # autocast now holds copies of the weights for the rest of the region
            loss = own.step_gradients(mine.train(), loss_fn, x, y, at=at, micro_batch=5, optimizer=optimizer)
        optimizer.step()
        assert torch.equal(loss, expected) and not loss.requires_grad
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), mine.parameters(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(ours.buffers(), mine.buffers(), strict=True))


def test_in_one_autocast_region_the_second_pass_sees_the_perturbed_weights() -> None:
    model, (x, y) = net(dtype=torch.float32), data(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SAM(rho=0.5).step_gradients(model, F.cross_entropy, x, y)
        assert torch.is_autocast_enabled("cpu")
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    plain = plain_gradient(model, x, y)
    SAM(rho=0.5).step_gradients(model, F.cross_entropy, x, y)
    exact = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert 0 < largest_difference(found, exact) < 0.1 * largest_difference(plain, exact)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_a_mean_loss_and_one_loss_per_example_give_the_same_gradient(micro_batch: int | None) -> None:
    (x, y), gradients = data(), []
    for loss_fn in (F.cross_entropy, nn.CrossEntropyLoss(reduction="none")):
        model = net()
        loss = ASAM(rho=0.2).step_gradients(model, loss_fn, x, y, micro_batch=micro_batch)
        assert loss.item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert largest_difference(*gradients) < 1e-12


def test_another_loss_than_the_cross_entropy_is_what_is_differentiated() -> None:
    model, (x, y) = net(), data()
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.3)
    SAM(rho=0.0).step_gradients(model, smoothed, x, y)
    expected = torch.autograd.grad(smoothed(model(x), y), list(model.parameters()))
    assert largest_difference([p.grad for p in model.parameters() if p.grad is not None], expected) < 1e-15


def test_all_passes_of_a_step_drop_out_the_same_units_and_the_next_step_others() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)).double().train(), data()
    kept: list[Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, output: kept.append(output != 0))
    for _ in range(2):
        SAM(rho=0.01).step_gradients(model, F.cross_entropy, x, y)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[2], kept[3]) and not torch.equal(kept[0], kept[2])


def test_a_method_that_depends_on_the_step_is_refused_without_it() -> None:
    model, (x, y) = net(), data()
    for method in (LookSAM(), SAM(interval=2), SAM(start_epoch=1), ESAM(), build("noise"), build("ssam")):
        with pytest.raises(InputError, match=r"^at must be given, because this method depends on the step; for exam"):
            method.step_gradients(model, nn.CrossEntropyLoss(reduction="none"), x, y)


def test_a_loss_that_cannot_be_used_is_refused() -> None:
    model, (x, y) = net(), data()
    with pytest.raises(InputError, match=r"loss_fn gives a tensor of shape \(12, 3\); it must give the mean loss, or"):
        SAM().step_gradients(model, lambda logits, y: logits, x, y)
    with pytest.raises(InputError, match=r"loss_fn must give one loss per example for this method; use reduction='n"):
        ESAM().step_gradients(model, F.cross_entropy, x, y, at=StepContext(seed=0, epoch=0, step=0, progress=0.0))
    with pytest.raises(InputError, match="a batch of 12 images has 11 labels"):
        SAM().step_gradients(model, F.cross_entropy, x, y[1:])


def test_a_task_that_is_no_classification_is_learned_too() -> None:
    x = data()[0]
    segments = nn.Sequential(nn.Unflatten(1, (1, 6, 1)), nn.Conv2d(1, 3, 1)).double()
    y = torch.arange(6).view(1, 6, 1).expand(len(x), 6, 1) % 3
    for model, loss_fn, labels in (
        (nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).double(), F.binary_cross_entropy_with_logits, x[:, 0].sigmoid()),
        (segments, F.cross_entropy, y),
    ):
        before = loss_fn(model(x), labels).item()
        assert SAM(rho=0.1).step_gradients(model, loss_fn, x, labels).item() > before * 0.5
        assert all(each.grad is not None for each in model.parameters())


def test_the_mean_loss_will_do_where_no_examples_are_compared() -> None:
    model, (x, y) = net(), data()
    at = StepContext(seed=0, epoch=0, step=0, progress=0.0)
    means = build("rwp", noisy_weight=1.0).step_gradients(model, F.cross_entropy, x, y, at=at)
    each = build("rwp", noisy_weight=1.0).step_gradients(model, nn.CrossEntropyLoss(reduction="none"), x, y, at=at)
    assert means.item() == pytest.approx(each.item())


def test_the_mean_over_one_image_is_its_own_loss() -> None:
    model, (x, y) = net(), data()
    at = StepContext(seed=0, epoch=0, step=0, progress=0.0)
    results: list[torch.Tensor] = []
    for loss_fn in (F.cross_entropy, nn.CrossEntropyLoss(reduction="none")):
        ESAM().step_gradients(model, loss_fn, x[:1], y[:1], at=at)
        results.append(torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]))
    assert torch.equal(results[0], results[1])


class Sharded(nn.Linear):
    """Looks like a model whose devices each have a part of the weights."""

    def no_sync(self) -> None: ...


def test_sharded_weights_are_refused() -> None:
    with pytest.raises(InputError, match="needs all of them on every device; use DistributedDataParallel"):
        SAM().step_gradients(Sharded(6, 3).double(), F.cross_entropy, *data())


def test_calling_an_input_perturbation_draws_from_the_global_generator() -> None:
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    pgd, found = PGD(eps="8/255", steps=2), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(pgd(model, x, y))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    given = [pgd(model, x, y, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*given) and (given[0] - x).abs().max() <= 8 / 255 + 1e-6


SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_own_loop import LOOPS, learned
from sam_bench.distributed import joined

with joined() as team:
    torch.save({name: learned(name, team.rank, team.size) for name in LOOPS}, f"{sys.argv[2]}/{team.rank}.pt")
"""

LOOPS = ("sam", "sam bf16", "sam-at", "own ascents", "own groups")


def learned(name: str, rank: int = 0, size: int = 1) -> list[Tensor]:
    """The weights after some steps on batches of 12, which two processes share."""
    bf16 = name.endswith("bf16")
    dtype = torch.float32 if bf16 else torch.float64
    model: nn.Module = net(dtype=dtype, seed=2)
    if size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pgd, sam = PGD(eps="8/255", steps=3, random_start=False), SAM(rho=0.1)
    if name == "own groups":
        sam = SAM(rho=0.1, m=3)
    for whole, labels in batches():
        x, y = whole[rank::size].to(dtype).sigmoid(), labels[rank::size]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            x_adv = pgd(model, x, y) if name == "sam-at" else x
            sam.step_gradients(model, F.cross_entropy, x_adv, y, sync_ascent="own" not in name, micro_batch=4)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.slow
def test_two_processes_under_ddp_learn_the_same_and_what_one_would(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert tuple(first) == LOOPS
    for name, weights in first.items():
        assert all(torch.equal(one, other) for one, other in zip(weights, second[name], strict=True)), name
        apart = largest_difference(weights, learned(name))
        if "own" in name:
            assert apart > 1e-6  # several ascents, each along a part of the batch
        else:
            assert apart < (2e-2 if name.endswith("bf16") else 1e-12), name


@pytest.mark.parametrize("registry", [INPUT_PERTURBATIONS, WEIGHT_PERTURBATIONS], ids=["inputs", "weights"])
def test_every_method_can_be_imported_for_a_loop_of_ones_own(registry: Any) -> None:
    classes = {registry.get(name).__name__ for name in registry.names() if name != "none"}
    assert classes <= set(perturb.__all__)
