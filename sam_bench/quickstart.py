"""Train, attack and rank three methods on real images, and say in three sentences what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_bench import api
from sam_bench.api.record_files import check_folder
from sam_bench.leaderboard import BuiltLeaderboard
from sam_bench.parallel import Job, run_jobs
from sam_bench.progress import Reporter
from sam_bench.records import EvaluationRecord, ModelCard

# scikit-learn's digits: 1,797 handwritten digits of 8x8 grey values. A mirrored digit is another
# digit, so nothing is flipped; at this size nothing is cropped either.
_IMAGE_SIZE = 8
# Deep enough for SAM's effect to show: with one block a stage (preactresnet10) it does not.
_ARCHITECTURE = "preactresnet18"
_SHARED: dict[str, Any] = {
    "batch_size": 64,
    "lr": 0.1,
    "schedule": "one-cycle",
    "crop_padding": 0,
    "flip": False,
}


@dataclass(frozen=True)
class PlannedAttack:
    """One attack on every model; `n_examples` None means the whole test set."""

    attack: str
    eps: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_examples: int | None = None


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        runs: Recipe name to the settings of the recipe that are replaced; standard, sam and at must be there.
        attacks: The attacks. The findings speak of the last two: the usual one, then the strongest.
        width: Channels of the network's first stage.
        limit_train: Train on this many images only, the first; None: on all.
        validation: How many of these are held out to watch the run.
    """

    runs: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "standard": {"epochs": 20},
            "sam": {"epochs": 20, "rho": 0.2},
            "at": {"epochs": 10, "eps": "0.1", "steps": 10, "step_size": "0.025"},
        }
    )
    attacks: tuple[PlannedAttack, ...] = (
        PlannedAttack("pgd", "8/255", {"steps": 20}),
        PlannedAttack("pgd", "16/255", {"steps": 20}),
        PlannedAttack("autoattack", "16/255", n_examples=128),
    )
    width: int = 8
    limit_train: int | None = None
    validation: int = 97


DEFAULT_PLAN = Plan()


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart made.

    Attributes:
        cards: Recipe name to the model's card.
        records: Recipe name to its evaluations.
        leaderboard: Rows and files.
        sentences: What the numbers say.
    """

    cards: dict[str, ModelCard]
    records: dict[str, list[EvaluationRecord]]
    leaderboard: BuiltLeaderboard
    sentences: list[str]


def quickstart(
    folder: Path, *, seed: int, device: str, reporter: Reporter, plan: Plan | None = None, workers: int = 1
) -> QuickstartResult:
    """Train standard, SAM and AT on digits, evaluate, build the leaderboard.

    Args:
        folder: Where runs, zoo, records and leaderboard go. Runs found there are continued.
        seed: Decides every random draw.
        device: `auto`, `cpu`, `cuda`.
        reporter: Where progress goes.
        plan: How much is done. The default takes about two minutes on two cores.
        workers: Methods at a time, each in a process of its own.

    Raises:
        InputError: Nothing can be written into the folder.
    """
    check_folder(folder, option="folder", what="nothing")
    plan = plan or DEFAULT_PLAN
    shared = {"folder": folder, "seed": seed, "device": device, "plan": plan}
    # The costliest first, so that no core waits for it at the end.
    order = sorted(plan.runs, key=lambda recipe: recipe != "at")
    jobs = [Job(recipe, _train_and_evaluate, {"recipe": recipe, **shared}) for recipe in order]
    done = dict(zip(order, run_jobs(jobs, workers=workers, reporter=reporter), strict=True))
    cards = {recipe: done[recipe][0] for recipe in plan.runs}
    records = {recipe: done[recipe][1] for recipe in plan.runs}
    for card in cards.values():
        paths = [_record_path(folder, card.name, planned) for planned in plan.attacks]
        api.submit(card.name, paths, zoo=folder / "model_zoo", folder=folder / "leaderboards")
    built = api.build_leaderboard(folder / "leaderboards")
    return QuickstartResult(cards=cards, records=records, leaderboard=built, sentences=findings(cards, records))


def _train_and_evaluate(
    recipe: str, *, folder: Path, seed: int, device: str, plan: Plan, reporter: Reporter
) -> tuple[ModelCard, list[EvaluationRecord]]:
    card = api.train(
        recipe,
        "digits",
        image_size=_IMAGE_SIZE,
        arch=_ARCHITECTURE,
        arch_options={"width": plan.width},
        settings={**_SHARED, **plan.runs[recipe]},
        name=f"digits-{recipe}",
        seed=seed,
        # Overheads dominate a step at this size, not matrix products: bfloat16 gains nothing.
        precision="fp32",
        device=device,
        validation=plan.validation,
        limit_train=plan.limit_train,
        run_dir=folder / "runs" / recipe,
        zoo=folder / "model_zoo",
        resume=True,
        reporter=reporter,
        command="sam-bench quickstart",
    ).card
    records = [
        api.evaluate(
            card.name,
            attack=planned.attack,
            eps=planned.eps,
            settings=planned.settings,
            n_examples=planned.n_examples,
            seed=seed,
            device=device,
            zoo=folder / "model_zoo",
            output=_record_path(folder, card.name, planned),
            resume="if-any",
            reporter=reporter,
            command="sam-bench quickstart",
        )
        for planned in plan.attacks
    ]
    return card, records


def _record_path(folder: Path, name: str, planned: PlannedAttack) -> Path:
    return folder / "evaluations" / name / f"{planned.attack}-{planned.eps.replace('/', 'over')}.json"


def findings(cards: Mapping[str, ModelCard], records: Mapping[str, list[EvaluationRecord]]) -> list[str]:
    """Three sentences made from the numbers, whatever they are."""
    robust = {name: [record.robust_accuracy for record in found] for name, found in records.items()}
    clean = {name: card.clean_accuracy for name, card in cards.items()}
    cost = {name: card.cost.passes / cards["standard"].cost.passes for name, card in cards.items()}
    pgd, strong = records["sam"][-2:]
    usual, strongest = ({name: found[index] for name, found in robust.items()} for index in (-2, -1))
    return [
        f"Perturbing only the weights, SAM keeps {usual['sam']:.1%} of the test images right under "
        f"PGD-{pgd.settings['steps']} at {pgd.eps}, {_against(usual['sam'], usual['standard'])} of standard training, "
        f"for {cost['sam']:.1f} times its passes.",
        f"Adversarial training, which perturbs the inputs, keeps {usual['at']:.1%} for {cost['at']:.1f} times "
        f"the passes; clean accuracy is {clean['standard']:.1%} (standard), {clean['sam']:.1%} (SAM) and "
        f"{clean['at']:.1%} (AT).",
        f"AutoAttack, the stronger attack, leaves {strongest['standard']:.1%}, {strongest['sam']:.1%} and "
        f"{strongest['at']:.1%} at {strong.eps} on {strong.n_examples} images: "
        f"{_verdict(strongest['standard'], strongest['sam'], strongest['at'])}.",
    ]


def _against(value: float, reference: float) -> str:
    if abs(value - reference) < 0.005:
        return f"about the {reference:.1%}"
    return f"{'more' if value > reference else 'less'} than the {reference:.1%}"


def _verdict(standard: float, sam: float, at: float) -> str:
    if sam <= standard:
        return "here SAM alone buys no robustness that holds against it"
    if sam < at:
        return "SAM alone buys some robustness, adversarial training buys more"
    return f"here SAM alone {'matches' if sam == at else 'beats'} adversarial training"
