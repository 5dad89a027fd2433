"""Told to stop, killed, or diverged: a run loses nothing it had, and says how to go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from training_samples import assert_same, digits, method_of, run, saved

from sam_bench.data import hold_out
from sam_bench.errors import SamBenchError, StoppedError
from sam_bench.progress import SilentReporter
from sam_bench.training.loop import DivergedError


class Signals(SilentReporter):
    """Sends this process a signal at the n-th report of progress, and remembers what was said."""

    def __init__(self, report: int = 0, number: signal.Signals = signal.SIGTERM) -> None:
        self.left, self.number, self.said = report, number, list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Signals]:
        yield self

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_between_two_batches_and_nothing_is_lost(number: signal.Signals, tmp_path: Path) -> None:
    method = method_of("sam", {"epochs": 3, "averaging": "ema"})
    run(tmp_path / "whole", method)
    # A shell's background job, which may be what runs the tests, has Ctrl-C ignored.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(
        StoppedError, match=rf"stopped by {number.name} after epoch 0 of 3 and batch 2 of 3 of the next;"
    ) as stopped:
        run(tmp_path / "parts", method, reporter=Signals(2, number))
    assert stopped.value.exit_code == 128 + number
    assert not isinstance(stopped.value, Exception)  # a loop over recipes with `except Exception` ends, too
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    signal.signal(signal.SIGINT, ignored)
    state = saved(tmp_path / "parts")["state"]
    assert (state["epoch"], state["batch"]) == (0, 2) and state["sums"][2] == 16
    run(tmp_path / "parts", method, resume=True)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))


def test_checkpoints_within_an_epoch_change_nothing(tmp_path: Path) -> None:
    method = method_of("at", {"steps": 2})
    run(tmp_path / "whole", method)
    run(tmp_path / "often", method, save_every=1e-9)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "often"))


KILLS = """
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from training_samples import digits, method_of, run, saved
from sam_bench.data import hold_out

folder, kills = Path(sys.argv[2]), int(sys.argv[3])
train, validation = hold_out(digits().head(120), 20, 0)
method = method_of("sam", {"epochs": 4, "averaging": "ema"})

def work(where, resume):
    run(where, method, train=train, validation=validation, resume=resume, save_every=0.02, keep=2)

def forked(where, resume):
    child = os.fork()
    if child == 0:
        try:
            work(where, resume)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return child

def digest(where):
    content = saved(where)
    names = sorted(content["model"])
    sums = hashlib.sha256(b"".join(content["model"][name].numpy().tobytes() for name in names)).hexdigest()
    return [sums, content["state"]["log"], content["state"]["epoch"]]

work(folder / "warm", False)  # so that no child has anything left to import
started = time.monotonic()
assert os.waitpid(forked(folder / "whole", False), 0)[1] == 0
took = time.monotonic() - started
draws, died, ended = random.Random(0), [], []
for number in range(kills):
    where = folder / str(number)
    child = forked(where, True)
    time.sleep(draws.uniform(0.02, 0.95) * took)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    died.append(os.WIFSIGNALED(status))
    again = os.waitpid(forked(where, True), 0)[1]
    ended.append(again == 0 and digest(where) == digest(folder / "whole"))
print(json.dumps([died, ended]))
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(Path(__file__).parent), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    died, ended = json.loads(done.stdout.splitlines()[-1])
    assert ended == [True] * 20
    assert sum(died) >= 10, "most of them have to be in the middle of a run"


class Fragile(nn.Module):
    """NaN as soon as a step moves a weight far, as it does at a large learning rate only."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.head, self.limit, self.most = nn.Linear(64, 10), limit, 0.0
        nn.init.zeros_(self.head.weight)
        self.register_buffer("before", torch.zeros(10, 64))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        moved = float((self.head.weight.detach() - self.before).abs().max())
        self.before.copy_(self.head.weight.detach())
        self.most = max(self.most, moved)
        return logits * float("nan") if moved > self.limit else logits


def test_a_rollback_goes_on_from_the_checkpoint_with_half_the_learning_rate(tmp_path: Path) -> None:
    plain = {"epochs": 3, "schedule": "constant", "momentum": 0, "weight_decay": 0}
    method = method_of("standard", {**plain, "lr": 0.4})
    most = {}
    for rate in (0.2, 0.4):
        calm = Fragile(float("inf"))
        run(tmp_path / str(rate), method_of("standard", {**plain, "lr": rate}), model=calm)
        most[rate] = calm.most
    assert most[0.2] < most[0.4]
    reporter, limit = Signals(), (most[0.2] + most[0.4]) / 2
    trained = run(tmp_path / "run", method, model=Fragile(limit), on_nan="rollback", reporter=reporter)
    assert trained.state.rollbacks >= 1 and trained.state.lr_scale == 0.5**trained.state.rollbacks
    assert [row["epoch"] for row in trained.state.log] == [1, 2, 3]
    assert trained.state.log[-1]["learning_rate"] == pytest.approx(0.4 * trained.state.lr_scale)
    told = [text for text in reporter.said if "rollback" in text]
    assert len(told) == trained.state.rollbacks
    assert "loss became NaN or infinite at step" in told[0]
    assert "learning rate times 0.5 (rollback 1 of at most 3)" in told[0]
    # A run killed after it went back decides the same again.
    again = run(tmp_path / "again", method, model=Fragile(limit), on_nan="rollback", save_every=1e-9)
    assert_same(dict(trained.model.state_dict()), dict(again.model.state_dict()))


def test_after_three_rollbacks_the_run_gives_up(tmp_path: Path) -> None:
    reporter = Signals()
    with pytest.raises(DivergedError, match=r"NaN or infinite at step 1 .*checkpoint\.pt \(after epoch 0") as error:
        run(tmp_path, method_of("standard", {"lr": 1.0}), model=Fragile(1e-9), on_nan="rollback", reporter=reporter)
    assert error.value.exit_code == 1
    assert len([text for text in reporter.said if "rollback" in text]) == 3


def test_as_many_epochs_stay_as_were_asked_for_and_any_can_be_gone_on_from(tmp_path: Path) -> None:
    method = method_of("sam", {"epochs": 4})
    run(tmp_path, method, keep=2)
    whole = saved(tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("*.pt"))] == [
        "checkpoint-epoch00003.pt",
        "checkpoint-epoch00004.pt",
        "checkpoint.pt",
    ]
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(SamBenchError, match=r"copy checkpoint-epoch00004\.pt over it to go on from there"):
        run(tmp_path, method, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint-epoch00003.pt").read_bytes())
    run(tmp_path, method, resume=True, keep=2)
    assert_same(whole, saved(tmp_path))


class Meter:
    """Has counted five joules whenever it is looked at, where the machine tells."""

    told: ClassVar[bool] = True

    def __init__(self, device: torch.device) -> None: ...

    def joules(self) -> float | None:
        return 5.0 if self.told else None


@pytest.mark.parametrize(("before", "after", "joules"), [(True, True, 20), (True, False, None), (False, True, None)])
@pytest.mark.parametrize("stop", [1, 4], ids=["in the first epoch", "in the second"])
def test_the_energy_of_a_run_is_that_of_all_its_parts_or_not_told(
    before: bool, after: bool, joules: float | None, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_bench.training.metrics.EnergyMeter", Meter)
    monkeypatch.setattr(Meter, "told", before)
    method = method_of("standard", {"epochs": 3})
    with pytest.raises(StoppedError):
        run(tmp_path, method, reporter=Signals(stop))
    monkeypatch.setattr(Meter, "told", after)
    # Three epochs, one of them in two parts: four meters.
    assert run(tmp_path, method, resume=True).state.joules == joules


def test_the_best_epoch_is_the_one_that_did_best_on_the_validation_split(tmp_path: Path) -> None:
    train, validation = hold_out(digits().head(200), 80, 0)
    # A rate that grows until it destroys what was learned: the best epoch is not the last.
    method = method_of("standard", {"epochs": 6, "lr": 3.0, "schedule": "one-cycle", "peak": 0.9})
    trained = run(tmp_path, method, train=train, validation=validation, select="best")
    ranks = [(row["validation_robust_accuracy"], row["validation_accuracy"]) for row in trained.state.log]
    best = ranks.index(max(ranks)) + 1
    assert trained.state.best_epoch == best < 6
    upto = run(tmp_path / "last", method, train=train, validation=validation, keep=6)
    kept = torch.load(tmp_path / "last" / f"checkpoint-epoch{best:05d}.pt", weights_only=True)["model"]
    assert_same(dict(trained.model.state_dict()), dict(kept))
    assert upto.state.best_epoch == best and not torch.equal(kept["head.weight"], upto.model.head.weight)


TRAIN = [
    *("train", "--recipe", "standard", "--dataset", "digits", "--image-size", "8", "--arch", "preactresnet10"),
    # Longer than any machine takes until the first report.
    *("--width", "2", "--epochs", "1000", "--crop-padding", "0", "--name", "told"),
]


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_prints_the_command_that_continues(tmp_path: Path) -> None:
    # As a shell starts it in the foreground, whatever started the tests.
    foreground = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", foreground, "-m", "sam_bench", *TRAIN]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("train told"):
                process.send_signal(signal.SIGINT)
                break
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == 130
    assert "stopped by SIGINT after epoch" in last and "Traceback" not in last
    continues = shlex.split(last.split("continue with: ")[1])
    assert continues == ["sam-bench", *TRAIN, "--resume"]
    # It goes on; three epochs more would prove nothing that the tests above have not.
    state = torch.load(tmp_path / "runs" / "told" / "checkpoint.pt", weights_only=True)["state"]
    assert state["epoch"] * 20 + state["batch"] > 0
