"""Common corruptions: noise, blur, light and compression that nobody chose to mislead a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from sam_bench.analysis.base import ANALYSES, Context, Json, ModelAnalysis
from sam_bench.data import to_float
from sam_bench.errors import InputError, unknown_name
from sam_bench.records import ModelCard
from sam_bench.seeds import generator
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEVERITIES = 5

PUBLISHED = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The corruptions that a published mean over CIFAR-10-C is taken over; the folder holds four more."""

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""Maps float32 [N, C, H, W] in [0, 1] and a severity from 0 to 4 to such images; the caller clips them."""


def _gaussian_noise(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[severity] * torch.randn(x.shape, generator=draws)


def _shot_noise(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    photons = (500, 250, 100, 75, 50)[severity]
    return torch.poisson(x * photons, generator=draws) / photons


def _impulse_noise(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    chance, salt = torch.rand((2, *x.shape), generator=draws)
    return torch.where(chance < share, (salt < 0.5).float(), x)


def _gaussian_blur(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    from torchvision.transforms import functional  # takes a second to import

    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity]
    size = min(2 * round(4 * sigma) + 1, 2 * (x.shape[2] // 2) - 1)  # the image is reflected at its border
    blurred: Tensor = functional.gaussian_blur(x, [size, size], [sigma, sigma])
    return blurred


def _brightness(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    return x + (0.05, 0.1, 0.15, 0.2, 0.3)[severity]


def _contrast(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[severity] * (x - mean)


def _pixelate(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]

    def pixelated(image: Image.Image) -> Image.Image:
        small = tuple(max(1, int(side * share)) for side in image.size)
        return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _each(x, pixelated)


def _jpeg_compression(x: Tensor, severity: int, draws: torch.Generator) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity])
        return Image.open(file)

    return _each(x, compressed)


def _each(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Change each image, grey or RGB, with Pillow."""
    done = []
    for array in _bytes(x).permute(0, 2, 3, 1).numpy():
        changed = np.array(change(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)))
        done.append(changed.reshape(array.shape))
    return to_float(torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2))


MADE: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""What is made on the fly, with the five strengths that Hendrycks and Dietterich (2019) chose for CIFAR-10-C."""


def corrupted(x: Tensor, corruption: str, severity: int, *, seed: int) -> Tensor:
    """Corrupted images, made on the CPU: they are the same on every device.

    Args:
        x: float32 [N, C, H, W] in [0, 1].
        corruption: One of `MADE`.
        severity: 1 to 5.
        seed: Decides the noise, which is the same for every model.

    Returns:
        uint8 [N, C, H, W], as CIFAR-10-C stores them.
    """
    draws = generator(seed, "corruptions", corruption, severity)
    return _bytes(MADE[corruption](x.cpu(), severity - 1, draws))


def _bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


class _Folder:
    """CIFAR-10-C as it is published: `labels.npy` and a file a corruption, five severities one after the other.

    Args:
        folder: Where the files are.
        context: The clean images and their classes, which these must fit.

    Raises:
        InputError: It does not hold them, or they do not fit.
    """

    def __init__(self, folder: Path, context: Context) -> None:
        self._folder = folder
        self._shape = (*context.x.shape[2:], context.x.shape[1])
        self._labels = self._read("labels")
        if self._labels.ndim != 1 or len(self._labels) % SEVERITIES or not len(self._labels):
            raise InputError(f"{folder / 'labels.npy'} must hold one label an image, for five severities of equal size")
        classes, found = len(context.classes), self._labels
        if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= classes:
            raise InputError(
                f"{folder / 'labels.npy'} must hold whole numbers from 0 to {classes - 1}, the classes' numbers"
            )
        self.names = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")

    def examples(self, corruption: str, severity: int, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images of a severity, uint8 [N, C, H, W], and their labels, int64 [N]."""
        images, each = self._read(corruption), len(self._labels) // SEVERITIES
        expected = (len(self._labels), *self._shape)
        if images.dtype != np.uint8 or images.shape != expected:
            raise InputError(
                f"{self._folder / f'{corruption}.npy'} must hold uint8 images {list(expected)}, as many as there are "
                f"labels and of the clean images' shape, not {images.dtype} {list(images.shape)}"
            )
        first = (severity - 1) * each
        rows = slice(first, first + min(count, each))
        labels = np.array(self._labels[rows], dtype=np.int64)
        return torch.from_numpy(np.array(images[rows])).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)

    def _read(self, name: str) -> np.ndarray:
        path = self._folder / f"{name}.npy"
        try:
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read; the folder must hold labels.npy and a file a corruption, as CIFAR-10-C does"
            ) from error
        return found


@ANALYSES.register("corruptions")
class Corruptions(ModelAnalysis):
    """Accuracy on corrupted images (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    Eight corruptions are made on the fly. The published CIFAR-10-C is read from its folder.
    """

    summary = "accuracy under common corruptions, made on the fly or read from CIFAR-10-C"

    folder: str | None = Field(
        default=None, description="folder of CIFAR-10-C (labels.npy, gaussian_noise.npy, …); default: made on the fly"
    )
    corruptions: tuple[str, ...] = Field(
        default=(),
        description="which; default: all that are made, or those of the folder that the paper's mean is over",
    )

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """Accuracy for each corruption and severity."""
        folder = _Folder(Path(self.folder).expanduser(), context) if self.folder else None
        if folder is None and context.x.shape[1] not in (1, 3):
            raise InputError(f"corruptions are made of grey or RGB images, not of {context.x.shape[1]} channels")
        names = self._chosen(folder)
        accuracy: dict[str, list[float]] = {}
        done, total = 0, len(names) * SEVERITIES
        for name in names:
            accuracy[name] = []
            for severity in range(1, SEVERITIES + 1):
                if folder is None:
                    images, labels = corrupted(context.x, name, severity, seed=context.seed), context.y
                else:
                    images, labels = folder.examples(name, severity, len(context.x))
                accuracy[name].append(_accuracy(model.module, to_float(images), labels, context))
                done += 1
                context.stage.update(round(done / total * len(context.x)), name, share=done / total)
        clean = _accuracy(model.module, context.x, context.y, context)
        means = [sum(each) / SEVERITIES for each in accuracy.values()]
        return {"clean": clean, "mean": sum(means) / len(means), "accuracy": accuracy}

    def _chosen(self, folder: _Folder | None) -> list[str]:
        there = list(MADE) if folder is None else folder.names
        for name in self.corruptions:
            if name not in there:
                raise unknown_name("corruption", name, there)
        usual = [name for name in PUBLISHED if name in there] if folder else there
        chosen = list(self.corruptions) or usual or there
        if not chosen:
            raise InputError(f"{self.folder} holds labels but no corruption, such as gaussian_noise.npy")
        return chosen

    def combine(self, measured: Json, cards: Mapping[str, ModelCard]) -> Json:
        """The best model of each corruption, by the mean over severities."""
        names = next(iter(measured.values()))["accuracy"]
        return {
            "best": {each: max(measured, key=lambda name: sum(measured[name]["accuracy"][each])) for each in names},
            "mean": {name: found["mean"] for name, found in measured.items()},
        }

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """A panel a corruption: accuracy against severity, from the clean images on."""
        names = list(next(iter(measured.values()))["accuracy"])
        columns = min(4, len(names))
        rows = -(-len(names) // columns)
        figure.set_size_inches(0.6 + 2.1 * columns, 1.1 + 1.9 * rows + 0.2 * len(measured))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, name in zip(axes.flat, names, strict=False):
            panel.set_title(name.replace("_", " "))
            for model, found in measured.items():
                panel.plot(range(SEVERITIES + 1), [found["clean"], *found["accuracy"][name]], marker=".", label=model)
        for panel in axes.flat[len(names) :]:
            panel.set_axis_off()
        figure.supxlabel("severity (0: clean)")
        figure.supylabel("accuracy")
        axes[0, 0].set(ylim=(0, 1), xticks=range(SEVERITIES + 1))
        lines, _ = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            lines,
            [f"{model} (mean {found['mean']:.1%})" for model, found in measured.items()],
            loc="outside upper left",
        )

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """Clean and mean accuracy, and the corruption that costs the most."""
        return [
            f"{name}: clean {found['clean']:.1%}, mean over {len(found['accuracy'])} corruptions {found['mean']:.1%}, "
            f"lowest under {_worst(found['accuracy'])}"
            for name, found in measured.items()
        ]


def _worst(accuracy: Mapping[str, list[float]]) -> str:
    name = min(accuracy, key=lambda each: sum(accuracy[each]))
    return f"{name.replace('_', ' ')} ({sum(accuracy[name]) / SEVERITIES:.1%})"


def _accuracy(module: nn.Module, images: Tensor, labels: Tensor, context: Context) -> float:
    found = context.logits(module, images).argmax(1)
    return float((found == labels.to(context.device)).double().mean())
