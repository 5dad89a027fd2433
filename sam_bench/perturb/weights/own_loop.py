"""A weight perturbation in somebody's own training loop: with autocast, DDP and any loss as PyTorch users have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sam_bench.distributed import current_team
from sam_bench.errors import InputError
from sam_bench.perturb.inputs import at_least_float32
from sam_bench.perturb.weights.runner import Runner, Score

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [B, classes] and labels [B] to the mean loss, or to a loss per example, [B]."""


class OwnLoss:
    """A PyTorch loss as an objective.

    Args:
        loss_fn: The loss.
        model: The network.
        labels: Of the batch, of which a pass may see a part.

    Raises:
        InputError: The loss has parameters that learn. Their gradients would be summed over all passes of all steps.
    """

    passes = (1.0, 1.0)

    def __init__(self, loss_fn: LossFunction, model: nn.Module, labels: Tensor) -> None:
        self._loss_fn, self._labels = loss_fn, labels
        known = set(map(id, model.parameters()))
        for name, parameter in loss_fn.named_parameters() if isinstance(loss_fn, nn.Module) else []:
            if parameter.requires_grad and id(parameter) not in known:
                raise InputError(
                    f"has a parameter that learns ({name}), and the model does not have it",
                    field="loss_fn",
                    hint="make it a part of the model",
                )

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The loss of every example, [B]; the mean in each place if the function gives the mean."""
        logits = at_least_float32(score(x_adv))  # as autocast does for the losses of PyTorch
        losses = self._loss_fn(logits, y)
        if losses.shape not in ((), (len(logits),)):
            raise InputError(
                f"gives a tensor of shape {tuple(losses.shape)}",
                field="loss_fn",
                hint="it must give the mean loss, or one loss per example",
            )
        if len(logits) < len(self._labels):
            self._refuse_part(mean=losses.dim() == 0)
        return losses if losses.dim() else losses.expand(len(logits))

    def _refuse_part(self, *, mean: bool) -> None:
        """Refuse a loss whose parts do not add up to that of the batch."""
        if self._setting("reduction") == "sum":
            raise InputError(
                "gives a sum, which is wrong for a part of a batch",
                field="loss_fn",
                hint="give the mean, or one loss per example (reduction='none')",
            )
        if mean and (self._by_class or self._ignores):
            which = "weighted by class" if self._by_class else "over the labels that it does not ignore"
            raise InputError(
                f"gives a mean {which}, and the means of parts of a batch do not add up to that of the batch",
                field="loss_fn",
                hint="give one loss per example (reduction='none')",
            )

    @property
    def _by_class(self) -> bool:
        """Whether its mean is over the weights of the labels, of which every part has others."""
        labelled = isinstance(self._loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss))
        partly = getattr(self._loss_fn, "func", None) in (F.cross_entropy, F.nll_loss)
        return (labelled or partly) and self._setting("weight") is not None

    @cached_property
    def _ignores(self) -> bool:
        """Whether its mean leaves out a label of the batch. The answer waits for the device, so it is kept."""
        index = self._setting("ignore_index", -100)  # PyTorch's default
        return not self._labels.is_floating_point() and bool((self._labels == index).any())

    def _setting(self, name: str, default: Any = None) -> Any:
        """A setting of a loss that is a module, or a `functools.partial` of a function."""
        return getattr(self._loss_fn, "keywords", {}).get(name, getattr(self._loss_fn, name, default))


@contextmanager
def runner_for(
    model: nn.Module,
    device: torch.device,
    optimizer: torch.optim.Optimizer | None,
    *,
    micro_batch: int | None,
    sync_ascent: bool,
) -> Iterator[Runner]:
    """How passes are run for the caller of this block: in its autocast mode, and averaged by its DDP.

    Args:
        model: A network, or a `DistributedDataParallel` around one.
        device: Of the batch.
        optimizer: The caller's, if the method needs it.
        micro_batch: See `Runner`.
        sync_ascent: See `Runner`.

    Raises:
        InputError: The model is sharded, so that no device has all of the weights. Or there is no example in a
            microbatch.
    """
    if micro_batch is not None and micro_batch < 1:
        raise InputError("must be at least 1", field="micro_batch", value=micro_batch)
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def score(images: Tensor) -> Tensor:
        # Autocast keeps its copies of the weights for a whole region. The second pass would see those of the first.
        with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            logits: Tensor = model(images)
        if not isinstance(logits, Tensor):
            raise InputError(
                f"must return the logits as a tensor, not as {type(logits).__name__}",
                field="model",
                hint="wrap it in a module that does",
            )
        return logits

    inner = getattr(model, "_orig_mod", model)  # of a compiled model
    # FSDP and `fully_shard`, which has the second name.
    sharded = hasattr(inner, "no_sync") or hasattr(inner, "set_requires_gradient_sync")
    if sharded and not isinstance(inner, DistributedDataParallel):
        raise InputError("a perturbation of the weights needs all of them on every device; use DistributedDataParallel")
    how = Runner(
        score=score,
        micro_batch=micro_batch,
        sync_ascent=sync_ascent,
        redraw=_equal_masks(device),
        optimizer=optimizer,
    )
    if isinstance(inner, DistributedDataParallel):
        how = replace(
            how,
            no_sync=inner.no_sync,
            average=partial(current_team().average_, group=inner.process_group),
            lends_gradients=inner.gradient_as_bucket_view,
        )
    with torch.autocast(kind, enabled=False) if enabled else nullcontext():
        yield how


def _equal_masks(device: torch.device) -> Callable[[int, int], None]:
    """Rewind the random streams before each pass, so that all passes of a step drop out the same units."""
    states: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def redraw(microbatch: int, draw: int) -> None:
        on_gpu = device.type == "cuda"
        if (microbatch, draw) not in states:
            states[microbatch, draw] = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None
            return
        cpu, gpu = states[microbatch, draw]
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)

    return redraw
