"""Channels last where it is safe."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sam_bench.models import create_model
from sam_bench.records import Architecture
from sam_bench.training.memory_format import memory_format_for

TRAIN = """
import torch
from torch.nn import functional
from sam_bench.models import create_model
from sam_bench.records import Architecture
from sam_bench.training.memory_format import memory_format_for

model = create_model(Architecture.model_validate_json({architecture!r}))
form = memory_format_for(model)
model.to(memory_format=form)
for _ in range(40):
    x = torch.rand(32, 1, 8, 8).contiguous(memory_format=form)
    functional.cross_entropy(model(x), torch.zeros(32, dtype=torch.int64)).backward()
    held = [torch.rand(n) for n in range(1, 200, 7)]
"""


def small(width: int) -> Architecture:
    return Architecture(
        name="preactresnet10",
        options={"width": width},
        num_classes=10,
        in_channels=1,
        image_size=8,
        mean=(0.5,),
        std=(0.5,),
    )


def test_a_network_of_usual_width_is_channels_last() -> None:
    assert memory_format_for(create_model(small(8))) is torch.channels_last


def test_a_strided_convolution_of_few_channels_is_not() -> None:
    assert memory_format_for(create_model(small(4))) is torch.contiguous_format


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_narrow_networks_train_on_every_cpu(width: int) -> None:
    # In a process of its own: what goes wrong here ends the process.
    script = TRAIN.format(architecture=small(width).model_dump_json())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
