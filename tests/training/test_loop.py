"""The loop: what a run is a function of, what it looks at, what it says when it fails, and that it learns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_samples import assert_same, digits, method_of, run, saved, tiny_net, weights_of

from sam_bench import api
from sam_bench.data import Batches, hold_out, load_dataset
from sam_bench.errors import InputError, SamBenchError
from sam_bench.models import NormalizedModel
from sam_bench.records import Radius, read_record
from sam_bench.training import RunConfig
from sam_bench.training.schedules import SCHEDULES


@pytest.mark.parametrize("recipe", ["sam", "at"])
def test_equal_seeds_give_bitwise_equal_weights_and_others_do_not(recipe: str, tmp_path: Path) -> None:
    settings = {"steps": 2} if recipe == "at" else {}
    first, again, other = (
        run(tmp_path / str(number), method_of(recipe, settings), seed=seed, model=tiny_net(0))
        for number, seed in enumerate((3, 3, 4))
    )
    assert_same(saved(tmp_path / "0"), saved(tmp_path / "1"))
    assert_same(weights_of(first), weights_of(again))
    # The same initial weights: what differs is order, augmentation, dropout and random starts.
    assert not any(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(other), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_the_schedule_is_applied_at_every_step_and_ends_the_same_whatever_the_last_batch(
    schedule: str, tmp_path: Path
) -> None:
    rates: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        method = method_of("standard", {"schedule": schedule, "lr": 0.05, "epochs": 3, "warmup": 0.2})
        run(tmp_path, method, train=digits().head(20))  # batches of 8, 8 and 4
    finally:
        handle.remove()
    assert rates == pytest.approx([0.05 * method.schedule.factor(step / 9) for step in range(9)])
    assert [row["learning_rate"] for row in saved(tmp_path)["state"]["log"]] == pytest.approx(rates[2::3])


def test_the_log_says_what_was_learned_and_what_it_took(tmp_path: Path) -> None:
    train, validation = hold_out(digits().head(60), 20, 0)
    trained = run(tmp_path, method_of("sam"), train=train, validation=validation)
    for row in trained.state.log:
        assert 0 <= row["validation_robust_accuracy"] <= row["validation_accuracy"] <= 1
        assert 0 <= row["train_accuracy"] <= 1 and row["loss"] > 0 and row["images_per_second"] > 0
    assert trained.state.passes.train_forward == trained.state.passes.train_backward == 2 * 2 * len(train)


def test_cudnn_looks_for_the_fastest_convolutions_where_is_learned_only(tmp_path: Path) -> None:
    model, cudnn, seen = tiny_net(), torch.backends.cudnn, set()
    model.register_forward_pre_hook(lambda net, _: seen.add((net.training, cudnn.benchmark, cudnn.deterministic)))
    train, validation = hold_out(digits().head(40), 16, 0)
    run(tmp_path, method_of(), model=model, train=train, validation=validation)
    assert seen == {(True, True, False), (False, False, True)}
    assert not cudnn.benchmark and not cudnn.deterministic


def test_the_log_has_the_norms_of_the_gradients_and_those_of_ascents_from_the_epoch_they_begin_in(
    tmp_path: Path,
) -> None:
    log = run(tmp_path, method_of("sam", {"start_epoch": 1, "epochs": 2})).state.log
    assert [row["gradient_norm"] > 0 for row in log] == [True, True]
    assert ["ascent_gradient_norm" in row for row in log] == [False, True] and log[1]["ascent_gradient_norm"] > 0
    head, first, second = (tmp_path / "log.csv").read_text().splitlines()
    assert head.endswith(",ascent_gradient_norm") and first.endswith(",") and not second.endswith(",")


def test_validation_changes_nothing_of_what_is_learned(tmp_path: Path) -> None:
    train, validation = hold_out(digits().head(40), 16, 0)
    watched = run(tmp_path / "watched", method_of("at", {"steps": 2}), train=train, validation=validation)
    alone = run(tmp_path / "alone", method_of("at", {"steps": 2}), train=train)
    assert_same(dict(watched.model.state_dict()), dict(alone.model.state_dict()))


class Exploding(nn.Module):
    """Logits that become NaN from a certain batch on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.head, self.left = nn.Linear(64, 10), after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        logits: Tensor = self.head(x.flatten(1))
        return logits * float("nan") if self.left < 0 else logits


@pytest.mark.parametrize(
    ("after", "last"), [(1, "no checkpoint was"), (4, r"last good checkpoint is .*checkpoint\.pt")]
)
def test_a_loss_that_is_nan_stops_the_run_and_names_the_last_good_checkpoint(
    after: int, last: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    message = rf"diverged: the loss became NaN or infinite at step {after} at learning rate 0\..*; .*{last}.*lr"
    with pytest.raises(SamBenchError, match=message) as caught:
        run(tmp_path, method_of("standard"), model=Exploding(after))
    assert caught.value.exit_code == 1
    assert (tmp_path / "checkpoint.pt").exists() == (after >= 3)


def test_weights_that_overflow_in_the_last_step_are_no_good_checkpoint(tmp_path: Path) -> None:
    """The loss of a step is that before it: the checkpoint of an epoch could hold NaN with no loss that shows it."""
    method = method_of("standard", {"schedule": "constant", "lr": 1e38, "batch_size": 32, "epochs": 2})
    with pytest.raises(SamBenchError, match=r"became NaN or infinite in epoch 1; no checkpoint was saved"):
        run(tmp_path, method, train=digits().head(24), model=nn.Sequential(nn.Flatten(), Scaled()))
    assert not (tmp_path / "checkpoint.pt").exists()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return 1e3 * (x @ self.weight)


@contextmanager
def watching() -> Iterator[list[tuple[bool, Tensor]]]:
    """Every batch that goes into a model of ours, with whether it was in training mode."""
    seen: list[tuple[bool, Tensor]] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, NormalizedModel):
            seen.append((module.training, inputs[0].detach().clone()))

    handle = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def rows(images: Tensor) -> set[bytes]:
    """Each image as bytes, so that images can be looked for."""
    pixels = (images * 255).round().to(torch.uint8) if images.is_floating_point() else images
    return {image.contiguous().numpy().tobytes() for image in pixels}


def npz(path: Path, *, test_seed: int) -> Path:
    draws, test = np.random.RandomState(0), np.random.RandomState(test_seed)
    np.savez(
        path,
        x_train=draws.randint(0, 256, (48, 8, 8, 3), dtype=np.uint8),
        y_train=np.arange(48) % 4,
        x_test=test.randint(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        y_test=np.arange(12) % 4,
    )
    return path


def train_on(data: Path, folder: Path, **options: Any) -> api.TrainResult:
    given: dict[str, Any] = {
        "arch": "preactresnet10",
        "arch_options": {"width": 2},
        "settings": {"epochs": 2, "batch_size": 16, "crop_padding": 0, "flip": False},
        "precision": "fp32",
        "name": "run",
        "dataset_name": "noise",
        "run_dir": folder / "run",
        "zoo": folder / "zoo",
    }
    return api.train("standard", str(data), **{**given, **options})


def test_held_out_images_are_never_trained_on_and_test_images_not_looked_at_before_the_end(tmp_path: Path) -> None:
    data = npz(tmp_path / "noise.npz", test_seed=1)
    loaded = load_dataset(str(data))
    train, validation = hold_out(loaded.train, 12, 0)
    with watching() as seen:
        train_on(data, tmp_path, validation=12, compile="off", precision="fp32")  # measuring takes random images
    trained_on = set().union(*(rows(x) for training, x in seen if training))
    assert trained_on == rows(train.images) and not trained_on & rows(validation.images)
    tested = rows(loaded.test.images)
    first_test = min(number for number, (_, x) in enumerate(seen) if rows(x) & tested)
    last_of_training = max(number for number, (training, _) in enumerate(seen) if training)
    assert any(rows(x) == rows(validation.images) for _, x in seen[:first_test])
    assert last_of_training < first_test == len(seen) - 1


@pytest.mark.parametrize("validation", [0, None])  # None: one in 50, of 48 images none
def test_the_best_epoch_cannot_be_told_without_validation_images(validation: int | None, tmp_path: Path) -> None:
    data = npz(tmp_path / "noise.npz", test_seed=1)
    with pytest.raises(InputError, match=r"select='best' needs validation images .*validation above 0"):
        train_on(data, tmp_path, validation=validation, select="best")
    assert list(tmp_path.iterdir()) == [data]


def test_a_run_without_a_ball_is_watched_in_the_threat_model_it_is_listed_under(tmp_path: Path) -> None:
    data = npz(tmp_path / "noise.npz", test_seed=1)
    train_on(data, tmp_path, validation=8, threat="L2", settings={"epochs": 1, "batch_size": 16, "crop_padding": 0})
    config = read_record(tmp_path / "run/config.json", RunConfig)
    assert (config.validation_norm, str(config.validation_eps)) == ("L2", "32/255")


def test_a_validation_radius_of_zero_is_zero(tmp_path: Path) -> None:
    data = npz(tmp_path / "noise.npz", test_seed=1)
    settings = {"epochs": 1, "batch_size": 16, "crop_padding": 0, "inputs": "pgd", "steps": 1}
    train_on(data, tmp_path, validation=8, validation_eps=Radius("0"), settings=settings)
    (row,) = saved(tmp_path / "run")["state"]["log"]
    assert row["validation_robust_accuracy"] == row["validation_accuracy"]
    assert read_record(tmp_path / "run/config.json", RunConfig).validation_eps == 0


def test_a_part_of_a_folder_has_every_class(tmp_path: Path) -> None:
    draws = np.random.RandomState(0)
    for part, name, number in itertools.product(("train", "test"), "abc", range(10)):
        (tmp_path / "pets" / part / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draws.randint(0, 256, (8, 8), dtype=np.uint8))
        image.save(tmp_path / "pets" / part / name / f"{number}.png")
    card = train_on(tmp_path / "pets", tmp_path, limit_train=12, validation=0).card
    train = load_dataset(str(tmp_path / "pets")).train
    expected = train.select(torch.tensor([first + place for first in (0, 10, 20) for place in range(4)]))
    assert card.train_fingerprint == expected.fingerprint


def test_what_is_learned_does_not_depend_on_the_test_set(tmp_path: Path) -> None:
    results = [
        train_on(npz(tmp_path / f"{seed}.npz", test_seed=seed), tmp_path / str(seed), validation=8) for seed in (1, 2)
    ]
    assert_same(saved(tmp_path / "1/run"), saved(tmp_path / "2/run"))
    assert results[0].card.weights.sha256 == results[1].card.weights.sha256
    assert results[0].card.test_fingerprint != results[1].card.test_fingerprint


@pytest.mark.parametrize(
    ("settings", "passes"),
    [({}, 2), ({"weights": "sam"}, 4), ({"inputs": "pgd", "steps": 3}, 8)],
    ids=["standard", "sam", "at"],
)
def test_the_cards_cost_is_the_passes_per_training_example(
    settings: dict[str, Any], passes: int, tmp_path: Path
) -> None:
    data = npz(tmp_path / "noise.npz", test_seed=1)
    card = train_on(
        data, tmp_path, validation=9, settings={"batch_size": 16, "crop_padding": 0, "epochs": 2, **settings}
    ).card
    assert card.cost.passes == passes and card.epochs == 2
    assert card.train_examples == 39


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_network_learns_the_digits(precision: str, tmp_path: Path) -> None:
    result = api.train(
        "standard",
        "digits",
        image_size=8,
        arch="preactresnet10",
        arch_options={"width": 8},
        settings={"epochs": 3, "batch_size": 64, "schedule": "one-cycle", "crop_padding": 0, "flip": False},
        precision=precision,
        run_dir=tmp_path / "run",
        zoo=tmp_path / "zoo",
    )
    assert result.card.clean_accuracy > 0.9 and result.card.precision == precision
    assert not result.model.training
    assert {tensor.dtype for tensor in result.model.state_dict().values()} == {torch.float32, torch.int64}
    log = saved(result.run_dir)["state"]["log"]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    # What is registered is what was trained.
    again = api.load_model(result.card.name, zoo=tmp_path / "zoo")
    assert_same(dict(again.state_dict()), dict(result.model.state_dict()))
    test = load_dataset("digits", image_size=8, test_only=True).test
    x, y = next(iter(Batches(test, batch_size=500, seed=0, augmentation=None, shuffle=False).epoch(0)))
    with torch.no_grad():
        logits = again(x)
        # Trained with channels last, loaded with channels first: another order of the same sums.
        torch.testing.assert_close(logits, result.model(x), rtol=1e-4, atol=1e-4)
    assert (logits.argmax(1) == y).float().mean().item() == pytest.approx(result.card.clean_accuracy)


def test_an_average_is_what_is_registered_and_validated(tmp_path: Path) -> None:
    trained = run(tmp_path, method_of("standard", {"averaging": "ema", "decay": 0.5}))
    content = saved(tmp_path)
    raw, average = content["model"], content["average"]
    assert list(trained.model.state_dict()) == list(raw)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, average[f"module.{name}"])
    assert not torch.equal(raw["head.weight"], average["module.head.weight"])
