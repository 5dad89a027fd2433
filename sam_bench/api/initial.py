"""Given weights as the start of a training: what `init` names, put into the network of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.api.specs.train import TrainSpec
from sam_bench.data import Dataset, StreamedDataset
from sam_bench.data.splits import Stats
from sam_bench.distributed import main_first
from sam_bench.errors import InputError, shortened
from sam_bench.models import NormalizedModel
from sam_bench.models.check import some_images
from sam_bench.modes import attacking
from sam_bench.records import Architecture
from sam_bench.zoo import load_model, read_state_dict, state_dict_sha256
from sam_bench.zoo.checkpoint import renamed_for
from sam_bench.zoo.loading import says_what_it_is
from sam_bench.zoo.weights import misfit

_TIMM = "timm:"


class InitialWeights:
    """The weights that `spec.init` names, read.

    Args:
        spec: Whose `init` is given.
        data: What is trained on.

    Raises:
        InputError: There is no such model, or it cannot be a start for the network that is asked for.
        SamBenchError: A download failed, or a checksum differs.

    Attributes:
        stats: Mean and standard deviation that the weights were trained with; None if they are not known.
        clean: Whether it is known that they were trained on images of this data set alone.
    """

    stats: Stats | None = None
    clean: bool = False

    def __init__(self, spec: TrainSpec, data: Dataset | StreamedDataset) -> None:
        assert spec.init is not None
        self.source = spec.init
        self._state: Mapping[str, Tensor] | None = None
        self._module: nn.Module | None = None
        with main_first():
            if self.source.startswith(_TIMM):
                self.stats = _timm_stats(self.source, spec.arch)
            else:
                self._read(spec, data)
        if self.stats is not None and len(self.stats[0]) not in (0, data.in_channels):
            self.stats = None

    def _read(self, spec: TrainSpec, data: Dataset | StreamedDataset) -> None:
        path = Path(self.source).expanduser()
        if path.is_file() and not says_what_it_is(path):
            self._state = read_state_dict(path)
            return
        external = self.source.startswith("robustbench:")
        listed = spec.robustbench_dataset or data.robustbench
        loaded = load_model(
            path if path.is_file() else self.source,
            zoo=spec.zoo,
            dataset=listed if external else data.name,
            threat=spec.threat or spec.norm,
        )
        card, module = loaded.card, loaded.module
        self.clean = card is not None and card.dataset == data.name and not card.additional_data
        self._state, self._module = module.state_dict(), module
        # A model of RobustBench normalises by layers of its class, which do not fit into ours; or in its code, of which
        # `put_into` tells.
        self.stats = ((), ())
        if isinstance(module, NormalizedModel) and module.normalizes:
            self.stats = _numbers(module.mean, module.std)

    def put_into(self, module: nn.Module, architecture: Architecture) -> tuple[str, str]:
        """Load the weights; the last layer stays as it is where it has another number of classes.

        Args:
            module: The run's network, fresh.
            architecture: What it was made of.

        Returns:
            A sentence for the start of the run, and the SHA-256 of the tensors that were loaded.

        Raises:
            InputError: They do not fit; names the first tensor.
        """
        state = self._state
        if state is None:
            with main_first():
                state = _timm_state(self.source, architecture)
        own = module.state_dict()
        taken = renamed_for(module, state)
        head = {key for key in taken if key in own and _is_head(own[key], taken[key], architecture.num_classes)}
        taken = {key: value for key, value in taken.items() if key not in head}
        problem = misfit(module, taken | {key: own[key] for key in head})
        if problem is not None:
            stem = ""
            if self.source.startswith(_TIMM) and architecture.options.get("stem") == "small":
                stem = "; the pretrained stem needs the option `stem=imagenet`"
            raise InputError(
                f"{shortened(self.source)} does not fit {architecture.name}: {problem}{stem}",
                field="init",
                value=self.source,
            )
        module.load_state_dict(taken, strict=False)
        new = f", with a new last layer for {architecture.num_classes} classes" if head else ""
        if not head and self._module is not None and not _compute_alike(module, self._module, architecture):
            new = "; it computes something else than that model: activation, normalisation or another part differs"
        return f"starts from the weights of {self.source}{new}", state_dict_sha256(taken)


def _compute_alike(module: nn.Module, other: nn.Module, architecture: Architecture) -> bool:
    """Whether two modules give the same logits for the same images, or the second cannot be asked."""
    size = architecture.image_size
    images = some_images(module, (architecture.in_channels, size, size))
    try:
        with torch.no_grad(), attacking(module), attacking(other):
            return torch.allclose(module(images), other(images), rtol=1e-2, atol=1e-2)
    except (RuntimeError, ValueError, AssertionError):  # it takes images of another size
        return True


def _is_head(own: Tensor, given: Tensor, num_classes: int) -> bool:
    """Whether a tensor is of the layer that gives the logits, and of another number of classes."""
    other = own.shape[:1] != given.shape[:1]
    return own.dim() > 0 and own.shape[0] == num_classes and other and own.shape[1:] == given.shape[1:]


def _numbers(mean: Tensor, std: Tensor) -> Stats:
    # Through their shortest decimals: a float32's digits as a double would make another architecture of a card's.
    first, second = (tuple(float(f"{value:.7g}") for value in each.flatten().tolist()) for each in (mean, std))
    return first, second


def _timm_stats(source: str, arch: str) -> Stats:
    from timm.models import get_pretrained_cfg, is_model_pretrained

    from sam_bench.models.timm_models import check_timm_name

    name = source.removeprefix(_TIMM)
    base = check_timm_name(name.partition(".")[0])
    if arch != f"{_TIMM}{base}":
        raise InputError(
            "has the weights of another architecture", field="init", value=source, hint=f"give `arch='{_TIMM}{base}'`"
        )
    settings = get_pretrained_cfg(name) if is_model_pretrained(name) else None
    if settings is None:
        raise InputError("names no pretrained weights of timm", field="init", value=source)
    return tuple(settings.mean), tuple(settings.std)


def _timm_state(source: str, architecture: Architecture) -> dict[str, Tensor]:
    from sam_bench.models.timm_entry import pretrained_timm

    options: dict[str, Any] = {key: value for key, value in architecture.options.items() if key != "stem"}
    net = pretrained_timm(
        source.removeprefix(_TIMM),
        num_classes=architecture.num_classes,
        in_channels=architecture.in_channels,
        arguments=options,
    )
    return net.state_dict()
