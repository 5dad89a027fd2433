"""The whole way once on real images: three methods, three attacks, one leaderboard, three sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_bench import api
from sam_bench.leaderboard import BuiltLeaderboard
from sam_bench.progress import Reporter
from sam_bench.records import EvaluationRecord, ModelCard

# scikit-learn's digits: 1,797 handwritten digits of 8x8 grey values. A mirrored digit is another
# digit, so nothing is flipped; at this size nothing is cropped either.
_SHARED: dict[str, Any] = {
    "batch_size": 64,
    "lr": 0.1,
    "schedule": "one-cycle",
    "crop_padding": 0,
    "flip": False,
}
_RUNS: dict[str, dict[str, Any]] = {
    "standard": {"epochs": 20},
    "sam": {"epochs": 20, "rho": 0.2},
    "at": {"epochs": 10, "eps": "0.1", "steps": 10, "step_size": "0.025"},
}
_IMAGE_SIZE = 8
_WIDTH = 8


@dataclass(frozen=True)
class _Attack:
    attack: str
    eps: str
    settings: Mapping[str, Any]
    n_examples: int | None


_ATTACKS = (
    _Attack("pgd", "8/255", {"steps": 20}, None),
    _Attack("pgd", "16/255", {"steps": 20}, None),
    _Attack("autoattack", "16/255", {}, 128),
)


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart made.

    Attributes:
        cards: Recipe name to the model's card.
        records: Recipe name to its evaluations.
        leaderboard: Rows and files.
        sentences: What was found, from the numbers.
    """

    cards: dict[str, ModelCard]
    records: dict[str, list[EvaluationRecord]]
    leaderboard: BuiltLeaderboard
    sentences: list[str]


def quickstart(folder: Path, *, seed: int, device: str, reporter: Reporter) -> QuickstartResult:
    """Train standard, SAM and AT on digits, evaluate, build the leaderboard.

    Args:
        folder: Where runs, zoo, records and leaderboard go; runs found there are continued.
        seed: Decides every random draw.
        device: `auto`, `cpu`, `cuda`.
        reporter: Where progress goes.
    """
    zoo = folder / "model_zoo"
    cards: dict[str, ModelCard] = {}
    records: dict[str, list[EvaluationRecord]] = {}
    for recipe, settings in _RUNS.items():
        trained = api.train(
            recipe,
            "digits",
            image_size=_IMAGE_SIZE,
            arch_options={"width": _WIDTH},
            settings=_SHARED | settings,
            name=f"digits-{recipe}",
            seed=seed,
            # At this size a step is bound by overheads, not by matrix products: bfloat16 gains nothing.
            precision="fp32",
            device=device,
            validation=97,
            run_dir=folder / "runs" / recipe,
            zoo=zoo,
            resume=True,
            reporter=reporter,
            command="sam-bench quickstart",
        )
        cards[recipe] = trained.card
    for recipe, card in cards.items():
        records[recipe] = []
        paths = []
        for attack in _ATTACKS:
            path = folder / "evaluations" / card.name / f"{attack.attack}-{attack.eps.replace('/', 'over')}.json"
            records[recipe].append(
                api.evaluate(
                    card.name,
                    attack=attack.attack,
                    eps=attack.eps,
                    settings=attack.settings,
                    n_examples=attack.n_examples,
                    seed=seed,
                    device=device,
                    zoo=zoo,
                    output=path,
                    reporter=reporter,
                    command="sam-bench quickstart",
                )
            )
            paths.append(path)
        api.submit(card.name, paths, zoo=zoo, folder=folder / "leaderboards")
    built = api.build_leaderboard(folder / "leaderboards")
    return QuickstartResult(cards=cards, records=records, leaderboard=built, sentences=_findings(cards, records))


def _findings(cards: Mapping[str, ModelCard], records: Mapping[str, list[EvaluationRecord]]) -> list[str]:
    """Three sentences that follow from the numbers, whichever way they fell."""
    _, pgd, strong = range(3)
    robust = {name: [record.robust_accuracy for record in found] for name, found in records.items()}
    clean = {name: card.clean_accuracy for name, card in cards.items()}
    cost = {name: card.cost.passes / cards["standard"].cost.passes for name, card in cards.items()}
    eps = records["sam"][pgd].eps
    return [
        f"Perturbing only the weights, SAM keeps {robust['sam'][pgd]:.1%} of the test images right under PGD-20 at "
        f"{eps}, {_against(robust['sam'][pgd], robust['standard'][pgd])} of standard training, "
        f"for {cost['sam']:.1f} times its passes.",
        f"Adversarial training, which perturbs the inputs, keeps {robust['at'][pgd]:.1%} for {cost['at']:.1f} times "
        f"the passes; clean accuracy is {clean['standard']:.1%} (standard), {clean['sam']:.1%} (SAM) and "
        f"{clean['at']:.1%} (AT).",
        f"AutoAttack, the stronger judge, leaves {robust['standard'][strong]:.1%}, {robust['sam'][strong]:.1%} and "
        f"{robust['at'][strong]:.1%} at {records['sam'][strong].eps} on {records['sam'][strong].n_examples} images: "
        f"{_verdict(robust['standard'][strong], robust['sam'][strong], robust['at'][strong])}.",
    ]


def _against(value: float, reference: float) -> str:
    if abs(value - reference) < 0.005:
        return f"about the {reference:.1%}"
    return f"{'more' if value > reference else 'less'} than the {reference:.1%}"


def _verdict(standard: float, sam: float, at: float) -> str:
    if standard < sam < at:
        return "SAM alone buys some robustness, adversarial training buys more"
    if sam <= standard:
        return "here SAM alone buys no robustness that holds against it"
    return "here SAM alone matches adversarial training"
