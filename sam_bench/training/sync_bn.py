"""BatchNorm over the examples of all devices."""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sam_bench.errors import InputError


def synchronised(model: nn.Module, device: torch.device, *, twice: bool = False) -> nn.Module:
    """The model with every BatchNorm layer normalising over the whole batch; parameters and their names stay.

    timm's layers that also drop and activate (EfficientNet, RegNet and others) go on doing so.

    Args:
        model: Changed in place, but for a model that is itself one layer.
        device: On a GPU PyTorch's own layer is used; it has none for the CPU.
        twice: The objective differentiates a gradient, which PyTorch's layer cannot: ours is used on a GPU, too.

    Raises:
        InputError: A layer does more than normalise, and this would be lost.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer).forward not in _KNOWN:
            raise InputError(
                f"does not know what {type(layer).__name__} ({name}) does besides normalising",
                field="sync_bn",
                hint="train without it",
            )
    if device.type == "cuda" and not twice:
        return _converted(model)
    for layer in model.modules():
        # The class alone changes: state, flags, mode and hooks remain what they are.
        if isinstance(layer, BatchNormAct2d):
            layer.__class__ = _SyncBatchNormAct
        elif isinstance(layer, _BatchNorm) and not isinstance(layer, _SyncBatchNorm):
            layer.__class__ = _SyncBatchNorm
    return model


def _converted(model: nn.Module) -> nn.Module:
    # timm's conversion does what PyTorch's does, and keeps timm's activations, which PyTorch's loses.
    modes = {name: module.training for name, module in model.named_modules()}
    converted: nn.Module = convert_sync_batchnorm(model)
    for name, module in converted.named_modules():
        module.training = modes[name]  # the new layers would be in train mode
    return converted


class _SyncBatchNorm(_BatchNorm):
    """BatchNorm whose sums run over the team, differentiable through them (Ioffe, Szegedy 2015, algorithm 1)."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {x.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            whole: Tensor = super().forward(x)
            return whole
        x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        axes = [0, *range(2, x.dim())]
        count = x32.new_tensor([x32.numel() / x32.shape[1]])
        sums = dist.all_reduce(torch.cat([x32.sum(axes), (x32 * x32).sum(axes), count]))
        channels = x32.shape[1]
        total = sums[-1].detach()
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean * mean).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._move_statistics(mean.detach(), variance.detach() * total / (total - 1))
        shape = [1, channels] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        normalised: Tensor = x32 * scale.view(shape) + shift.view(shape)
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _move_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # No momentum means the mean over all batches seen.
        share = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SyncBatchNormAct(_SyncBatchNorm):
    """timm's norm, dropout and activation in one layer, its sums running over the team."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(x)))
        return activated


_KNOWN = {each.forward for each in (_BatchNorm, nn.SyncBatchNorm, BatchNormAct2d, _SyncBatchNorm, _SyncBatchNormAct)}
