"""timm's families from training to attack: a transformer, a CNN and an MLP-Mixer on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from sam_bench import api
from sam_bench.data import load_dataset, to_float
from sam_bench.zoo import timm_name

# Name, image size, what makes it quick; the optimizers that suit each family.
ADAMW = {"optimizer": "adamw", "lr": 1e-2}
FAMILIES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "vit_tiny_patch16_224": (32, {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 16}, ADAMW),
    "resnet18": (16, {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32], "zero_init_last": False}, {}),
    "mixer_s16_224": (32, {"num_blocks": 2, "embed_dim": 32}, ADAMW),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_timm_trains_an_epoch_is_saved_loaded_and_attacked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM_BENCH_ZOO", str(tmp_path / "zoo"))
    size, options, optimizer = FAMILIES[name]
    result = api.train(
        "standard",
        "digits",
        image_size=size,
        arch=f"timm:{name}",
        arch_options=options,
        settings={
            "epochs": 1,
            "batch_size": 16,
            "schedule": "one-cycle",
            "crop_padding": 0,
            "flip": False,
            **optimizer,
        },
        name=f"plain-{name}",
        validation=32,
        precision="fp32",
        run_dir=tmp_path / "run",
    )
    card = result.card
    assert options.items() <= card.architecture.options.items() and card.architecture.image_size == size
    assert card.cost.passes == 1
    assert card.clean_accuracy > 0.3  # one in ten by chance

    test = load_dataset("digits", image_size=size, test_only=True).test.head(24)
    x = to_float(test.images)
    loaded = api.load_model(card.name)
    through_timm = timm.create_model(timm_name(card), pretrained=True).eval()
    with torch.no_grad():
        logits = loaded(x)
        torch.testing.assert_close(logits, result.model(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(logits, through_timm(x))

    record = api.evaluate(
        card.name,
        attack="pgd",
        eps="16/255",
        settings={"steps": 4},
        n_examples=24,
        output=tmp_path / "record.json",
    )
    assert record.checkpoint_sha256 == card.weights.sha256 and record.dataset_fingerprint == test.fingerprint
    assert record.clean_accuracy == pytest.approx((logits.argmax(1) == test.labels).float().mean().item())
    assert record.robust_accuracy <= record.clean_accuracy
