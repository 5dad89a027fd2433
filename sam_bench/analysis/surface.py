"""Loss surfaces around weights and around images, and how far the nearest adversarial example is."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sam_bench.analysis.base import ANALYSES, Context, Json, LinfRadius, ModelAnalysis
from sam_bench.analysis.loss_surface import filter_normalised, input_surface, mean_loss, weight_surface
from sam_bench.attacks.minimum_norm import minimum_norms
from sam_bench.perturb.inputs import PGD
from sam_bench.records import Radius
from sam_bench.seeds import generator, row_generator
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4  # models side by side
_NAMED = 8  # models up to which the lines of distances are named
_LEVELS = 16  # of a map


@ANALYSES.register("surface")
class Surface(ModelAnalysis):
    """The loss along two directions of weight space, and along two of input space; distances of minimum norm.

    Weights move along two random directions, normalised by filter (Li et al. 2018, arXiv 1712.09913). Each image
    moves along its own PGD-10 perturbation, and along the same perturbation with random signs, which is as long in
    every norm.
    """

    summary = "the loss around weights and around images, and the distance to the nearest adversarial example"

    points: int = Field(default=11, ge=3, description="points of the grid along each direction, an odd number")
    span: float = Field(
        default=1.0, gt=0, description="how far a grid reaches on either side, in lengths of a direction"
    )
    eps: LinfRadius = Field(default=Radius("8/255"), description="Linf radius of the attack, e.g. 2/255")
    distance_steps: int = Field(
        default=100, ge=1, description="steps of the search for the nearest adversarial example"
    )

    @field_validator("points")
    @classmethod
    def _has_a_centre(cls, points: int) -> int:
        if points % 2 == 0:
            raise ValueError(f"{points} points have none in the centre; give an odd number")
        return points

    @property
    def coordinates(self) -> list[float]:
        """Where the points of a grid are along each direction."""
        half = self.points // 2
        return [self.span * at / half for at in range(-half, half + 1)]

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """Both surfaces and the distances of one model."""
        module, n = model.module, len(context.x)
        every = self.points**2

        def told(points: int) -> None:
            context.stage.update(n // 2 * points // every, "weights", share=0.5 * points / every)

        draws = generator(context.seed, "surface", "weights")
        parameters = list(module.parameters())
        directions = (filter_normalised(parameters, draws), filter_normalised(parameters, draws))
        weights = weight_surface(
            module, context.x, context.y, directions, self.coordinates, batch_size=context.batch_size, told=told
        )
        inputs = self._inputs(module, context)
        context.stage.update(3 * n // 4, "distances", share=0.75)
        distances = minimum_norms(
            module, context.x, context.y, norm="Linf", steps=self.distance_steps, batch_size=context.batch_size
        )
        context.stage.update(n)
        return {
            "loss": mean_loss(module, context.x, context.y, batch_size=context.batch_size),
            "coordinates": self.coordinates,
            "weights": weights,
            "inputs": inputs,
            "distances": [each if math.isfinite(each) else None for each in distances.double().sort().values.tolist()],
        }

    def _inputs(self, module: nn.Module, context: Context) -> list[list[float]]:
        """The mean surface over the images, batch by batch."""
        attack = PGD(eps=self.eps, steps=10)
        count = len(context.x)  # all images' numbers are drawn, and a batch has its own of them
        turns = torch.randint(0, 2, context.x.shape, generator=generator(context.seed, "surface", "signs"))
        total = torch.zeros(self.points, self.points, dtype=torch.float64)
        for start in range(0, count, context.batch_size):
            part = slice(start, start + context.batch_size)
            x, y = context.x[part], context.y[part]
            draws = row_generator(context.seed, "surface", "inputs", first=start, total=count, device=x.device)
            adversarial = attack.perturb(module, x, y, generator=draws) - x
            signs = turns[part].to(x) * 2 - 1
            rows = input_surface(
                module, x, y, (adversarial, signs * adversarial), self.coordinates, batch_size=context.batch_size
            )
            total += torch.tensor(rows, dtype=torch.float64) * len(x)
            done = start + len(x)
            context.stage.update(len(context.x) // 2 + done // 4, "inputs", share=0.5 + 0.25 * done / len(context.x))
        mean: list[list[float]] = (total / len(context.x)).tolist()
        return mean

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """For each model a map by weights and one by inputs; below, accuracy against radius from the distances."""
        names = list(measured)
        columns, blocks = min(len(names), _COLUMNS), -(-len(names) // _COLUMNS)
        figure.set_size_inches(max(2.9 * columns + 1, 7), 5.2 * blocks + 3.6)
        parts: Any = figure.subfigures(2, 1, height_ratios=[5.2 * blocks, 3.6])
        maps, below = parts
        grid = maps.subplots(2 * blocks, columns, squeeze=False)
        for kind in (0, 1):
            surfaces = {
                name: torch.tensor(measured[name][("weights", "inputs")[kind]]).clamp_min(1e-4) for name in names
            }
            values = torch.stack([*surfaces.values()])
            low, high = float(values.min().log10()), float(values.max().log10()) + 1e-6
            levels = torch.logspace(low, high, _LEVELS, dtype=torch.float64).tolist()
            for at, name in enumerate(names):
                axes = grid[2 * (at // columns) + kind, at % columns]
                _draw_map(axes, measured[name]["coordinates"], surfaces[name], levels, kind)
                if not kind:
                    axes.set_title(name, fontsize=9)
            drawn = [axes for row in range(kind, 2 * blocks, 2) for axes in grid[row]]
            colours = maps.colorbar(
                next(each for axes in drawn for each in axes.collections), ax=drawn, format="%.2g", label="mean loss"
            )
            colours.ax.minorticks_off()
        for axes in grid.flat:
            axes.set_visible(bool(axes.collections))
        self._draw_distances(below.subplots(), measured)

    def _draw_distances(self, axes: Axes, measured: Json) -> None:
        farthest = 0.0
        for name, each in measured.items():
            found = [255 * far for far in each["distances"] if far is not None]
            n = len(each["distances"])
            farthest = max(farthest, found[int(0.95 * (len(found) - 1))] if found else 0.0)
            axes.step(
                [0.0, *found],
                [100.0, *(100 * (n - 1 - at) / n for at in range(len(found)))],
                where="post",
                linewidth=1.5 if len(measured) <= _NAMED else 0.8,
                label=f"{name}, median {_median(each['distances'])}",
            )
        axes.set(
            xlabel="Linf distance of the nearest adversarial example found, in 1/255",
            ylabel="images farther away, %",
            xlim=(0, farthest or 1.0),
            ylim=(0, 100),
        )
        if len(measured) <= _NAMED:
            axes.legend()

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """Losses at the centre and at the ends of the directions, and the median distance."""
        lines = []
        for name, each in measured.items():
            middle, end = self.points // 2, self.points - 1
            weights, inputs = each["weights"], each["inputs"]
            around = [weights[0][middle], weights[end][middle], weights[middle][0], weights[middle][end]]
            lines.append(
                f"{name}: loss {each['loss']:.3f}; {self.span:g} along a direction: by weights "
                f"{sum(around) / len(around):.3f}, by inputs {inputs[end][middle]:.3f} (adversarial) and "
                f"{inputs[middle][end]:.3f} (random); median distance {_median(each['distances'])}"
            )
        return lines


def _draw_map(axes: Axes, coordinates: list[float], surface: Tensor, levels: list[float], kind: int) -> None:
    """One surface; the first direction runs to the right."""
    from matplotlib.colors import LogNorm

    norm = LogNorm(levels[0], levels[-1])
    axes.contourf(coordinates, coordinates, surface.T.numpy(), levels=levels, norm=norm, cmap="viridis", extend="both")
    axes.plot(0, 0, "+", color="w")
    axes.grid(False)
    axes.set_aspect("equal")
    axes.set_xlabel(("random direction 1", "adversarial direction")[kind], fontsize=8)
    axes.set_ylabel(("random direction 2", "random signs")[kind], fontsize=8)


def _median(distances: list[float | None]) -> str:
    """The median distance, as it is written; None, for an image without an example, is larger than all distances."""
    middle = statistics.median(math.inf if each is None else each for each in distances)
    return f"{255 * middle:.2f}/255" if math.isfinite(middle) else "not found"
