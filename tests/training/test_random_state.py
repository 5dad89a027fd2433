"""A run gives PyTorch's global random streams back as it found them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam_bench import train
from sam_bench.errors import InputError
from sam_bench.training.random_state import random_state_kept


def test_training_leaves_the_callers_random_stream_where_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    for seed in (0, 1):
        train(
            "standard",
            "digits",
            arch="preactresnet10",
            arch_options={"width": 2},
            settings={"epochs": 1},
            limit_train=16,
            validation=0,
            image_size=8,
            seed=seed,
            device="cpu",
            run_dir=tmp_path / f"run{seed}",
            zoo=tmp_path / f"zoo{seed}",
        )
        assert torch.equal(torch.get_rng_state(), before)


def test_also_after_an_error_that_came_late(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(InputError, match="does not fit: the model has no parameters of BatchNorm"):
        train(
            "sam",
            "digits",
            arch="timm:test_vit",
            settings={"perturb_only": "bn", "epochs": 1},
            limit_train=16,
            image_size=32,
            device="cpu",
            run_dir=tmp_path / "run",
            zoo=tmp_path / "zoo",
        )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpus_stream_is_given_back_too() -> None:
    torch.manual_seed(3)
    torch.rand(2, device="cuda")
    expected = torch.cuda.get_rng_state_all()
    with random_state_kept():
        torch.manual_seed(0)
        torch.rand(5, device="cuda")
    assert all(torch.equal(one, other) for one, other in zip(torch.cuda.get_rng_state_all(), expected, strict=True))
