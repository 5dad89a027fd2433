"""The loop: epochs over a split, a checkpoint and a log line after each, resumable at any step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from sam_bench.data import ResizedCrop, Split, StreamedSplit, make_batches
from sam_bench.device import fastest_convolutions
from sam_bench.distributed import ALONE, Team
from sam_bench.energy import counted_by
from sam_bench.errors import SamBenchError, StoppedError
from sam_bench.perturb.inputs import PGD
from sam_bench.perturb.weights.parts import Parts
from sam_bench.progress import Reporter, Stage
from sam_bench.seeds import derive_seed
from sam_bench.training.figures import NO_SUMS, Figures, Spent
from sam_bench.training.folder import RunFolder
from sam_bench.training.graphs import room_for_graphs
from sam_bench.training.memory_format import memory_format_for
from sam_bench.training.method import Method
from sam_bench.training.state import LogRow, RunConfig, RunState
from sam_bench.training.step import TrainingStep
from sam_bench.training.stopping import StopRequest, listening
from sam_bench.training.validate import examples_at_a_time, validate

_SHOW_EVERY = 20  # steps between two updates of the progress display
_AGREE_EVERY = 10  # steps between two questions of a team whether somebody has to stop
_MOST_ROLLBACKS = 3
_MARGIN = 100  # a checkpoint so few steps before a loss that is NaN may hold weights that were on their way there

# What a process can have to tell its team after a step; the largest number is what they all do.
_NOTHING, _SAVE, _STOP, _DIVERGED = 0, 1, 100, 1000  # _STOP: plus the signal's number


@dataclass(frozen=True)
class Trained:
    """What a run ends with: the weights to register, and what it took."""

    model: nn.Module
    state: RunState


class DivergedError(SamBenchError):
    """The loss or the weights became NaN or infinite."""


def fit(
    model: nn.Module,
    method: Method,
    train: Split | StreamedSplit,
    validation: Split | StreamedSplit | None,
    *,
    config: RunConfig,
    folder: Path,
    resume: bool,
    reporter: Reporter,
    team: Team = ALONE,
    keep: int = 1,
    save_every: float = 600.0,
) -> Trained:
    """Train, from the start or from the folder's checkpoint.

    On a CPU in a fixed number of threads the result is a function of `config` alone, however often
    the run was interrupted; on a GPU, whose sums depend on the order they are made in, it is so up to
    rounding.

    Args:
        model: Fresh, on the device of the splits.
        method: The built form of `config.recipe`.
        train: What is learnt from.
        validation: Measured after every epoch, if given; disjoint from `train`.
        config: What the run is; written into the folder.
        folder: Where checkpoint, log and TensorBoard events go.
        resume: Continue the run in `folder` if there is one.
        reporter: Where progress goes.
        team: The processes that share the run: every batch of the recipe is divided among them.
        keep: How many epochs' checkpoints stay.
        save_every: Seconds after which a checkpoint is written in the middle of an epoch.

    Raises:
        InputError: `folder` holds a run and `resume` is False, or another run.
        DivergedError: The loss became NaN or infinite, and there is nothing left to go back to.
        StoppedError: SIGTERM or Ctrl-C; a checkpoint is written.
        SamBenchError: A file could not be written.
    """
    run = _Run(model, method, train, validation, config=config, folder=folder, reporter=reporter, team=team)
    with run.folder.claimed() if team.is_main else nullcontext():
        run.open(resume=resume)
        with listening() as request, fastest_convolutions(), room_for_graphs(config.compiled):
            return run.finish(request, keep=keep, save_every=save_every)


class _Run:
    """A run that is under way."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        train: Split | StreamedSplit,
        validation: Split | StreamedSplit | None,
        *,
        config: RunConfig,
        folder: Path,
        reporter: Reporter,
        team: Team,
    ) -> None:
        # First, because it refuses what does not fit: the folder is claimed for runs that can begin.
        crop = config.recipe.augmentation
        self.batches = make_batches(
            train,
            batch_size=config.recipe.batch_size,
            seed=config.seed,
            augmentation=ResizedCrop(flip=crop.flip) if crop.random_resized_crop else crop,
            shard=(team.rank, team.size),
        )
        method.weights.check(model, epochs=config.recipe.epochs, steps=len(self.batches))
        self.model, self.validation, self.config, self.team = model, validation, config, team
        self.folder, self.reporter = RunFolder(folder), reporter
        self.memory_format = memory_format_for(model)
        model.to(memory_format=self.memory_format)
        self.step = TrainingStep(
            model,
            method,
            seed=config.seed,
            precision=config.precision,
            compiled=config.compiled,
            micro_batch=config.micro_batch,
            team=team,
            sync_ascent=config.sync_ascent,
        )
        self.state = RunState(devices=team.size)
        self.last_saved = ""
        # Of the processes whose meters count the same (a machine's CPUs, or one GPU), the first alone looks.
        counted = counted_by(self.device)
        self.meters = team.collect(counted).index(counted) == team.rank
        self.total = config.recipe.epochs * len(self.batches)

    @property
    def device(self) -> torch.device:
        """Where the run is."""
        return next(self.model.parameters()).device

    @property
    def learned(self) -> nn.Module:
        """The weights that are measured and registered."""
        return self.step.method.averaging.learned(self.step.average, self.model)

    @property
    def done(self) -> int:
        """Steps made."""
        return self.state.epoch * len(self.batches) + self.state.batch

    def open(self, *, resume: bool) -> None:
        """Claim the folder; continue from its checkpoint if there is one and it was asked for."""
        continues = False
        if self.team.is_main:
            continues = self.folder.open(self.config, resume=resume)
        if self.team.agree(continues):
            self._load()
            self.reporter.say(f"resuming {self.config.name} after {self._where()}")
            if self.state.devices != self.team.size:
                self.reporter.say(
                    f"it ran on {self.state.devices} device(s) and goes on on {self.team.size}: the batches stay the "
                    "same, but not what each device makes of its own part of one: dropout, BatchNorm without "
                    "--sync-bn, the ascent in the weights without --sync-ascent"
                )
                self.state.devices = self.team.size
        elif self.config.on_nan == "rollback" and self.team.is_main:
            self.folder.save(self.state, self._tensors(), keep=2)

    def finish(self, request: StopRequest, *, keep: int, save_every: float) -> Trained:
        """Train what is left."""
        keep = max(keep, 2) if self.config.on_nan == "rollback" else keep
        with self.reporter.stage(f"train {self.config.name}", self.total) as stage:
            while self.state.epoch < self.config.recipe.epochs:
                stage.update(self.done)
                events = None
                if self.team.is_main:
                    # A writer for each stretch: TensorBoard then forgets what was written after the checkpoint.
                    events = SummaryWriter(str(self.folder.path), purge_step=self.state.epoch + 1)
                try:
                    while self.state.epoch < self.config.recipe.epochs:
                        self._epoch(stage, request, save_every)
                        self._close_epoch(stage, events, keep)
                except DivergedError as error:
                    self._roll_back(error)
                finally:
                    if events is not None:
                        events.close()
        if self.config.select == "best" and self.state.best_epoch:
            # As they were measured: an average is not made ready again, which would recompute BatchNorm's statistics.
            self.learned.load_state_dict(self.team.share(self.folder.load_best() if self.team.is_main else {}))
        else:
            # As before every step: a run that only has this left to do must not depend on what was drawn before.
            torch.manual_seed(derive_seed(self.config.seed, "finish", self.team.rank))
            examples = self.step.method.averaging.finish(self.step.average, self._one_more_epoch())
            self.state.passes.train_forward += self.team.total([examples])[0]
            self._settle()
        return Trained(model=self.learned, state=self.state)

    def _one_more_epoch(self) -> Iterator[Tensor]:
        """The inputs of another epoch, in the parts that are learned from at a time."""
        for batch, (x, _) in enumerate(self.batches.epoch(self.config.recipe.epochs)):
            *_, total = self.batches.place(batch)
            shards = total // self.team.size, -(-total // self.team.size)
            for rows, _ in Parts(self.model, self.config.micro_batch, shards).cut(len(x)):
                yield x[rows]

    def _epoch(self, stage: Stage, request: StopRequest, save_every: float) -> None:
        state, step, batches, device = self.state, self.step, self.batches, self.device
        step.passes = state.passes
        self.model.train()
        # A checkpoint holds the sums and the energy of all processes: one of them goes on from it.
        figures = Figures(device, state.sums if self.team.is_main else NO_SUMS)
        joules_before = state.epoch_joules if self.team.is_main else 0.0
        spent = Spent(device, state.epoch_seconds, joules_before, meters=self.meters)
        next_save = spent.seconds + save_every
        for batch, (x, y) in enumerate(batches.epoch(state.epoch, start=state.batch), start=state.batch):
            first, count, total = batches.place(batch)
            number, last = self.done, batch == len(batches) - 1
            result = step(
                x.contiguous(memory_format=self.memory_format),
                y,
                step=number,
                progress=number / self.total,
                epoch=state.epoch,
                first=first,
                total=total,
                lr_scale=state.lr_scale,
                epoch_ended=last,
            )
            figures.add(result, examples=count, step=number)
            state.batch = batch + 1
            seen = figures.look(wait=last)
            if last or self.team.size == 1 or batch % _AGREE_EVERY == 0:
                bad_step = seen.bad_step if seen else -1
                news = _SAVE if spent.seconds > next_save and not last else _NOTHING
                news = _STOP + request.number if request.number else news
                news = self.team.agree(_DIVERGED if bad_step >= 0 else news)
                if news == _DIVERGED:
                    raise self._loss_diverged(bad_step if bad_step >= 0 else number)
                if news != _NOTHING:
                    self._note(figures, spent)
                    self._save_within_epoch(signal_number=news - _STOP)
                    next_save = spent.seconds + save_every
            if seen and (batch % _SHOW_EVERY == 0 or last):
                rate = min(state.batch * self.config.recipe.batch_size, self.config.train_examples) / spent.seconds
                stage.update(
                    self.done,
                    f"epoch {state.epoch + 1}, loss {seen.loss:.3f}, accuracy {seen.accuracy:.1%}, {rate:.0f} images/s",
                )
        self._note(figures, spent)

    def _note(self, figures: Figures, spent: Spent) -> None:
        self.state.sums = tuple(self.team.total(figures.state()))
        joules = spent.joules
        untold, told = self.team.total([float(joules is None), joules or 0.0])
        self.state.epoch_seconds, self.state.epoch_joules = spent.seconds, None if untold else told

    def _save_within_epoch(self, *, signal_number: int) -> None:
        """Write a checkpoint between two batches, and leave if a signal asked for it (a number above 0).

        It holds the mean of the processes' BatchNorm statistics, and each one's own. With these they go on, here and
        when as many resume the run: what is learned does not depend on when a checkpoint was written.
        """
        own = [each.clone() for each in self._statistics()]
        self._settle()
        self._stop_if_weights_diverged()
        of_all = self.team.gather([each.cpu() for each in own])
        if self.team.is_main:
            apart = {"statistics": of_all} if self.team.size > 1 else {}
            self.folder.save(self.state, self._tensors() | apart)
        self._take(own)
        self.last_saved = self._where()
        if signal_number > 0:
            raise StoppedError(
                f"stopped by {signal.Signals(signal_number).name} after {self._where()}; "
                f"{self.folder.checkpoint_file} holds all of it",
                signal_number,
            )

    def _close_epoch(self, stage: Stage, events: SummaryWriter | None, keep: int) -> None:
        """Measure, log and save an epoch just made."""
        state = self.state
        self._settle()
        self._stop_if_weights_diverged()
        losses, hits, seen, norms, steps, ascent_norms, ascents = state.sums
        row: LogRow = {
            "epoch": state.epoch + 1,
            "loss": losses / seen,
            "train_accuracy": hits / seen,
            "gradient_norm": norms / steps,
            "learning_rate": self.step.optimizer.param_groups[0]["lr"],
            "images_per_second": seen / state.epoch_seconds,
            "seconds": state.seconds + state.epoch_seconds,
        }
        if ascents:
            row["ascent_gradient_norm"] = ascent_norms / ascents
        if self.validation is not None and self.team.is_main:
            pgd = PGD(norm=self.config.validation_norm, eps=self.config.validation_eps, steps=10, bn_mode="eval")
            at_a_time = examples_at_a_time(self.config, self.team.size)
            measured = validate(self.learned, self.validation, pgd, seed=self.config.seed, at_a_time=at_a_time)
            row |= {"validation_accuracy": measured.clean, "validation_robust_accuracy": measured.robust}
            if (measured.robust, measured.clean) > state.best:
                state.best, state.best_epoch = (measured.robust, measured.clean), state.epoch + 1
                self.folder.save_best(state.best_epoch, self.learned.state_dict())
        state.epoch, state.seconds = state.epoch + 1, state.seconds + state.epoch_seconds
        if state.joules is not None:
            state.joules = None if state.epoch_joules is None else state.joules + state.epoch_joules
        state.batch, state.sums, state.epoch_seconds, state.epoch_joules = 0, NO_SUMS, 0.0, 0.0
        state.log.append(row)
        state.best_epoch = self.team.agree(state.best_epoch)
        if events is not None:
            # Before the checkpoint: what a killed run has written too much is purged when it resumes,
            # what it had not written yet would be missing for good.
            for key, value in row.items():
                if key != "epoch":
                    events.add_scalar(key, value, state.epoch)
            events.flush()
            self.folder.save(state, self._tensors(), keep=keep)
        self.last_saved = self._where()
        stage.update(self.done, _figures(row))

    def _roll_back(self, error: DivergedError) -> None:
        """Return to the last checkpoint with some distance and half the learning rate, or give up."""
        rollbacks, scale = self.state.rollbacks + 1, self.state.lr_scale / 2
        best = self.state.best, self.state.best_epoch
        if self.config.on_nan == "stop" or rollbacks > _MOST_ROLLBACKS:
            raise error
        steps = len(self.batches)
        good = (self.done - min(_MARGIN, steps)) // steps
        # Only rank 0 may see the folder.
        self._load(self.folder.kept(until=good)[-1] if self.team.is_main else None)
        self.state.rollbacks, self.state.lr_scale = rollbacks, scale
        self.state.best, self.state.best_epoch = best  # the best epoch's weights, too, stay in the folder
        self.reporter.say(
            f"{error.args[0].split(';')[0]}: back to the checkpoint of epoch {self.state.epoch} with the learning "
            f"rate times {scale:g} (rollback {rollbacks} of at most {_MOST_ROLLBACKS})"
        )

    def _where(self) -> str:
        """How far the run is, in words."""
        text = f"epoch {self.state.epoch} of {self.config.recipe.epochs}"
        return text + (f" and batch {self.state.batch} of {len(self.batches)} of the next" if self.state.batch else "")

    def _load(self, path: Path | None = None) -> None:
        # Rank 0 reads: the others may be on machines that do not see its folder.
        self.state, tensors = self.team.share(self.folder.load(path) if self.team.is_main else (RunState(), {}))
        self.last_saved = self._where()
        _restore(self.step, tensors)
        of_all = tensors.get("statistics", [])
        if len(of_all) == self.team.size:
            self._take(of_all[self.team.rank])

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's, of the network and of its average: within an epoch each process of a team has its own."""
        networks = [each for each in (self.model, self.step.average) if each is not None]
        return [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def _take(self, statistics: list[Tensor]) -> None:
        for buffer, value in zip(self._statistics(), statistics, strict=True):
            buffer.copy_(value)

    def _settle(self) -> None:
        """Give every process of a team the same BatchNorm statistics: the mean of what each has seen."""
        self.team.average_(self._statistics())

    def _stop_if_weights_diverged(self) -> None:
        """The last loss is that of the weights before it: a checkpoint is good only if those after it are finite."""
        weights = self.model.state_dict()
        if self.step.average is not None:
            weights |= self.step.average.state_dict()  # under names of its own, which begin with `module.`
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise self._diverged(f"{name} became NaN or infinite in epoch {self.state.epoch + 1}")

    def _loss_diverged(self, step: int) -> DivergedError:
        rate = self.step.optimizer.param_groups[0]["lr"]
        return self._diverged(f"the loss became NaN or infinite at step {step} at learning rate {rate:.4g}")

    def _diverged(self, what: str) -> DivergedError:
        last = "no checkpoint was saved before it"
        if self.last_saved:
            last = f"the last good checkpoint is {self.folder.checkpoint_file} (after {self.last_saved})"
        way = ", or --on-nan rollback to have the run go back by itself" if self.config.on_nan == "stop" else ""
        smaller = "--lr or --rho" if "rho" in self.config.recipe.weights.settings else "--lr"
        return DivergedError(f"training diverged: {what}; {last}. Try a smaller {smaller}{way}.")

    def _tensors(self) -> dict[str, Any]:
        step = self.step
        return {
            "model": step.model.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "average": step.average.state_dict() if step.average is not None else {},
            "inputs": step.method.inputs.state_dict(),
            "weights": step.method.weights.state_dict(),
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
