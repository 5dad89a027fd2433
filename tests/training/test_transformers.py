"""The recipes for transformers and mixers, from end to end on a small ViT and a small Mixer; and mixed labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import StopsAt, assert_same, digits, method_of, run, saved, tiny_net

from sam_bench import api
from sam_bench.errors import InputError

NETWORKS: dict[str, dict[str, Any]] = {
    "timm:deit_tiny_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 4, "drop_path_rate": 0.2},
    "timm:mixer_s16_224": {"num_blocks": 2, "embed_dim": 16, "patch_size": 4, "drop_path_rate": 0.2},
}


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("recipe", ["vit-standard", "vit-sam", "vit-at"])
def test_a_transformers_recipe_trains_an_epoch_of_mixed_images_and_is_registered(
    recipe: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = {"steps": 2} if recipe == "vit-at" else {}
    result = api.train(
        recipe,
        "digits",
        image_size=32,
        arch=arch,
        arch_options=NETWORKS[arch],
        settings={"epochs": 1, "batch_size": 16, **few},
        limit_train=48,
        validation=8,
        precision="fp32",
        zoo="zoo",
    )
    card = result.card
    assert card.recipe.optimizer.method == "adamw" and card.recipe.schedule.settings["warmup"] == 0.1
    assert (card.recipe.augmentation.mixup, card.recipe.augmentation.cutmix) == (0.8, 1.0)
    assert card.recipe.objective.settings["label_smoothing"] == 0.1
    assert card.architecture.options["patch_size"] == 4 and card.architecture.options["drop_path_rate"] == 0.2
    assert api.load_model(card.name, zoo="zoo")(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_a_run_of_mixed_images_resumes_bitwise(tmp_path: Path) -> None:
    method = method_of("sam", {"mixup": 0.8, "cutmix": 1.0, "epochs": 2})
    train = digits().head(27)  # the last batch is odd
    run(tmp_path / "whole", method, train=train)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", method, train=train, reporter=StopsAt(4))
    run(tmp_path / "parts", method, train=train, resume=True)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "ssam"},
        {"weights": "esam"},
        {"objective": "trades", "inputs": "fgsm"},
        {"objective": "gradalign", "inputs": "fgsm"},
        {"inputs": "pgd", "steps": 1},
    ],
)
def test_mixed_labels_go_with_other_parts(settings: dict[str, Any], tmp_path: Path) -> None:
    trained = run(tmp_path / "run", method_of("standard", {"mixup": 1.0, "epochs": 1, **settings}), model=tiny_net())
    assert all(bool(value.isfinite().all()) for value in trained.model.parameters())


@pytest.mark.parametrize(("recipe", "method"), [("mart", "mart"), ("aace-sam", "aace")])
def test_what_needs_one_label_an_image_is_refused(recipe: str, method: str) -> None:
    with pytest.raises(InputError, match=f"{method} needs one label an image; leave out `?mixup"):
        method_of(recipe, {"cutmix": 1.0})
