"""`verify_entry`: check, replay and audit an entry of the leaderboard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sam_bench.api.specs.checks import StrPath
from sam_bench.data import Split, load_dataset
from sam_bench.device import choose_device
from sam_bench.errors import InputError
from sam_bench.leaderboard.convergence import check_convergence
from sam_bench.leaderboard.pull_request import PullRequestCheck
from sam_bench.leaderboard.pull_request import check_pull_request as checked
from sam_bench.leaderboard.verification import withdraw_report
from sam_bench.leaderboard.verify import Means, Verification, write_report
from sam_bench.leaderboard.verify import verify_entry as verified
from sam_bench.records import ModelCard
from sam_bench.training import build_recipe

_PASSES_APART = 0.1
"""The share by which a run's passes may differ from what its recipe says: randomised methods, a last small batch."""


def verify_entry(
    entry: StrPath,
    *,
    dataset: StrPath | None = None,
    data_dir: StrPath = Path("data"),
    zoo: StrPath | None = None,
    audit: int | None = None,
    beacon: str | None = None,
    attack_again: bool = False,
    write: bool = False,
    device: str = "auto",
) -> Verification:
    """Check an entry, show that its robust accuracies are upper bounds, and audit what it claims to be robust.

    Args:
        entry: The entry's file, `<folder>/<dataset>/<threat>/<name>.json`.
        dataset: The model's data, FILE.npz or FOLDER. Default: the file of the data set's name in `data_dir`, or the
            data set of that name.
        data_dir: Where data and downloads are looked for.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        audit: Attack so many of the examples that each AutoAttack row claims to be robust again.
        beacon: For the audit: a public text that did not exist when the entry was made, such as a commit's hash.
        attack_again: Run AutoAttack on what rows without adversarial examples call broken, so that these rows are
            replayed, too.
        write: Write the report that gives the rows their state, if nothing was refuted and a row was replayed; delete
            it if the audit refuted the entry.
        device: Where the model runs.

    Raises:
        InputError: `audit` without `beacon`, or a device that cannot be used. What is wrong with the entry is in the
            result.
    """
    means = means_of(
        dataset=dataset,
        data_dir=data_dir,
        zoo=zoo,
        audit=audit,
        beacon=beacon,
        attack_again=attack_again,
        device=device,
    )
    verification = verified(Path(entry), means)
    if write and verification.shown:
        write_report(verification)
    elif write and verification.refuted and verification.checks[-1].name == "audit":
        withdraw_report(verification.path, verification.entry_sha256)  # too many claims that it vouches for are false
    return verification


def check_pull_request(
    base: str,
    *,
    repository: StrPath = Path(),
    dataset: StrPath | None = None,
    data_dir: StrPath = Path("data"),
    audit: int | None = None,
    beacon: str | None = None,
    attack_again: bool = False,
    device: str = "auto",
) -> PullRequestCheck:
    """Verify the entries that a branch adds or changes, and refuse what else it touches.

    Args:
        base: The commit or branch that it is to be merged into.
        repository: A clean checkout of the branch, with `leaderboards` and `model_zoo`.
        dataset: As for `verify_entry`, like all that follow.

    Raises:
        InputError: Not a git repository, no such base, or something given is wrong.
    """
    root = Path(repository)
    means = means_of(
        dataset=dataset,
        data_dir=data_dir,
        zoo=root / "model_zoo",
        audit=audit,
        beacon=beacon,
        attack_again=attack_again,
        device=device,
    )
    return checked(root, base, partial(verified, means=means))


def means_of(
    *,
    dataset: StrPath | None,
    data_dir: StrPath,
    zoo: StrPath | None,
    audit: int | None,
    beacon: str | None,
    device: str,
    attack_again: bool = False,
) -> Means:
    """What verifying takes; arguments as for `verify_entry`."""
    if (audit is None) != (beacon is None):
        raise InputError("`audit` and `beacon` go together: the beacon decides which examples are attacked again")
    if beacon is not None and not beacon.strip():
        raise InputError("must not be empty", field="beacon", hint="a public text made after the entry, such as a hash")
    if audit is not None and audit < 1:
        raise InputError("must be at least 1", field="audit", value=audit)
    return Means(
        test=images_of(dataset, Path(data_dir)),
        training=check_training,
        zoo=None if zoo is None else Path(zoo),
        device=choose_device(device)[0],
        audit=audit or 0,
        beacon=beacon or "",
        attack_again=attack_again,
    )


def images_of(dataset: StrPath | None, data_dir: Path) -> Callable[[ModelCard], Split]:
    """What gives the test images of a card's data set; arguments as for `verify_entry`."""

    def load(card: ModelCard) -> Split:
        file = data_dir / f"{card.dataset}.npz"
        given = dataset if dataset is not None else file if file.is_file() else None
        return load_dataset(
            str(given or card.dataset),
            data_dir=data_dir,
            name=card.dataset if given else None,
            image_size=card.architecture.image_size,
            test_only=True,
        ).test

    return load


def check_training(card: ModelCard) -> str:
    """Refuse a card whose recipe cannot be built, whose training cost does not follow from it, or who ends elsewhere.

    Returns:
        What was found.

    Raises:
        InputError: Says what the card states and what follows from its recipe, or where such runs end.
    """
    expected = card.epochs * build_recipe(card.recipe).passes_per_epoch
    if card.epochs < 1 and card.imported is None:
        raise InputError(f"the card of {card.name} is of {card.epochs} epochs, so that nothing was trained")
    if card.epochs > card.recipe.epochs:
        raise InputError(f"the card of {card.name} is of {card.epochs} epochs, but its recipe of {card.recipe.epochs}")
    # Averaging may end with one forward pass over the data, half a pass, for BatchNorm.
    if abs(card.cost.passes - expected) > _PASSES_APART * expected + 0.5:
        raise InputError(
            f"the card of {card.name} states {card.cost.passes:g} training passes, but {card.epochs} epochs of its "
            f"recipe {card.recipe.name} take {expected:g}"
        )
    passes = f"{card.cost.passes:g} training passes follow from {card.epochs} epochs of {card.recipe.name}"
    return "; ".join(filter(None, [passes, check_convergence(card)]))
