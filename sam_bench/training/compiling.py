"""Whether `torch.compile` pays for a run: it costs a minute or so and makes what follows faster."""

from __future__ import annotations

import torch
from torch import nn

from sam_bench.device import missing_for_compile
from sam_bench.errors import InputError
from sam_bench.modes import attacking
from sam_bench.training.build import BuiltRecipe

# From where compiling is worth its minute or two: about so many minutes of work. On a CPU it helps where inputs are
# searched, and there only networks whose time goes into large convolutions: width 64 of a PreActResNet-18, not 16.
# A standard step at width 64 gains 1.4 times on a CPU with AMX and nothing on an AMD EPYC.
_RUN_FLOPS = {"cpu": 2e15, "cuda": 2e16}
_IMAGE_FLOPS = {"cpu": 4e8, "cuda": 0.0}


def choose_compile(
    asked: str,
    model: nn.Module,
    built: BuiltRecipe,
    *,
    shape: tuple[int, int, int],
    examples: int,
    device: torch.device,
    sync_bn: bool = False,
) -> tuple[bool, str]:
    """Whether to compile, and why.

    Args:
        asked: "on", "off" or "auto".
        model: What is trained, on `device`.
        built: The recipe.
        shape: Of an image, (C, H, W).
        examples: Training images.
        device: Where.
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
    if device.type not in _RUN_FLOPS:
        return False, f"not tried on {device.type}"
    if missing is not None:
        return False, f"there is no {missing}, which torch.compile needs"
    forward = image_flops(model, shape)
    attack, learn = built.search_passes, built.weights.passes_with(built.objective.passes)
    # Back costs as much as forward for the input and as much again for the weights.
    an_image = forward * (attack[0] + attack[1] + learn[0] + 2 * learn[1])
    whole = an_image * examples * built.recipe.epochs
    if forward < _IMAGE_FLOPS[device.type]:
        return False, "the network is too small to gain from it"
    if device.type == "cpu" and not sum(attack):
        return False, "on a CPU only the search of inputs gains from it everywhere"
    if whole < _RUN_FLOPS[device.type]:
        return False, "the run is too short to earn the compilation back"
    return True, f"the run is {whole:.1g} floating-point operations long"


def _hindered(built: BuiltRecipe, device: torch.device, *, sync_bn: bool) -> str | None:
    """Why such a run cannot be compiled, or would gain nothing; None where it can."""
    if built.objective.differentiates_slopes:
        return f"objective {built.objective.method} differentiates a gradient, which torch.compile cannot"
    if sync_bn and device.type == "cuda":
        return "with `sync_bn` on GPUs the graph breaks at every BatchNorm layer"
    return None


def image_flops(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Floating-point operations of one forward pass over one image."""
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton where it is installed

    device = next(model.parameters()).device
    with attacking(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape, device=device))
    return float(counter.get_total_flops())
