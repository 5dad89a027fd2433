"""How well the gap at equal clean accuracy is estimated along a curve, by simulated studies whose true gap is known.

An image has a hardness, and a model of a row a skill. An image is right if skill less hardness plus a little noise is
above 0, and robust if it is still right when the row's loss under attack is taken from the skill. The curve has the
shape of N-FGSM's in the study at equal cost: steep near plain training, then flatter. A row is compared with it at
four places.

    python benchmarks/matched_gap.py
"""

from __future__ import annotations

import math

import click
import numpy as np
from numpy.typing import NDArray

from sam_bench.analysis.statistics import Bootstrap, NotComparable, Verdicts, along_curve, matched_difference

EPS = 1.0
# Skill of a row, and its loss under attack, in standard deviations of the images' hardness.
CURVE = [(0.30, 0.55), (0.28, 0.30), (0.20, 0.20), (0.05, 0.12)]
PLACES = {"near plain training": 0.295, "at the kink": 0.28, "middle": 0.24, "near the end": 0.08}
LOSS = 0.5
SEEDS_VARY, IMAGES_VARY = 0.04, 0.3
IMAGES = 1_000

Drawn = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def row(skill: float, loss: float, hardness: NDArray[np.float64], seeds: int, rng: np.random.Generator) -> Drawn:
    """Clean and robust verdicts, each bool [seeds, images]."""
    first, second = rng.normal(scale=SEEDS_VARY, size=(2, seeds, 1))
    margin = skill + first - hardness + rng.normal(scale=IMAGES_VARY, size=(seeds, len(hardness)))
    clean = margin > 0
    return clean, clean & (margin - loss + second > 0)


def truth(skill: float, loss: float) -> tuple[float, float]:
    """Clean and robust accuracy over endless seeds and images."""
    rng = np.random.default_rng(5)
    clean, robust = row(skill, loss, rng.normal(size=400), 4_000, rng)
    return float(clean.mean()), float(robust.mean())


def true_gap(skill: float) -> float:
    """Of a row less the curve at its clean accuracy, in points."""
    points = np.array([truth(*each) for each in CURVE])
    clean, robust = truth(skill, LOSS)
    return 100 * float(robust - along_curve(np.array([clean]), points[:, :1], points[:, 1:])[0])


@click.command(help=__doc__)
@click.option("--studies", default=150, show_default=True, help="Simulated studies for each place and number of seeds.")
@click.option("--draws", default=200, show_default=True, help="Draws of the bootstrap.")
def main(studies: int, draws: int) -> None:
    """Print a line for each place and number of seeds."""
    click.echo(f"{'place':<22}{'seeds':>6}{'true gap':>10}{'compared':>10}{'mean gap':>10}{'covered':>9}")
    rng = np.random.default_rng(1)
    for place, skill in PLACES.items():
        gap = true_gap(skill)
        for seeds in (3, 5):
            found = []
            for study in range(studies):
                hardness = rng.normal(size=IMAGES)
                rows = [
                    Verdicts(tuple(range(seeds)), clean, {EPS: robust})
                    for clean, robust in (row(*each, hardness, seeds, rng) for each in [(skill, LOSS), *CURVE])
                ]
                interval = matched_difference(rows[0], rows[1:], EPS, Bootstrap(draws=draws, seed=study))
                if not isinstance(interval, NotComparable):
                    found.append(interval)
            mean = np.mean([each.estimate for each in found]) if found else math.nan
            covered = np.mean([each.low <= gap <= each.high for each in found]) if found else math.nan
            click.echo(f"{place:<22}{seeds:>6}{gap:>10.1f}{len(found):>10}{mean:>10.1f}{covered:>9.0%}")


if __name__ == "__main__":
    main()
