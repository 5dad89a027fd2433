"""A model's weights as a search reads them: laid out, and cast, once instead of in every pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LAYERS = (nn.Conv2d, nn.Linear)


class SearchWeights:
    """Copies of the weights of convolutions and linear layers, which take the originals' place for single passes.

    The numbers are the same: what a pass would do to each weight has been done before. A verifier, which passes
    images between two of the search's passes, meets the originals.

    Args:
        model: In eval mode, its parameters frozen.
        channels_last: Convolutions are given images with their channels innermost.
        bf16: The search runs under autocast to bfloat16, which caches no copies of frozen weights.
    """

    def __init__(self, model: nn.Module, *, channels_last: bool, bf16: bool) -> None:
        self._swaps: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter, nn.Parameter]] = []
        for layer in model.modules() if channels_last or bf16 else ():
            # A subclass may do more with its weights, and a weight that is no parameter is made of others.
            if type(layer) not in _LAYERS or layer._parameters.get("weight") is None:
                continue
            for name in ("weight", "bias"):
                own = layer._parameters.get(name)
                if own is None or own.requires_grad or own.dtype != torch.float32:
                    continue
                cast = own.detach().to(torch.bfloat16) if bf16 else own.detach()
                if channels_last and cast.dim() == 4:
                    cast = cast.contiguous(memory_format=torch.channels_last)
                self._swaps.append((layer._parameters, name, own, nn.Parameter(cast, requires_grad=False)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the layers use the copies, for the time of a block."""
        try:
            for parameters, name, _, copy in self._swaps:
                parameters[name] = copy
            yield
        finally:
            for parameters, name, own, _ in self._swaps:
                parameters[name] = own
