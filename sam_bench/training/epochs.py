"""What is kept of an epoch: a row of the log, the accuracies on the validation images, TensorBoard's events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sam_bench.data import Split, StreamedSplit
from sam_bench.perturb.inputs import PGD
from sam_bench.training.metrics import NO_SUMS
from sam_bench.training.state import LogRow, RunConfig, RunState
from sam_bench.training.validate import Validation, examples_at_a_time, validate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter  # takes half a second to load


def log_row(state: RunState, learning_rate: float) -> LogRow:
    """The metrics of the epoch that a run has just made, for the log.

    Args:
        state: Before `close`.
        learning_rate: The last step's.
    """
    losses, hits, seen, norms, steps, ascent_norms, ascents = state.sums
    row: LogRow = {
        "epoch": state.epoch + 1,
        "loss": losses / seen,
        "train_accuracy": hits / seen,
        "gradient_norm": norms / steps,
        "learning_rate": learning_rate,
        "images_per_second": seen / state.epoch_seconds,
        "seconds": state.seconds + state.epoch_seconds,
    }
    if ascents:
        row["ascent_gradient_norm"] = ascent_norms / ascents
    return row


def measure(model: nn.Module, validation: Split | StreamedSplit, config: RunConfig, devices: int) -> Validation:
    """Accuracy on the validation images, clean and under PGD-10.

    Args:
        model: The weights learned so far.
        validation: Held out from training.
        config: The run's.
        devices: That share the run's batches.
    """
    pgd = PGD(norm=config.validation_norm, eps=config.validation_eps, steps=10, bn_mode="eval")
    at_a_time = examples_at_a_time(config, devices)
    return validate(model, validation, pgd, seed=config.seed, at_a_time=at_a_time)


def close(state: RunState, row: LogRow) -> None:
    """Count the epoch as done, and begin the sums of the next."""
    state.epoch, state.seconds = state.epoch + 1, state.seconds + state.epoch_seconds
    if state.joules is not None:
        state.joules = None if state.epoch_joules is None else state.joules + state.epoch_joules
    state.batch, state.sums, state.epoch_seconds, state.epoch_joules = 0, NO_SUMS, 0.0, 0.0
    state.log.append(row)


def write_events(events: SummaryWriter, row: LogRow, epoch: int) -> None:
    """Give a row to TensorBoard."""
    for key, value in row.items():
        if key != "epoch":
            events.add_scalar(key, value, epoch)
    events.flush()


def in_words(row: LogRow) -> str:
    """A row for the progress display."""
    text = f"epoch {row['epoch']:.0f}, loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s"
    if "validation_accuracy" in row:
        text += f", validation {row['validation_accuracy']:.1%} clean {row['validation_robust_accuracy']:.1%} robust"
    return text
