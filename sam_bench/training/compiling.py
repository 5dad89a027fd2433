"""Whether `torch.compile` pays for a run: it costs a minute or so, and what it gains is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sam_bench import graphs
from sam_bench.device import missing_for_compile
from sam_bench.errors import InputError, first_line
from sam_bench.modes import batch_norm_statistics_kept, frozen, training_mode
from sam_bench.records import Precision
from sam_bench.seeds import generator
from sam_bench.training.build import BuiltRecipe
from sam_bench.training.memory_format import memory_format_for

# Seconds of a run that is worth a trial: where compiling gains nothing, the trial has cost a tenth of it at most. A
# GPU's kernels take less long to make than those of a busy CPU; how long was not measured.
_TRIED_FROM = {"cpu": 1800.0, "cuda": 600.0}
_CLEARLY = 1.1  # times as fast: so few passes on a busy machine tell no smaller gain
_ROUNDS = 3  # of a trial, a pass of each kind; the fastest of each counts


def choose_compile(
    asked: str,
    model: nn.Module,
    built: BuiltRecipe,
    *,
    shape: tuple[int, int, int],
    examples: int,
    device: torch.device,
    rows: int,
    precision: Precision = "fp32",
    sync_bn: bool = False,
) -> tuple[bool, str]:
    """Whether to compile, and why.

    Args:
        asked: "on", "off" or "auto".
        model: What is trained, on `device`.
        built: The recipe.
        shape: Of an image, (C, H, W).
        examples: Training images that this device learns from.
        device: Where.
        rows: Images that it runs at a time.
        precision: Of training.
        sync_bn: BatchNorm runs over several devices.

    Raises:
        InputError: It is asked for where something is missing that it needs, or with what it cannot trace.
    """
    missing = missing_for_compile(device)
    if asked == "on" and missing is not None:
        raise InputError(
            f"cannot be had: there is no {missing}, which torch.compile needs",
            field="compile",
            value="on",
            hint="use auto or off",
        )
    hindered = _hindered(built, device, sync_bn=sync_bn)
    if hindered is not None and asked != "off":
        if asked == "on":
            raise InputError(f"cannot be had: {hindered}", field="compile", value="on", hint="use auto or off")
        return False, hindered
    if asked != "auto":
        return asked == "on", "asked for"
    if device.type not in _TRIED_FROM:
        return False, f"not tried on {device.type}"
    if missing is not None:
        return False, f"there is no {missing}, which torch.compile needs"
    attack, learn = built.search_passes, built.weights.passes_with(built.objective.passes)
    images = torch.rand(rows, *shape, generator=generator("compile")).to(device)
    trial = _Trial(model, images, precision, searches=sum(attack) > 0)
    # Back costs as much as forward for the input and as much again for the weights.
    passes = (attack[0] + attack[1] + learn[0] + 2 * learn[1]) / (2 if trial.searches else 3)
    passes *= built.recipe.epochs * built.inputs.steps_per_batch * examples / rows
    run = passes * trial.seconds(model)
    if run >= _TRIED_FROM[device.type]:  # the first pass of a process may be slow
        run = min(run, passes * trial.seconds(model))
    if run < _TRIED_FROM[device.type]:
        return False, f"the run takes about {run:,.0f} s, too few to earn the compilation back"
    return trial.verdict(passes)


class _Trial:
    """Passes forward and back on a batch, as the run has most of: for the input where it searches, else to learn."""

    def __init__(self, model: nn.Module, images: Tensor, precision: Precision, *, searches: bool) -> None:
        layout = memory_format_for(model)
        self.model, self.searches = model.to(memory_format=layout), searches
        self._images = images.contiguous(memory_format=layout).requires_grad_(searches)
        self._bf16 = precision == "bf16"

    def seconds(self, called: Callable[[Tensor], Tensor]) -> float:
        """Of a pass. A CPU's are the processor's, shared by its threads: other processes do not count."""
        model, images, device = self.model, self._images, self._images.device
        weights = [each for each in model.parameters() if each.requires_grad]
        started = _now(device)
        kept = frozen(model) if self.searches else nullcontext()
        with training_mode(model, True), batch_norm_statistics_kept(model), kept, torch.random.fork_rng(devices=[]):
            with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
                loss = called(images).float().logsumexp(1).sum()
            torch.autograd.grad(loss, [images] if self.searches else weights, allow_unused=True)
        return _now(device) - started

    def verdict(self, passes: float) -> tuple[bool, str]:
        """Whether compiling pays in a run of so many passes, and why: the model is compiled to see."""
        started = time.perf_counter()
        with graphs.room_for_graphs(True):
            compiled = graphs.compiled(self.model)
            try:
                self.seconds(compiled)
            except RuntimeError as error:
                return False, f"it cannot be compiled: {first_line(error)}"
            cost = time.perf_counter() - started
            turns = [(self.seconds(self.model), self.seconds(compiled)) for _ in range(_ROUNDS)]
        plain, quick = (min(each) for each in zip(*turns, strict=True))
        pays = passes * (plain - quick) > cost and plain >= _CLEARLY * quick
        told = f"a pass takes {1e3 * quick:.3g} ms compiled and {1e3 * plain:.3g} ms not, compiling {cost:.0f} s"
        return pays, f"{told}, the run about {passes * (quick if pays else plain):,.0f} s"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def _hindered(built: BuiltRecipe, device: torch.device, *, sync_bn: bool) -> str | None:
    """Why such a run cannot be compiled, or would gain nothing; None where it can."""
    if built.objective.differentiates_slopes:
        return f"objective {built.objective.method} differentiates a gradient, which torch.compile cannot"
    if sync_bn and device.type == "cuda":
        return "with `sync_bn` on GPUs the graph breaks at every BatchNorm layer"
    return None
