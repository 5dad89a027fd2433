"""Several processes share a run and learn what one would; a batch in parts is the batch."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from team import run_as_team
from torch import Tensor, nn
from training_samples import ARCHITECTURE, Steps, assert_same, digits, method_of, run, tiny_net

from sam_bench.data import Batches, to_float
from sam_bench.distributed import ALONE
from sam_bench.errors import InputError
from sam_bench.models import create_model
from sam_bench.records import Augmentation
from sam_bench.training.sync_bn import synchronised

AUGMENTATION = Augmentation(crop_padding=1, padding_mode="reflect", flip=True)

TEAM = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_devices import IN_PARTS, ten_steps
from sam_bench.distributed import joined

with joined() as team:
    weights = {recipe: ten_steps(recipe, team) for recipe in ("standard", "sam", "at")}
    # 8 and 7 examples: parts of at most 7 are two here and, counted alone, one there.
    weights |= {f"{recipe} {size}": ten_steps(recipe, team, micro_batch=size) for recipe, size in IN_PARTS}
    torch.save(weights, f"{sys.argv[2]}/{team.rank}.pt")
"""


def launch(arguments: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


class Net(nn.Module):
    """Convolution, BatchNorm and a head, without dropout: whose draws are each device's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return logits


IN_PARTS = [("standard", 7), ("sam", 7), ("at", 7), ("esam", 3), ("entropy-sgd", 3), ("at", 1)]


def ten_steps(recipe: str, team: Any, micro_batch: int | None = None) -> dict[str, Tensor]:
    """Ten float64 steps of a recipe on batches of 15, which two processes cannot halve."""
    torch.manual_seed(0)
    model = Net().double().train()
    if team.size > 1:
        synchronised(model, torch.device("cpu"))
    quick = {"at": {"steps": 2, "bn_mode": "train"}, "entropy-sgd": {"inner_steps": 3, "inner_share": 0.5}}
    method = method_of(recipe, quick.get(recipe))
    step = Steps(model, method, seed=0, precision="fp32", micro_batch=micro_batch, team=team, sync_ascent=True)
    batches = Batches(
        digits().head(150), batch_size=15, seed=0, augmentation=AUGMENTATION, shard=(team.rank, team.size)
    )
    for number, (x, y) in enumerate(batches.epoch(0)):
        first, _, total = batches.share_of(number)
        step.at(x.double(), y, step=number, progress=number / 10, first=first, total=total)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "team.py"
    script.write_text(TEAM)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for recipe in ("standard", "sam", "at"):
        for name, value in ten_steps(recipe, ALONE).items():
            first, second = ranks[0][recipe][name], ranks[1][recipe][name]
            assert torch.equal(first, second) or "running" in name, (recipe, name)
            torch.testing.assert_close(first, value, rtol=1e-7, atol=1e-9)
    for recipe, size in IN_PARTS:
        first, second = (rank[f"{recipe} {size}"] for rank in ranks)
        learned = [name for name in first if name.endswith(("weight", "bias"))]
        assert all(torch.equal(first[name], second[name]) for name in learned), recipe
        assert all(bool(value.isfinite().all()) for value in first.values()), recipe


ROLLBACK = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_stopping import Fragile
from training_samples import method_of, run
from sam_bench.distributed import joined

with joined() as team:
    # A machine of its own for each: what rank 0 writes, nobody else sees.
    folder = Path(sys.argv[2]) / f"machine{team.rank}"
    # 0.09 is between the farthest steps at learning rates 0.2 and 0.4.
    method = method_of("standard", {"epochs": 3, "schedule": "constant", "momentum": 0, "weight_decay": 0, "lr": 0.4})
    trained = run(folder, method, model=Fragile(0.09), on_nan="rollback", team=team)
    torch.save((trained.state.rollbacks, trained.model.state_dict()), f"{sys.argv[2]}/{team.rank}.pt")
"""


@pytest.mark.slow
def test_a_rollback_asks_for_the_folder_on_the_one_machine_that_has_it(tmp_path: Path) -> None:
    script = tmp_path / "rollback.py"
    script.write_text(ROLLBACK)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (rollbacks, weights), (others, same) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert rollbacks == others >= 1
    assert torch.equal(weights["head.weight"], same["head.weight"])
    assert not (tmp_path / "machine1").exists()


TRAIN = [
    *("-m", "sam_bench", "train", "--recipe", "sam", "--dataset", "digits", "--image-size", "8"),
    *("--arch", "preactresnet10", "--width", "2", "--limit-train", "200", "--batch-size", "32", "--crop-padding", "0"),
    *("--name", "shared", "--keep", "2"),
]


@pytest.mark.slow
def test_torchrun_trains_registers_once_and_goes_on_from_where_it_was(tmp_path: Path) -> None:
    done = launch([*TRAIN, "--epochs", "3", "--json"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)["card"]  # one object: one of the processes prints
    assert card["cost"]["train_forward"] == pytest.approx(6)
    assert "2 devices share every batch of 32, 16 examples each" in done.stderr
    assert done.stderr.count("registered as") == 1
    run = tmp_path / "runs" / "shared"
    assert sorted(path.name for path in run.glob("*.pt")) == [
        "best.pt",
        "checkpoint-epoch00002.pt",
        "checkpoint-epoch00003.pt",
        "checkpoint.pt",
    ]
    # Two epochs of three, taken up again by two processes and by one.
    whole = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    (run / "checkpoint.pt").write_bytes((run / "checkpoint-epoch00002.pt").read_bytes())
    again = launch([*TRAIN, "--epochs", "3", "--resume"], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming shared after epoch 2 of 3" in again.stderr
    resumed = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5)


WITHIN = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_samples import digits, method_of, run
from sam_bench.distributed import joined
from sam_bench.training.folder import RunFolder

save = RunFolder.save
def kept(self, state, tensors, **options):
    save(self, state, tensors, **options)
    if state.batch == 1 and self.path.name == "whole":
        shutil.copytree(self.path, self.path.with_name("parts"))
RunFolder.save = kept

with joined() as team:
    options = {"train": digits().head(38), "team": team, "save_every": 0.0}
    for name in ("whole", "parts"):
        folder = Path(sys.argv[2]) / name
        assert name == "whole" or (folder / "checkpoint.pt").exists()
        rows = run(folder, method_of("sam", {"epochs": 1}), resume=True, **options).state.log
        if team.is_main:
            print(*(rows[0][key] for key in ("loss", "train_accuracy", "gradient_norm", "ascent_gradient_norm")))
"""


@pytest.mark.slow
def test_a_team_goes_on_within_an_epoch_with_the_figures_of_all(tmp_path: Path) -> None:
    script = tmp_path / "within.py"
    script.write_text(WITHIN)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, parts = ([float(each) for each in line.split()] for line in done.stdout.splitlines())
    assert whole == pytest.approx(parts, rel=1e-5) and len(whole) == 4


SAVES = """
import os, signal, shutil, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from training_samples import digits, method_of, run, saved
from sam_bench.distributed import joined
from sam_bench.training.folder import RunFolder

save = RunFolder.save
def kept(self, state, tensors, **options):
    save(self, state, tensors, **options)
    if state.batch == 1 and self.path.name == "often":
        shutil.copytree(self.path, self.path.with_name("resumed"))
RunFolder.save = kept

with joined() as team:
    # BatchNorm in eval mode: each process attacks with running statistics of its own.
    method = method_of("at", {"epochs": 1, "steps": 2, "averaging": "ema"})
    for name, seconds in (("seldom", 600.0), ("often", 0.0), ("resumed", 600.0)):
        folder = Path(sys.argv[2]) / name
        assert name != "resumed" or (folder / "checkpoint.pt").exists()
        run(folder, method, train=digits().head(38), team=team, save_every=seconds, resume=name == "resumed")
    if team.is_main:
        found = [saved(Path(sys.argv[2]) / name) for name in ("seldom", "often", "resumed")]
        torch.save(found, f"{sys.argv[2]}/found.pt")
    # A perturbation that remembers something of each process's own examples.
    learned, method = [], method_of("standard", {"epochs": 1, "inputs": "fgsm-pgi", "objective": "start-pairing"})
    team.barrier()
    for name, seconds in (("memory", 600.0), ("prior/often", 0.0), ("prior/resumed", 600.0)):
        folder = Path(sys.argv[2]) / name
        trained = run(folder, method, train=digits().head(38), team=team, save_every=seconds, resume="resumed" in name)
        learned.append(dict(trained.model.state_dict()))
    torch.save(learned, f"{sys.argv[2]}/prior{team.rank}.pt")
"""


@pytest.mark.slow
def test_a_checkpoint_within_an_epoch_changes_nothing_that_a_team_learns(tmp_path: Path) -> None:
    script = tmp_path / "saves.py"
    script.write_text(SAVES)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seldom, often, resumed = torch.load(tmp_path / "found.pt", weights_only=True)
    assert_same(seldom, often)
    assert_same(seldom, resumed)
    for rank in range(2):
        whole, saving, again = torch.load(tmp_path / f"prior{rank}.pt", weights_only=True)
        assert_same(whole, saving)
        assert_same(whole, again)


FORMS = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from sam_bench import train
from sam_bench.api import training
from sam_bench.data import StreamedSplit
from sam_bench.distributed import joined
from sam_bench.training import TrainingRun

with joined() as team:
    if team.is_main:
        for number in range(32):
            path = Path("pets") / ("train" if number % 2 else "test") / "ab"[number // 16] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 7 * number, np.uint8)).save(path)
    team.barrier()
    # Rank 0 finds little memory free, the other one enough; and each would find other statistics.
    training.must_stream = lambda *_, copies: (print("copies", copies, flush=True), team.is_main)[1]
    training.channel_stats = lambda _: ((0.1 + team.rank,) * 3, (0.5,) * 3)
    run, forms = TrainingRun.__init__, []
    def watched(self, ready):
        forms.append(isinstance(ready.train, StreamedSplit))
        run(self, ready)
    TrainingRun.__init__ = watched
    trained = train(
        "standard", "pets", arch="preactresnet10", arch_options={"width": 2}, device="cpu", precision="fp32",
        settings={"epochs": 1, "batch_size": 8, "crop_padding": 0}, validation=0,
    )
    means = [value.flatten().tolist() for name, value in trained.model.named_buffers() if name == "mean"]
    torch.save((forms, means, trained.card.architecture.mean), f"{sys.argv[1]}/{team.rank}.pt")
"""


@pytest.mark.slow
def test_all_processes_have_a_folder_in_the_form_that_the_first_decides(tmp_path: Path) -> None:
    script = tmp_path / "forms.py"
    script.write_text(FORMS)
    done = run_as_team(script, str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second and first[0] == [True] and first[2][0] == 0.1
    assert first[1][0] == pytest.approx([0.1] * 3)
    assert done.stdout.splitlines() == ["copies 2"]


HALF = """
import sys
import torch
from sam_bench import train
from sam_bench.distributed import joined
from sam_bench.training import metrics

class Meter:
    def __init__(self, device): ...
    def joules(self): return 5.0

metrics.EnergyMeter = Meter
with joined() as team:
    trained = train(
        "standard", "digits-8px", arch="preactresnet10", arch_options={"width": 2}, limit_train=64,
        settings={"epochs": 1, "batch_size": 32, "crop_padding": 0}, device="cpu", precision="fp32",
        validation=0, weights_dtype="float16",
    )
    found = {"weights": dict(trained.model.state_dict()), "joules": trained.card.cost.energy_joules}
    torch.save(found, f"{sys.argv[1]}/{team.rank}.pt")
"""


@pytest.mark.slow
def test_every_process_returns_the_weights_that_are_stored_and_a_machines_energy_counts_once(tmp_path: Path) -> None:
    script = tmp_path / "half.py"
    script.write_text(HALF)
    done = run_as_team(script, str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["joules"] == second["joules"] == 5.0
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        assert torch.equal(value, value.half().float()) or not value.is_floating_point(), name


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_of_a_batch_are_the_batch(shards: int) -> None:
    split = digits().head(50)
    whole = Batches(split, batch_size=16, seed=3, augmentation=AUGMENTATION)
    parts = [
        Batches(split, batch_size=16, seed=3, augmentation=AUGMENTATION, shard=(shard, shards))
        for shard in range(shards)
    ]
    # 50 = 3 x 16 + 2: a last batch of 2 is one for a single device, and too small for several.
    assert len(whole) == 4 and all(len(part) == 3 for part in parts)
    for number, pieces in enumerate(zip(*(part.epoch(1) for part in parts), strict=True)):
        x, y = torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])
        expected = list(whole.epoch(1))[number]
        count = min(len(x), len(expected[0]))
        assert torch.equal(x[: count - 2], expected[0][: count - 2]) or number == 2
        assert torch.equal(y[:16], expected[1])
        places = [part.share_of(number) for part in parts]
        assert sum(count for _, count, _ in places) == len(x) == places[0][2]
        assert max(count for _, count, _ in places) - min(count for _, count, _ in places) <= 1


def test_a_batch_too_small_to_share_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size 6 cannot be shared by 4 devices: each needs at least 2"):
        Batches(digits(), batch_size=6, seed=0, augmentation=None, shard=(0, 4))


def without_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)).double().train()


@pytest.mark.parametrize("micro_batch", [1, 5, 16])
@pytest.mark.parametrize("recipe", ["standard", "sam", "at"])
def test_a_batch_in_parts_gives_the_step_of_the_whole(recipe: str, micro_batch: int) -> None:
    split = digits().head(16)
    x, y = to_float(split.images).double(), split.labels
    method = method_of(recipe, {"steps": 2} if recipe == "at" else {})
    outcomes = []
    for size in (None, micro_batch):
        model = without_batch_norm()
        step = Steps(model, method, seed=0, precision="fp32", micro_batch=size)
        for number in range(3):
            result = step.at(x, y, step=number, progress=number / 3)
        outcomes.append((result.loss, result.hits, model.state_dict(), copy.copy(step.passes)))
    (loss, hits, weights, passes), (loss2, hits2, weights2, passes2) = outcomes
    torch.testing.assert_close(loss, loss2, rtol=1e-10, atol=1e-12)
    assert hits == hits2 and passes == passes2
    for name, value in weights.items():
        torch.testing.assert_close(weights2[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("recipe", "micro_batch"),
    [("standard", 4), ("standard", 1), ("sam", 4), ("at", 4), ("esam", 1), ("esam", None), ("entropy-sgd", None)],
)
def test_no_part_is_an_example_alone_which_batch_norm_could_not_normalise(
    recipe: str, micro_batch: int | None, tmp_path: Path
) -> None:
    settings = {"epochs": 1, "batch_size": 9, "inner_share": 0.1} if recipe == "entropy-sgd" else {"batch_size": 9}
    # 29 = 3 x 9 + 2: parts of four would leave one of nine, half of two is one.
    model = create_model(ARCHITECTURE)
    trained = run(tmp_path, method_of(recipe, settings), train=digits().head(29), model=model, micro_batch=micro_batch)
    assert trained.state.log[-1]["loss"] > 0


def test_a_search_leaves_parameter_gradients_as_they_are() -> None:
    model, split = tiny_net().train(), digits().head(8)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    method = method_of("at", {"steps": 3})
    method.inputs.perturb(model, to_float(split.images), split.labels, generator=torch.Generator())
    assert all(parameter.grad is not None and bool((parameter.grad == 7).all()) for parameter in model.parameters())
