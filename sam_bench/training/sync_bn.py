"""BatchNorm over the examples of all devices."""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with every BatchNorm layer normalising over the whole batch; parameters and their names stay.

    Args:
        model: Changed in place, but for a model that is itself one layer.
        device: On a GPU PyTorch's own layer is used; it has none for the CPU.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _SyncBatchNorm):
            # The class alone changes: state, flags, mode and hooks remain what they are.
            layer.__class__ = _SyncBatchNorm
    return model


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
