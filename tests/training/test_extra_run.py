"""A run with further images: resumed bitwise, and told on the card and in the leaderboard's entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_samples import StopsAt, assert_same, saved

from sam_bench import api
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez("generated.npz", image=pixels, label=np.arange(40) % 10)


def train(where: str, **options: Any) -> api.TrainResult:
    return api.train(
        "standard",
        "digits",
        image_size=8,
        arch="preactresnet10",
        arch_options={"width": 2},
        settings={"epochs": 2, "batch_size": 8, "crop_padding": 0, "flip": False},
        limit_train=32,
        validation=0,
        precision="fp32",
        run_dir=f"runs/{where}",
        zoo=f"{where}-zoo",
        **options,
    )


def test_a_run_stopped_within_an_epoch_goes_on_bitwise_and_its_card_says_what_it_saw() -> None:
    card = train("whole", extra_data="generated.npz", extra_fraction=0.6).card
    with pytest.raises(KeyboardInterrupt):
        train("parts", extra_data="generated.npz", extra_fraction=0.6, reporter=StopsAt(4))
    train("parts", extra_data="generated.npz", extra_fraction=0.6, resume=True)
    assert_same(saved(Path("runs/whole")), saved(Path("runs/parts")))
    told = card.extra_data
    assert told is not None and card.additional_data and card.name.endswith("-extra-generated")
    assert (told.file, told.fraction, told.examples, card.train_examples) == ("generated.npz", 0.6, 40, 32)
    assert card.cost.train_forward == pytest.approx(2)  # an epoch is as long as without
    plain = train("plain")
    assert plain.card.extra_data is None and not plain.card.additional_data
    assert any(not torch.equal(*pair) for pair in zip(plain.model.parameters(), _loaded("whole", card), strict=True))
    # What it is the start of has seen them, too.
    again = train("again", init=f"whole-zoo/digits-8px/Linf/{card.name}.json")
    assert again.card.extra_data is None and again.card.additional_data
    assert not train("third", init="plain-zoo/digits-8px/Linf/" + plain.card.name + ".json").card.additional_data


def _loaded(where: str, card: Any) -> list[torch.Tensor]:
    return list(api.load_model(card.name, zoo=f"{where}-zoo").parameters())


def test_the_start_says_how_much_is_from_where() -> None:
    lines: list[str] = []

    class Said(SilentReporter):
        def say(self, text: str) -> None:
            lines.append(text)

    train("said", extra_data="generated.npz", reporter=Said())
    assert any("; 70% of every batch from 40 of generated.npz" in line for line in lines)


@pytest.mark.parametrize("fraction", [1.0, 1.5, 0, 0.02])
def test_a_fraction_that_leaves_nothing_of_either_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="extra_fraction"):
        train("bad", extra_data="generated.npz", extra_fraction=fraction)
