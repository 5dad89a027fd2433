"""Runs that are killed, that find the disk full, that diverge: what stood stays, and --resume goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import DIGITS, CommandLine
from interruptions import interrupted_after, tells_more_than_clean
from torch.optim.optimizer import register_optimizer_step_post_hook

resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX's")

_RUN = [*DIGITS, "--recipe", "sam", "--epochs", "4", "--keep", "2", "--name", "run"]

_KILLED_BEFORE_THE_THIRD_CHECKPOINT_IS_IN_PLACE = """
import os, signal, sys
seen = 0
def kill(event, arguments):
    global seen
    if event == "os.rename" and str(arguments[1]).endswith("checkpoint.pt"):
        seen += 1
        if seen == 3:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
from sam_bench.cli.main import main
main()
"""


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes meanwhile, as when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _epoch(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["state"]["epoch"])


def test_a_killed_run_then_a_full_disk_leave_the_checkpoint_whole_and_resume_as_if_nothing_had_been(
    cli: CommandLine,
) -> None:
    script = [sys.executable, "-c", _KILLED_BEFORE_THE_THIRD_CHECKPOINT_IS_IN_PLACE]
    killed = subprocess.run([*script, *_RUN], cwd=cli.folder, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = cli.folder / "runs/run"
    checkpoint = run / "checkpoint.pt"
    assert _epoch(checkpoint) == 2
    assert not (cli.folder / "model_zoo").exists()

    before = checkpoint.read_bytes()
    leftover = sorted(path.name for path in run.glob(".*.tmp"))
    with _largest_file(len(before) // 2):
        full = cli(*_RUN, "--resume", "--quiet")
    assert (full.code, full.out) == (1, "")
    assert full.err == (
        "sam-bench: cannot write runs/run/checkpoint.pt: File too large; what stood there is untouched\n"
    )
    assert checkpoint.read_bytes() == before
    assert sorted(path.name for path in run.glob(".*.tmp")) == leftover

    resumed = cli.done(*_RUN, "--resume", "--json")
    assert "resuming run after epoch 2 of 4" in resumed.err
    whole = cli.done(*_RUN, "--zoo", "other", "--run-dir", "runs/whole", "--json")
    assert resumed.json["card"]["weights"] == whole.json["card"]["weights"]
    assert [line.split(",")[0] for line in (run / "log.csv").read_text().splitlines()] == ["epoch", *"1234"]


def test_an_evaluation_that_finds_the_disk_full_leaves_the_old_record(with_tiny: CommandLine) -> None:
    evaluate = ["evaluate", "tiny", "--attack", "fgsm", "--output", "record.json", "--quiet"]
    with_tiny.done(*evaluate)
    before = (with_tiny.folder / "record.json").read_bytes()
    with _largest_file(3000):
        outcome = with_tiny(*evaluate)
    journal = "record.progress/part-0001.jsonl"
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"sam-bench: cannot write {journal}: File too large; what was written is whole\n"
    assert (with_tiny.folder / "record.json").read_bytes() == before
    # What was found until then is not lost.
    parts = (part.read_text() for part in (with_tiny.folder / "record.progress").glob("*.jsonl"))
    whole = [line for part in parts for line in part.splitlines(keepends=True) if line.endswith("\n")]
    found = sum(tells_more_than_clean(json.loads(line)) for line in whole)
    assert found > 5
    (with_tiny.folder / "record.json").unlink()
    resumed = with_tiny.done(*evaluate[:-1], "--resume").err
    assert f"resuming record.progress: {found} of 500 examples are settled" in resumed
    assert not (with_tiny.folder / "record.progress").exists()


def test_an_interrupted_evaluation_says_what_is_kept(with_tiny: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = ["evaluate", "tiny", "--attack", "pgd", "--steps", "2", "--n-examples", "20", "--output", "record.json"]
    assert "nothing to resume" not in with_tiny.done(*evaluate, "--quiet").err
    (with_tiny.folder / "record.json").unlink()

    outcome = _interrupted_after(5, with_tiny, evaluate, monkeypatch)
    assert outcome.endswith(
        "sam-bench: interrupted; every verdict so far is kept in record.progress; add --resume to go on\n"
    )
    resumed = with_tiny.done(*evaluate, "--resume").err
    assert "resuming record.progress: 5 of 20 examples are settled" in resumed and "nothing to resume" not in resumed
    assert "record.json is finished: nothing to resume" in with_tiny.done(*evaluate, "--resume").err
    (with_tiny.folder / "record.json").unlink()
    begun = with_tiny.done(*evaluate, "--resume").err
    assert begun.count("nothing to resume at record.progress; beginning\n") == 1


def test_an_evaluation_that_cannot_be_continued_says_so_when_it_is_interrupted(
    with_tiny: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = ["evaluate", "tiny", "--attack", "autoattack", "--version", "custom", "--suite", "apgd-ce"]
    evaluate += ["--rng", "upstream", "--n-examples", "8", "--output", "record.json"]
    assert _interrupted_after(3, with_tiny, evaluate, monkeypatch).endswith(
        "sam-bench: interrupted; autoattack as asked for cannot be continued, only begun anew: add --resume, or delete "
        "record.progress\n"
    )
    with_tiny.done(*evaluate, "--resume", "--quiet")


def _interrupted_after(
    count: int,
    cli: CommandLine,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals = signal.SIGINT,
) -> str:
    """What a command says of Ctrl-C or another signal, when it has written so many lines of a journal."""
    with interrupted_after(count, monkeypatch, number):
        outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (128 + number, "")
    return outcome.err


def test_an_evaluation_that_a_cluster_ends_says_what_is_kept(
    with_tiny: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = ["evaluate", "tiny", "--attack", "pgd", "--steps", "2", "--n-examples", "20", "--output", "record.json"]
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert _interrupted_after(5, with_tiny, evaluate, monkeypatch, signal.SIGTERM).endswith(
            "sam-bench: stopped by SIGTERM; every verdict so far is kept in record.progress; add --resume to go on\n"
        )
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (with_tiny.folder / "record.progress" / "in-use").exists()
    assert "resuming record.progress: 5 of 20 examples" in with_tiny.done(*evaluate, "--resume").err


def test_an_interrupted_run_says_how_to_continue(cli: CommandLine) -> None:
    steps = 0

    def interrupt(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(interrupt)
    # A shell's background job starts with the signal ignored; a person at a terminal does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outcome = cli(*DIGITS, "--epochs", "3", "--name", "run")
    finally:
        signal.signal(signal.SIGINT, before)
        hook.remove()
    assert (outcome.code, outcome.out) == (130, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith(
        "sam-bench: stopped by SIGINT after epoch 1 of 3 and batch 1 of 1 of the next; runs/run/checkpoint.pt holds "
        "all of it; continue with: sam-bench train "
    )
    assert last.endswith("--epochs 3 --name run --resume")
    assert (
        "resuming run after epoch 1 of 3 and batch 1 of 1 of the next"
        in cli.done(*DIGITS, "--epochs", "3", "--name", "run", "--resume").err
    )


def test_a_diverged_run_names_the_step_the_rate_and_the_last_good_checkpoint(cli: CommandLine) -> None:
    diverging = [*DIGITS, "--epochs", "3", "--lr", "1e30", "--name", "run", "--schedule", "constant"]
    outcome = cli(*diverging)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == (
        "sam-bench: training diverged: the loss became NaN or infinite at step 1 at learning rate 1e+30; the last good "
        "checkpoint is runs/run/checkpoint.pt (after epoch 1 of 3). Try a smaller --lr, or --on-nan rollback "
        "to have the run go back by itself."
    )
    assert _epoch(cli.folder / "runs/run/checkpoint.pt") == 1
    assert not (cli.folder / "model_zoo").exists()

    within_an_epoch = cli(*diverging, "--batch-size", "4", "--run-dir", "runs/first")
    assert within_an_epoch.code == 1
    assert "; no checkpoint was saved before it. Try a smaller --lr, or --on-nan" in within_an_epoch.err
    again = cli.refused(*DIGITS, "--run-dir", "runs/first")
    assert again.endswith("it has not finished an epoch, so if it does not run any more its folder can be deleted")


def test_a_run_that_is_there_is_not_overwritten(cli: CommandLine) -> None:
    cli.done(*DIGITS, "--name", "run")
    assert cli.refused(*DIGITS, "--name", "run") == (
        "sam-bench: runs/run holds a run already: add --resume to continue it, or choose another --name or --run-dir"
    )
    # --resume would be refused: it is not offered.
    assert cli.refused(*DIGITS, "--name", "run", "--seed", "1") == (
        "sam-bench: runs/run holds another run already: it was started with --seed 0 and this command gives --seed 1; "
        "choose another --name or --run-dir"
    )


@pytest.mark.parametrize(
    ("arguments", "before", "now"),
    [
        (["--lr", "0.2"], "--lr 0.1", "--lr 0.2"),
        (["--epochs", "2"], "--epochs 1", "--epochs 2"),
        (["--seed", "1"], "--seed 0", "--seed 1"),
        (["--width", "3"], "--width 2", "--width 3"),
        (["--weights", "sam"], "--weights none", "--weights sam"),
        (["--recipe", "sam"], "--recipe standard", "--recipe sam"),
        (["--flip"], "--no-flip", "--flip"),
        (["--milestones", "0.5,0.75"], "--milestones 0.75,0.9", "--milestones 0.5,0.75"),
        (["--limit-train", "31"], "--limit-train 32", "--limit-train 31"),
        (["--validation", "8"], "--validation 0", "--validation 8"),
        (["--validation", "8", "--seed", "1"], "--seed 0", "--seed 1"),
        (["--validation-eps", "1/255"], "--validation-eps 2/255", "--validation-eps 1/255"),
        (["--micro-batch", "8"], "no --micro-batch", "--micro-batch 8"),
        (["--sync-ascent"], "no --sync-ascent", "--sync-ascent"),
        (["--compile", "on"], "--compile off", "--compile on"),
        (["--dataset-name", "other"], "no --dataset-name", "--dataset-name other"),
        (["--image-size", "16"], "--image-size 8", "--image-size 16"),
    ],
)
def test_resuming_with_another_setting_is_refused_by_its_option(
    cli: CommandLine, finished: Path, arguments: list[str], before: str, now: str
) -> None:
    shutil.copytree(finished, cli.folder / "runs/run")
    message = cli.refused(*DIGITS, "--name", "run", "--resume", *arguments)
    assert message == f"sam-bench: cannot resume runs/run: it was started with {before} and this command gives {now}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went to its end."""
    from sam_bench.cli.train import command

    folder = tmp_path_factory.mktemp("finished")
    arguments = [*DIGITS[1:], "--name", "run", "--run-dir", str(folder / "run"), "--zoo", str(folder / "zoo")]
    command.main([*arguments, "--quiet"], standalone_mode=False)
    return folder / "run"


def test_resume_without_a_run_begins_one(cli: CommandLine) -> None:
    assert "resuming" not in cli.done(*DIGITS, "--name", "run", "--resume").err
