"""What a user's script looks like to a strict type checker: the package is typed, and the documented calls fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sam_bench

SCRIPT = """
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_bench import AutoAttack, evaluate, load_model, train
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.data import stream_folder
from sam_bench.perturb import FGSM, NFGSM, PGD, SAM, GaussianNoise


def learn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    pgd, sam = PGD(eps="8/255", steps=10, step_size=2 / 255), SAM(rho=0.1)
    for perturbation in (pgd, FGSM(eps="8/255"), NFGSM(eps=8 / 255, noise_eps="1/255"), GaussianNoise(std=0.1)):
        x_adv: Tensor = perturbation(model, x, y)
    loss: Tensor = sam.step_gradients(model, F.cross_entropy, x_adv, y)
    return loss


run = train("sam", "cifar10", settings={"rho": 0.1, "epochs": 30})
record = evaluate(run.card.name, attack="pgd", eps="2/255", settings={"steps": 10})
robust: float = record.robust_accuracy
model: nn.Module = load_model(run.card.name)
images = stream_folder("images", image_size=32)
PGDAttack(steps=3, step_size="1/255").run(model, torch.rand(2, 3, 8, 8), torch.arange(2), norm="Linf", eps=8 / 255)
"""


ROOT = str(Path(sam_bench.__file__).parents[1])


@pytest.mark.slow
def test_a_users_script_passes_strict_mypy(tmp_path: Path) -> None:
    options = ["--strict", "--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache")]
    # Without our configuration: a user has no plugin of pydantic's.
    _check(tmp_path, "mypy", *options, MYPYPATH=ROOT)


@pytest.mark.slow
def test_a_users_script_passes_pyright_as_editors_run_it(tmp_path: Path) -> None:
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [ROOT], "typeCheckingMode": "standard"}))
    _check(tmp_path, "basedpyright", "--pythonpath", sys.executable)


def _check(folder: Path, checker: str, *options: str, **environment: str) -> None:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", checker, *options, script.name],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if f"{script.name}:" in line]
    assert not found and done.returncode < 2, "\n".join([*found, done.stdout[-500:], done.stderr])
