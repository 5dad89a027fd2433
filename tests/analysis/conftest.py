"""A zoo of two small networks for the digits. They are not trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sam_bench.data import load_dataset
from sam_bench.models import architecture_for, create_model
from sam_bench.records import Cost, Recipe
from sam_bench.zoo import Zoo

sys.path.insert(0, str(Path(__file__).parent))  # `records_of_verdicts`

NAMES = ("first", "second")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("zoo")
    data = load_dataset("digits", data_dir=folder, image_size=8, test_only=True)
    architecture = architecture_for(
        "preactresnet18", num_classes=10, in_channels=1, image_size=8, mean=(0.3,), std=(0.3,), options={"width": 4}
    )
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        model = create_model(architecture)
        model.train()(torch.rand(8, 1, 8, 8))  # BatchNorm's statistics off their initial values
        Zoo(folder).save(
            model.eval(),
            {
                "name": name,
                "dataset": data.name,
                "architecture": architecture,
                "recipe": Recipe(name="standard", summary="untrained"),
                "epochs": 0,
                "seed": seed,
                "precision": "fp32",
                "train_examples": 100,
                "train_fingerprint": "0" * 64,
                "test_fingerprint": data.test.fingerprint,
                "clean_accuracy": 0.1,
                "cost": Cost(train_forward=0, train_backward=0, seconds=0, device="cpu"),
                "packages": {},
                "created": "2026-01-01T00:00:00+00:00",
            },
        )
    return folder
