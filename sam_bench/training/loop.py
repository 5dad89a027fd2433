"""The loop: epochs over a split, logged, with checkpoints from which a run resumes at any step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_bench.data import (
    Batches,
    Extra,
    MixedBatches,
    ResizedCrop,
    Split,
    StreamedBatches,
    StreamedSplit,
    make_batches,
)
from sam_bench.device import fastest_convolutions
from sam_bench.distributed import ALONE, Team
from sam_bench.energy import counted_by
from sam_bench.errors import StoppedError
from sam_bench.graphs import room_for_graphs
from sam_bench.perturb.weights import StepContext
from sam_bench.perturb.weights.microbatches import Microbatches
from sam_bench.progress import Reporter, Stage
from sam_bench.seeds import derive_seed
from sam_bench.training import epochs
from sam_bench.training.build import BuiltRecipe
from sam_bench.training.checkpoints import Checkpoints, DivergedError
from sam_bench.training.folder import RunFolder
from sam_bench.training.memory_format import memory_format_for
from sam_bench.training.metrics import NO_SUMS, Metrics, Timer
from sam_bench.training.state import RunConfig, RunState
from sam_bench.training.step import TrainingStep
from sam_bench.training.stopping import Notice, StopRequest, listening

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter  # takes half a second to load

__all__ = ["DivergedError", "Ready", "Saving", "Trained", "TrainingRun"]

_SHOW_EVERY = 20  # steps between two updates of the progress display
_AGREE_EVERY = 10  # steps between two questions of a team whether somebody has to stop
_MOST_ROLLBACKS = 3
_MARGIN = 100  # a checkpoint so few steps before a loss that is NaN may hold weights that were on their way there


@dataclass(frozen=True)
class Saving:
    """What a run writes, and where.

    Attributes:
        folder: For checkpoint, log and TensorBoard events.
        resume: Continue the run in `folder` if there is one.
        keep: How many epochs' checkpoints stay. From two on, every epoch has one.
        save_every: Seconds after which a checkpoint is written in the middle of an epoch.
        pause: Seconds between a checkpoint and the next one at the end of an epoch; at most `save_every` counts.
    """

    folder: Path
    resume: bool = False
    keep: int = 1
    save_every: float = 600.0
    pause: float = 10.0


@dataclass(frozen=True)
class Ready:
    """All that a run needs.

    Attributes:
        model: Fresh, on the device of the splits.
        recipe: The built form of `config.recipe`.
        train: What is learned from.
        validation: Measured after every epoch, if given; disjoint from `train`.
        config: What the run is; written into its folder.
        saving: What is written, and where.
        reporter: Where progress goes.
        team: The processes that share the run: every batch of the recipe is divided among them.
        extra: Further images to learn from, on the device of the splits.
    """

    model: nn.Module
    recipe: BuiltRecipe
    train: Split | StreamedSplit
    validation: Split | StreamedSplit | None
    config: RunConfig
    saving: Saving
    reporter: Reporter
    team: Team = ALONE
    extra: Extra | None = None


@dataclass(frozen=True)
class Trained:
    """What a run ends with: the weights to register, and what it took."""

    model: nn.Module
    state: RunState


class TrainingRun:
    """A run, from the start or from its folder's checkpoint.

    On a CPU in a fixed number of threads the result is a function of the config alone, however often
    the run was interrupted; on a GPU, whose sums depend on the order they are made in, it is so up to
    rounding.

    Args:
        ready: What it needs.

    Raises:
        InputError: The recipe does not fit the model or the length of the run.
    """

    def __init__(self, ready: Ready) -> None:
        # Everything that can be refused is refused here, before the folder is claimed.
        config, team, model = ready.config, ready.team, ready.model
        crop = config.recipe.augmentation
        self._batches: Batches | StreamedBatches | MixedBatches = make_batches(
            ready.train,
            batch_size=config.recipe.batch_size,
            seed=config.seed,
            augmentation=ResizedCrop(flip=crop.flip) if crop.random_resized_crop else crop,
            shard=(team.rank, team.size),
            extra=ready.extra,
        )
        if crop.mixup or crop.cutmix:
            self._batches = MixedBatches(
                self._batches,
                mixup=crop.mixup,
                cutmix=crop.cutmix,
                num_classes=config.architecture.num_classes,
                seed=config.seed,
            )
        steps = len(self._batches)
        ready.recipe.weights.check(model, epochs=config.recipe.epochs, steps=steps)
        self._ready, self._config, self._team, self._reporter = ready, config, team, ready.reporter
        self._memory_format = memory_format_for(model)
        model.to(memory_format=self._memory_format)
        self._step = TrainingStep(
            model,
            ready.recipe,
            precision=config.precision,
            compiled=config.compiled,
            micro_batch=config.micro_batch,
            team=team,
            sync_ascent=config.sync_ascent,
            whole=min(config.recipe.batch_size, config.train_examples),
        )
        self._device = next(model.parameters()).device
        self._folder, self._state = RunFolder(ready.saving.folder), RunState(devices=team.size)
        self._checkpoints = Checkpoints(self._folder, self._step, config, steps_per_epoch=steps, team=team)
        # Several processes may read the same meter (a machine's CPUs, or one GPU): only the first of them counts.
        counted = counted_by(self._device)
        self._meters = team.all_gather(counted).index(counted) == team.rank
        self._total = config.recipe.epochs * steps

    def fit(self) -> Trained:
        """Train what is left.

        Raises:
            InputError: The folder holds a run and `resume` is False, or another run.
            DivergedError: The loss became NaN or infinite, and there is nothing left to go back to.
            StoppedError: SIGTERM or Ctrl-C; a checkpoint is written.
            SamBenchError: A file could not be written.
        """
        with self._folder.claimed() if self._team.is_main else nullcontext():
            self._open()
            with listening() as request, fastest_convolutions(), room_for_graphs(self._config.compiled):
                self._epochs(request)
                return self._finish()

    @property
    def _learned(self) -> nn.Module:
        """The weights that are measured and registered."""
        return self._step.recipe.averaging.learned(self._step.average, self._step.model)

    @property
    def _done(self) -> int:
        """Steps made."""
        return self._state.epoch * len(self._batches) + self._state.batch

    def _open(self) -> None:
        """Claim the folder; continue from its checkpoint if there is one and it was asked for."""
        continues = False
        if self._team.is_main:
            continues = self._folder.open(self._config, resume=self._ready.saving.resume)
        if self._team.all_reduce_max(continues):
            self._state = self._checkpoints.load()
            self._reporter.say(f"resuming {self._config.name} after {self._checkpoints.where(self._state)}")
            if self._state.devices != self._team.size:
                self._reporter.say(
                    f"it ran on {self._state.devices} device(s) and continues on {self._team.size}: the batches stay "
                    "the same, but their parts change, and with them dropout, BatchNorm without sync_bn, and the "
                    "ascent in the weights without sync_ascent"
                )
                self._state.devices = self._team.size
        elif self._config.on_nan == "rollback":
            self._checkpoints.save_first(self._state)

    def _epochs(self, request: StopRequest) -> None:
        with self._reporter.stage(f"train {self._config.name}", self._total) as stage:
            while self._state.epoch < self._config.recipe.epochs:
                stage.update(self._done)
                events = None
                if self._team.is_main:
                    from torch.utils.tensorboard import SummaryWriter

                    # A writer for each stretch: TensorBoard then forgets what was written after the checkpoint.
                    events = SummaryWriter(str(self._folder.path), purge_step=self._state.epoch + 1)
                try:
                    while self._state.epoch < self._config.recipe.epochs:
                        self._epoch(stage, request)
                        self._close_epoch(stage, events)
                except DivergedError as error:
                    self._roll_back(error)
                finally:
                    if events is not None:
                        events.close()

    def _finish(self) -> Trained:
        if self._config.select == "best" and self._state.best_epoch:
            # As they were measured: an average is not made ready again, which would recompute BatchNorm's statistics.
            self._learned.load_state_dict(self._checkpoints.load_best())
        else:
            # As before every step: a run that only has this left to do must not depend on what was drawn before.
            torch.manual_seed(derive_seed(self._config.seed, "finish", self._team.rank))
            examples = self._step.recipe.averaging.finish(self._step.average, self._one_more_epoch())
            self._state.passes.train_forward += self._team.total([examples])[0]
            self._checkpoints.settle()
        return Trained(model=self._learned, state=self._state)

    def _one_more_epoch(self) -> Iterator[Tensor]:
        """The inputs of another epoch, in the microbatches that are learned from."""
        for batch, (x, _) in enumerate(self._batches.epoch(self._config.recipe.epochs)):
            *_, total = self._batches.share_of(batch)
            shards = total // self._team.size, -(-total // self._team.size)
            for rows, _ in Microbatches(self._step.model, self._config.micro_batch, shards).cut(len(x)):
                yield x[rows]

    def _epoch(self, stage: Stage, request: StopRequest) -> None:
        state, step, batches, save_every = self._state, self._step, self._batches, self._ready.saving.save_every
        step.model.train()
        # A checkpoint holds the sums and the energy of all processes: rank 0 alone goes on from them.
        metrics = Metrics(self._device, state.sums if self._team.is_main else NO_SUMS)
        joules_before = state.epoch_joules if self._team.is_main else 0.0
        timer = Timer(self._device, state.epoch_seconds, joules_before, meters=self._meters)
        next_save = timer.seconds + save_every
        for batch, (x, y) in enumerate(batches.epoch(state.epoch, start=state.batch), start=state.batch):
            first, count, total = batches.share_of(batch)
            index, last = self._done, batch == len(batches) - 1
            result = step(
                x.contiguous(memory_format=self._memory_format),
                y,
                at=StepContext(self._config.seed, state.epoch, index, index / self._total),
                first=first,
                total=total,
                lr_scale=state.lr_scale,
                epoch_ended=last,
            )
            metrics.add(result, examples=count, step=index)
            state.passes += result.passes
            state.batch = batch + 1
            seen = metrics.look(wait=last)
            if last or self._team.size == 1 or batch % _AGREE_EVERY == 0:
                bad_step = seen.bad_step if seen else -1
                notice = request.notice or (Notice.SAVE if timer.seconds > next_save and not last else Notice.NOTHING)
                notice = Notice(self._team.all_reduce_max(Notice.DIVERGED if bad_step >= 0 else notice))
                if notice is Notice.DIVERGED:
                    raise self._loss_diverged(bad_step if bad_step >= 0 else index)
                if notice is not Notice.NOTHING:
                    self._note(metrics, timer)
                    self._checkpoints.save_within_epoch(state)
                    self._stop_if_told(notice)
                    next_save = timer.seconds + save_every
            if seen and (batch % _SHOW_EVERY == 0 or last):
                rate = min(state.batch * self._config.recipe.batch_size, self._config.train_examples) / timer.seconds
                stage.update(
                    self._done,
                    f"epoch {state.epoch + 1}, loss {seen.loss:.3f}, accuracy {seen.accuracy:.1%}, {rate:.0f} images/s",
                )
        self._note(metrics, timer)

    def _note(self, metrics: Metrics, timer: Timer) -> None:
        self._state.sums = tuple(self._team.total(metrics.state()))
        joules = timer.joules
        unknown, known = self._team.total([float(joules is None), joules or 0.0])
        self._state.epoch_seconds, self._state.epoch_joules = timer.seconds, None if unknown else known

    def _stop_if_told(self, notice: Notice) -> None:
        if notice.signal is not None:
            raise StoppedError(
                f"stopped by {notice.signal.name} after {self._checkpoints.where(self._state)}; "
                f"{self._folder.checkpoint_file} holds all of it",
                notice.signal,
            )

    def _close_epoch(self, stage: Stage, events: SummaryWriter | None) -> None:
        """Measure, log and, where the last checkpoint is some seconds old, save an epoch just made."""
        state, saving, validation = self._state, self._ready.saving, self._ready.validation
        self._checkpoints.settle()
        self._checkpoints.check_weights(state)
        row = epochs.log_row(state, self._step.optimizer.param_groups[0]["lr"])
        if validation is not None and self._team.is_main:
            measured = epochs.measure(self._learned, validation, self._config, self._team.size)
            row |= {"validation_accuracy": measured.clean, "validation_robust_accuracy": measured.robust}
            if (measured.robust, measured.clean) > state.best:
                state.best, state.best_epoch = (measured.robust, measured.clean), state.epoch + 1
                self._checkpoints.keep_best(state.best_epoch, self._learned.state_dict())
        epochs.close(state, row)
        state.best_epoch = self._team.all_reduce_max(state.best_epoch)
        if events is not None:
            # Before the checkpoint: what a killed run has written too much is purged when it resumes,
            # what it had not written yet would be missing for good.
            epochs.write_events(events, row, state.epoch)
        # On a GPU a checkpoint may take half as long as an epoch: short epochs do not each have one.
        every = saving.keep > 1 or state.epoch == self._config.recipe.epochs
        if every or self._checkpoints.due(min(saving.pause, saving.save_every)):
            keep = max(saving.keep, 2) if self._config.on_nan == "rollback" else saving.keep
            self._checkpoints.save_epoch(state, keep=keep)
        stage.update(self._done, epochs.in_words(row))

    def _roll_back(self, error: DivergedError) -> None:
        """Return to the last checkpoint with some distance and half the learning rate, or give up."""
        rollbacks, scale = self._state.rollbacks + 1, self._state.lr_scale / 2
        best = self._state.best, self._state.best_epoch
        if self._config.on_nan == "stop" or rollbacks > _MOST_ROLLBACKS:
            raise error
        steps = len(self._batches)
        good = (self._done - min(_MARGIN, steps)) // steps
        # Only rank 0 may see the folder.
        self._state = self._checkpoints.load(self._folder.kept(until=good)[-1] if self._team.is_main else None)
        self._state.rollbacks, self._state.lr_scale = rollbacks, scale
        self._state.best, self._state.best_epoch = best  # the best epoch's weights, too, stay in the folder
        self._reporter.say(
            f"{error.args[0].split(';')[0]}: back to the checkpoint of epoch {self._state.epoch} with the learning "
            f"rate times {scale:g} (rollback {rollbacks} of at most {_MOST_ROLLBACKS})"
        )

    def _loss_diverged(self, step: int) -> DivergedError:
        rate = self._step.optimizer.param_groups[0]["lr"]
        return self._checkpoints.diverged(f"the loss became NaN or infinite at step {step} at learning rate {rate:.4g}")
