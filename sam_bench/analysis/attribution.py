"""Attribution: which pixels decide, and do they look like the image?"""

from __future__ import annotations

import base64
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sam_bench.analysis.base import ANALYSES, Context, Json, ModelAnalysis
from sam_bench.errors import InputError
from sam_bench.modes import attacking
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

METHODS = {"gradient": "input gradient", "integrated": "integrated gradients"}

MEASURES = {
    "low_frequency": "energy in low frequencies",
    "edges": "correlation with edges",
    "deletion_gain": "deletion: below random order",
}
"""What is compared, each with its name in the figure; more is closer to the image in all of them."""

LOW = 1 / 8
"""Frequencies up to this are low, in cycles a pixel: a period is at least eight pixels long."""

_GRID = 8
"""Deletion takes patches of a grid of so many rows and columns."""

_TINY = 1e-12  # keeps the share and the correlation of a map of zeros at zero


def input_gradients(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the score of class `y` by the image, [B, C, H, W]."""
    from captum.attr import Saliency

    found: Tensor = Saliency(module).attribute(x.clone().requires_grad_(), target=y, abs=False)
    return found.detach()


def integrated_gradients(module: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> Tensor:
    """Integrated gradients of the score of class `y` from a black image, [B, C, H, W]; one step at a time."""
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(module).attribute(x, target=y, n_steps=steps, internal_batch_size=len(x))
    return found.detach().to(x.dtype)


def low_frequency_share(maps: Tensor) -> Tensor:
    """The share of each map's energy in frequencies up to `LOW`, [B], over all channels; maps are [B, C, H, W]."""
    power = torch.fft.fft2(maps).abs().square().sum(1)
    share: Tensor = (power * _is_low(maps)).sum((1, 2)) / power.sum((1, 2)).clamp_min(_TINY)
    return share


def _is_low(maps: Tensor) -> Tensor:
    vertical, horizontal = (torch.fft.fftfreq(side, device=maps.device) for side in maps.shape[2:])
    low: Tensor = vertical[:, None].square() + horizontal.square() <= LOW**2
    return low


def edges(x: Tensor) -> Tensor:
    """Sobel's gradient magnitude of the grey image, [B, H, W]."""
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device)
    kernels = torch.stack([across, across.T])[:, None]
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="reflect")
    magnitude: Tensor = F.conv2d(grey, kernels).square().sum(1).sqrt()
    return magnitude


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each pair of maps [B, H, W]: [B]; 0 where one of them is constant."""
    a, b = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (first, second))
    found: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(_TINY)
    return found


def deletion(module: nn.Module, x: Tensor, y: Tensor, importance: Tensor, *, parts: int) -> Tensor:
    """Whether the model is right after 0, 1, … `parts` parts of the image are deleted, the most important first.

    Whole patches of a grid are deleted: single pixels that go here and there are noise, which breaks models whatever
    the order is. What is deleted gets the image's mean colour (Petsiuk et al. 2018, arXiv 1806.07421, have it black).

    Args:
        module: In eval mode.
        x: Images [B, C, H, W].
        y: Labels, int64 [B].
        importance: Of each pixel, [B, H, W].
        parts: Equal parts of the image.

    Returns:
        bool [B, parts + 1]
    """
    patches = F.adaptive_avg_pool2d(importance[:, None], min(_GRID, x.shape[2]))
    rank = patches.flatten(1).argsort(1, descending=True).argsort(1).view_as(patches)
    rank, count = F.interpolate(rank.float(), x.shape[2:], mode="nearest"), rank[0].numel()
    mean = x.mean((2, 3), keepdim=True)
    with torch.no_grad():
        right = [
            module(torch.where(rank < round(part * count / parts), mean, x)).argmax(1) == y for part in range(parts + 1)
        ]
    return torch.stack(right, 1)


def _check_captum() -> None:
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise InputError("attribution needs Captum: pip install 'sam-bench[analysis]'") from error


@ANALYSES.register("attribution")
class Attribution(ModelAnalysis):
    """Input gradients (Simonyan et al. 2014, arXiv 1312.6034) and integrated gradients (Sundararajan et al. 2017).

    Both explain the score of the true class; integrated gradients (arXiv 1703.01365) start at a black image. People
    can read the gradients of robust models (Tsipras et al. 2019, arXiv 1805.12152); three measures say how much.
    """

    summary = "which pixels decide, by two methods, and how much they look like the image"

    path_steps: int = Field(default=32, ge=2, description="points of integrated gradients from black to the image")
    parts: int = Field(default=10, ge=2, description="equal parts in which the image is deleted")
    shown: int = Field(default=4, ge=1, description="images that the figure shows")

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """The three measures for both methods, completeness, and the maps of the images that are shown."""
        _check_captum()
        found: dict[str, list[Tensor]] = defaultdict(list)
        draws, done = context.generator(), 0
        with attacking(model.module):
            for x, y in zip(context.x.split(context.batch_size), context.y.split(context.batch_size), strict=True):
                random = torch.rand((len(x), *x.shape[2:]), generator=draws).to(x.device)
                for name, values in self._looked(model.module, x, y, random).items():
                    found[name].append(values.cpu())
                done += len(x)
                context.stage.update(done)
        return self._summary({name: torch.cat(each) for name, each in found.items()}, context)

    def _looked(self, module: nn.Module, x: Tensor, y: Tensor, random: Tensor) -> dict[str, Tensor]:
        """What is known of each image of a batch: name to [B, ...]."""
        maps = {
            "gradient": input_gradients(module, x, y),
            "integrated": integrated_gradients(module, x, y, steps=self.path_steps),
        }
        found = {"random right": deletion(module, x, y, random, parts=self.parts)}
        for method, signed in maps.items():
            importance = signed.abs().sum(1)
            found[f"{method} low_frequency"] = low_frequency_share(signed)
            found[f"{method} edges"] = correlation(importance, edges(x))
            found[f"{method} right"] = deletion(module, x, y, importance, parts=self.parts)
            found[f"{method} map"] = importance
        with torch.no_grad():
            gained = (module(x) - module(torch.zeros_like(x))).gather(1, y[:, None])[:, 0]
        return found | {"gained": gained, "gap": maps["integrated"].sum((1, 2, 3)) - gained}

    def _summary(self, found: dict[str, Tensor], context: Context) -> Json:
        """Means over the images, and what the figure shows."""
        curves = {method: found[f"{method} right"].double().mean(0) for method in (*METHODS, "random")}
        area = {method: float(torch.trapezoid(curve, dx=1 / self.parts)) for method, curve in curves.items()}
        few = slice(0, self.shown)
        pixels = (context.x[few].permute(0, 2, 3, 1) * 255).round().cpu()
        methods = {
            method: {
                "low_frequency": float(found[f"{method} low_frequency"].double().mean()),
                "edges": float(found[f"{method} edges"].double().mean()),
                "deletion": area[method],
                "deletion_gain": area["random"] - area[method],
                "curve": curves[method].tolist(),
                "maps": [_packed(_visible(each)) for each in found[f"{method} map"][few]],
            }
            for method in METHODS
        }
        return methods | {
            "random": {"deletion": area["random"], "curve": curves["random"].tolist()},
            "completeness_error": float(found["gap"].abs().mean() / found["gained"].abs().mean().clamp_min(_TINY)),
            "low_frequency_of_noise": float(_is_low(context.x).double().mean()),
            "images": [_packed(each) for each in pixels],
            "image_shape": list(pixels.shape[1:]),
        }

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """Left the maps of a few images, right the three measures."""
        first = next(iter(measured.values()))
        rows = 1 + len(METHODS) * len(measured)
        width = 1.6 + 0.8 * len(first["images"])
        figure.set_size_inches(width + 3.6, max(4.8, 0.8 * rows))
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(width, 3.6))[0]
        _draw_maps(measured, left)
        panels = right.subplots(len(MEASURES), 1)
        for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
            for place, (method, called) in enumerate(METHODS.items()):
                across = [index + 0.36 * (place - 0.5) for index in range(len(measured))]
                panel.barh(across, [found[method][measure] for found in measured.values()], 0.34, label=called)
            panel.set_yticks(range(len(measured)), list(measured))
            panel.invert_yaxis()
            panel.set_title(label, loc="left", fontsize=9)
            panel.grid(False, axis="y")
        panels[0].axvline(first["low_frequency_of_noise"], color="0.3", linestyle="--", linewidth=1)
        right.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right")

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """The three measures of both methods."""
        return [
            f"{name}, {called}: low frequencies {found[method]['low_frequency']:.1%} (white noise "
            f"{found['low_frequency_of_noise']:.1%}), edges {found[method]['edges']:.2f}, deletion "
            f"{found[method]['deletion']:.3f} (random order {found['random']['deletion']:.3f})"
            for name, found in measured.items()
            for method, called in METHODS.items()
        ]


def _draw_maps(measured: Json, figure: SubFigure) -> None:
    """The images in the first row, then a row a model and method."""
    first = next(iter(measured.values()))
    shape, count = first["image_shape"], len(first["images"])
    rows = [(name, method) for name in measured for method in METHODS]
    axes = figure.subplots(1 + len(rows), count, squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.grid(False)
        panel.spines[:].set_visible(False)
    for panel, packed in zip(axes[0], first["images"], strict=True):
        image = _unpacked(packed, shape)
        panel.imshow(image if shape[2] == 3 else image.mean(2), cmap="gray")
    for line, (name, method) in zip(axes[1:], rows, strict=True):
        line[0].set_ylabel(f"{name}\n{METHODS[method]}", rotation=0, ha="right", va="center", fontsize=7)
        for panel, packed in zip(line, measured[name][method]["maps"], strict=True):
            panel.imshow(_unpacked(packed, shape[:2]), cmap="inferno", vmin=0, vmax=255)


def _visible(importance: Tensor) -> Tensor:
    """A map [H, W] as bytes: full brightness from its 99th percentile on."""
    top = importance.flatten().quantile(0.99).clamp_min(_TINY)
    return (importance / top).clamp(max=1) * 255


def _packed(values: Tensor) -> str:
    """Numbers from 0 to 255 as text."""
    return base64.b64encode(values.to(torch.uint8).contiguous().numpy().tobytes()).decode()


def _unpacked(text: str, shape: list[int]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(shape)
