"""Real images in CIFAR-10's own files, a small trained model, and AutoAttack with its iterations cut."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sam_bench.integrations import install

install()


@pytest.fixture(scope="session")
def images() -> tuple[Tensor, Tensor]:
    """Handwritten digits in CIFAR-10's shape: uint8 [N, 3, 32, 32] and labels."""
    digits = load_digits()
    small = torch.tensor(digits.images * 255 / 16, dtype=torch.uint8)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return large[:, None].expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target)


@pytest.fixture(scope="session")
def model(images: tuple[Tensor, Tensor]) -> nn.Module:
    x, y = images[0][:1200].float() / 255, images[1][:1200]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(6):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net.eval()


@pytest.fixture
def batch(images: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """24 images the model has not seen, in [0, 1]."""
    return images[0][1300:1324].float() / 255, images[1][1300:1324]


@pytest.fixture
def data_dir(images: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-10's files, the digits inside; torchvision is told their checksums."""
    base = torchvision.datasets.CIFAR10
    folder = tmp_path / "data" / base.base_folder
    folder.mkdir(parents=True)
    test = {"data": images[0][1300:1400].flatten(1).numpy(), "labels": images[1][1300:1400].tolist()}
    files = {"test_batch": test, "batches.meta": {"label_names": [str(digit) for digit in range(10)]}}
    checksums = {}
    for name, content in files.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(base, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(base, "train_list", [])
    monkeypatch.setattr(base, "meta", {**base.meta, "filename": "batches.meta", "md5": checksums["batches.meta"]})
    return tmp_path / "data"


@pytest.fixture
def shorten() -> Callable[[Any], Any]:
    """Cuts the iterations of any AutoAttack object and hands it back."""

    def cut(adversary: Any) -> Any:
        for attacker in (adversary.apgd, adversary.apgd_targeted):
            attacker.n_iter = attacker.n_iter_orig = 20
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
        adversary.fab.n_iter, adversary.square.n_queries = 5, 100
        return adversary

    return cut
