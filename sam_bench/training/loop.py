"""The loop: epochs over a split, a checkpoint and a log line after each, resumable at any of them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from sam_bench.data import Batches, Split
from sam_bench.errors import SamBenchError
from sam_bench.perturb.inputs import PGD
from sam_bench.progress import Reporter, Stage
from sam_bench.training.method import Method
from sam_bench.training.state import LogRow, RunConfig, RunFolder, RunState
from sam_bench.training.step import TrainingStep
from sam_bench.training.validate import validate

_LOOK_EVERY = 20  # steps between two looks at the loss; each look waits for the device


@dataclass(frozen=True)
class Trained:
    """What a run ends with: the weights to register, and what it took."""

    model: nn.Module
    state: RunState


def fit(
    model: nn.Module,
    method: Method,
    train: Split,
    validation: Split | None,
    *,
    config: RunConfig,
    folder: Path,
    resume: bool,
    reporter: Reporter,
) -> Trained:
    """Train, from the start or from the folder's checkpoint.

    On a CPU in a fixed number of threads the result is a function of `config` alone, however often
    the run was interrupted.

    Args:
        model: Fresh, on the device of the splits.
        method: The built form of `config.recipe`.
        train: What is learnt from.
        validation: Measured after every epoch, if given; disjoint from `train`.
        config: What the run is; written into the folder.
        folder: Where checkpoint, log and TensorBoard events go.
        resume: Continue the run in `folder` if there is one.
        reporter: Where progress goes.

    Raises:
        InputError: `folder` holds a run and `resume` is False, or another run.
        SamBenchError: The loss became NaN or infinite, or a file could not be written.
    """
    # First, because it refuses what does not fit: the folder is claimed for runs that can begin.
    batches = Batches(
        train, batch_size=config.recipe.batch_size, seed=config.seed, augmentation=config.recipe.augmentation
    )
    run = RunFolder(folder)
    continues = run.open(config, resume=resume)
    model.to(memory_format=torch.channels_last)
    step = TrainingStep(model, method, seed=config.seed, precision=config.precision, compiled=config.compiled)
    state = RunState()
    if continues:
        state, tensors = run.load()
        _restore(step, tensors)
        reporter.say(f"resuming {config.name} after epoch {state.epoch} of {config.recipe.epochs}")

    epochs = config.recipe.epochs
    pgd = PGD(norm=config.validation_norm, eps=config.validation_eps, steps=10, bn_mode="eval")
    with (
        SummaryWriter(str(folder), purge_step=state.epoch + 1) as events,
        reporter.stage(f"train {config.name}", epochs * len(batches)) as stage,
    ):
        step.passes = state.passes
        if continues:
            stage.update(state.epoch * len(batches))
        for epoch in range(state.epoch, epochs):
            model.train()
            row = _epoch(step, batches, epoch, total=epochs * len(batches), state=state, run=run, stage=stage)
            learned = step.average.module if step.average is not None else model
            if validation is not None:
                measured = validate(learned, validation, pgd, seed=config.seed)
                row |= {"validation_accuracy": measured.clean, "validation_robust_accuracy": measured.robust}
            _stop_if_weights_diverged(learned, epoch + 1, state, run)
            state.epoch = epoch + 1
            state.log.append(row)
            # Before the checkpoint: what a killed run has written too much is purged when it resumes,
            # what it had not written yet would be missing for good.
            for key, value in row.items():
                if key != "epoch":
                    events.add_scalar(key, value, state.epoch)
            events.flush()
            run.save(state, _tensors(step))
            stage.update(state.epoch * len(batches), _figures(row))
    return Trained(model=step.average.module if step.average is not None else model, state=state)


def _epoch(
    step: TrainingStep, batches: Batches, epoch: int, *, total: int, state: RunState, run: RunFolder, stage: Stage
) -> LogRow:
    """One pass over the split; the figures of its log line."""
    started = time.monotonic()
    seen = 0
    loss_sum: Tensor | float = 0.0
    hits: Tensor | int = 0
    rate = 0.0
    for number, (x, y) in enumerate(batches.epoch(epoch)):
        done = epoch * len(batches) + number
        x = x.contiguous(memory_format=torch.channels_last)
        loss, correct = step(x, y, step=done, progress=done / total)
        rate = step.optimizer.param_groups[0]["lr"]
        loss_sum, hits, seen = loss_sum + loss * len(x), hits + correct, seen + len(x)
        if number % _LOOK_EVERY == 0 or number == len(batches) - 1:
            _stop_if_diverged(float(loss_sum), done, rate, state, run)
            stage.update(done + 1, f"epoch {epoch + 1}, loss {float(loss_sum) / seen:.3f}")
    seconds = time.monotonic() - started
    state.seconds += seconds
    return {
        "epoch": epoch + 1,
        "loss": float(loss_sum) / seen,
        "train_accuracy": int(hits) / seen,
        "learning_rate": rate,
        "images_per_second": seen / seconds,
        "seconds": state.seconds,
    }


def _stop_if_diverged(loss: float, step: int, rate: float, state: RunState, run: RunFolder) -> None:
    if not math.isfinite(loss):
        raise _diverged(f"the loss became {loss} by step {step} at learning rate {rate:.4g}", state, run)


def _stop_if_weights_diverged(model: nn.Module, epoch: int, state: RunState, run: RunFolder) -> None:
    """The last step's loss is that of the weights before it: a checkpoint is good only if those after it are finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise _diverged(f"{name} became NaN or infinite by the end of epoch {epoch}", state, run)


def _diverged(what: str, state: RunState, run: RunFolder) -> SamBenchError:
    last = (
        f"the last good checkpoint is {run.checkpoint_file} (epoch {state.epoch})" if state.epoch else "none was saved"
    )
    return SamBenchError(f"training diverged: {what}; {last}. Try a smaller --lr or --rho.")


def _tensors(step: TrainingStep) -> dict[str, Any]:
    method = step.method
    return {
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "average": step.average.state_dict() if step.average is not None else {},
        "inputs": method.inputs.state_dict(),
        "weights": method.weights.state_dict(),
    }


def _restore(step: TrainingStep, tensors: dict[str, Any]) -> None:
    step.model.load_state_dict(tensors["model"])
    step.optimizer.load_state_dict(tensors["optimizer"])
    if step.average is not None:
        step.average.load_state_dict(tensors["average"])
    step.method.inputs.load_state_dict(tensors["inputs"])
    step.method.weights.load_state_dict(tensors["weights"])


def _figures(row: LogRow) -> str:
    text = f"epoch {row['epoch']:.0f}, loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s"
    if "validation_accuracy" in row:
        text += f", validation {row['validation_accuracy']:.1%} clean {row['validation_robust_accuracy']:.1%} robust"
    return text
