"""What RobustBench wants to be sent: its `model_info` file and the text of its "New Model" issue."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from sam_bench.leaderboard.entries import OFFICIAL_EPS, OFFICIAL_EXAMPLES, headline_of, listed_dataset
from sam_bench.leaderboard.labels import radius_key, radius_text, split_warnings
from sam_bench.leaderboard.record_checks import REFERENCE_ENGINES, published_fingerprints
from sam_bench.records import EntryRow, EvaluationRecord, LeaderboardEntry, ModelCard

_TEST_SET_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


@dataclass(frozen=True)
class Condition:
    """One of RobustBench's conditions for a claim.

    Attributes:
        text: The condition, and how the record stands to it.
        met: Whether record and card meet it; None where they cannot tell.
    """

    text: str
    met: bool | None


def model_info(entry: LeaderboardEntry) -> str:
    """RobustBench's own file: the entry without our block, as JSON text."""
    fields = entry.model_dump(mode="json", exclude_none=True, exclude={"sam_bench"})
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def conditions(card: ModelCard, record: EvaluationRecord) -> list[Condition]:
    """RobustBench's conditions, each with whether the headline record meets it.

    Args:
        card: The model's card.
        record: The AutoAttack record that the entry's RobustBench fields come from.
    """
    dataset = listed_dataset(card)
    title = _TEST_SET_NAMES.get(dataset)
    train, test = published_fingerprints(card.dataset)
    if title is None:
        board = Condition(f"Data set: {card.dataset}; RobustBench lists cifar10, cifar100 and imagenet", False)
    elif card.dataset != dataset:
        board = Condition(f"Data set: {card.dataset}, whose pixels are not those of {title}", False)
    elif card.test_fingerprint == test:
        board = Condition(f"Data set: {title}", True)
    else:
        board = Condition(f"Data set: {title} by its name (please confirm)", None)
    wanted = OFFICIAL_EXAMPLES.get(dataset, 10_000)
    count = Condition(f"Examples: {record.n_examples:,} of the {wanted:,} asked for", record.n_examples == wanted)
    if count.met and record.dataset_fingerprint != card.test_fingerprint:
        count = Condition(f"{count.text}, and the same ones (please confirm)", None)
    official = OFFICIAL_EPS.get((dataset, card.threat))
    eps = radius_text(record.eps)
    if official is None:
        radius = Condition(f"Radius: {card.threat} {eps}; RobustBench has no {card.threat} board for {dataset}", False)
    else:
        radius = Condition(
            f"Radius: {card.threat} {eps}; the official one is {official}",
            radius_key(record.eps) == radius_key(official),
        )
    reference = record.engine.split(" ")[0].lower() in REFERENCE_ENGINES
    implementation = "the reference implementation" if reference else "not the reference implementation"
    own, others = split_warnings(record.warnings)
    warned = "; ".join(own)
    return [
        board,
        count,
        radius,
        Condition(f"Attack: AutoAttack, version standard, by {record.engine} ({implementation})", reference),
        Condition(f"AutoAttack's own checks: {warned or 'no warning'}", not warned),
        *(Condition(f"A second attack: {other}", None) for other in others),
        _training_data(card, train),
        Condition(
            "Model: gradients with respect to the input that are not zero in general, a deterministic forward pass, "
            "no optimisation loop inside (please confirm)",
            None,
        ),
    ]


def _training_data(card: ModelCard, published: str | None) -> Condition:
    if card.additional_data:
        return Condition(f"Training data: more than the examples of {card.dataset}, by the card (please confirm)", None)
    count = "" if card.train_examples is None else f"{card.train_examples:,} "
    text = f"Training data: the {count}examples of {card.dataset} alone, nothing additional"
    if published is not None and card.train_fingerprint == published:
        return Condition(text, True)
    return Condition(f"{text}, by the card (please confirm)", None)


def issue_title(card: ModelCard) -> str:
    """`[New Model] <NameYearFirstWord>` where the card has authors, year and title; else the model's name."""
    author = re.split(r",| and ", card.authors.strip())[0].split()
    year = re.search(r"\b(?:19|20)\d\d\b", card.venue)
    word = re.search(r"[A-Za-z0-9]+", card.paper_title)
    if author and year and word:
        surname = re.sub(r"\W", "", author[-1])
        return f"[New Model] {surname}{year[0]}{word[0].capitalize()}"
    return f"[New Model] {card.name}"


def issue_text(card: ModelCard, entry: LeaderboardEntry, record: EvaluationRecord) -> str:
    """The body of RobustBench's "New Model" issue, filled from card, entry and headline record.

    Which of RobustBench's conditions hold is said as it is; what only a person can promise is left
    unticked.
    """
    data = {True: "true", False: "false"}[entry.additional_data]
    evaluation = (
        f"AutoAttack standard ({record.engine}), {record.n_examples:,} examples, seed {record.seed}, {record.device}"
    )
    held = conditions(card, record)
    ticks = "\n".join(f"- [{'x' if each.met else ' '}] {each.text}" for each in held)
    unmet, open_ones = ([each.met for each in held].count(met) for met in (False, None))
    verdict = (
        f"No condition is missed that card and record can show; {open_ones} are for you to confirm."
        if not unmet
        else f"{unmet} of the conditions {'is' if unmet == 1 else 'are'} not met: not yet a claim for the board."
    )
    others = _other_rows(entry)
    return f"""# Paper Information

- **Paper Title**: {entry.name}
- **Paper URL**: {entry.link}
- **Paper authors**: {entry.authors}
- **Venue**: {entry.venue}

# Leaderboard Claim(s)

## Model 1: {card.name}

- **Architecture**: {entry.architecture}
- **Dataset**: {entry.dataset}
- **Threat Model**: {card.threat}
- **eps**: {entry.eps}
- **Clean accuracy**: {entry.clean_acc}
- **Robust accuracy**: {entry.autoattack_acc}
- **Additional data**: {data}
- **Evaluation method**: {evaluation}
- **Checkpoint and code**: (URL of the checkpoint and the code; the checkpoint's SHA-256 is {card.weights.sha256})

### RobustBench's conditions and this record

{verdict}

{ticks}
{others}
# Model Zoo

- [ ] I want to add my models to the Model Zoo
- [ ] I use an architecture that is **not** among RobustBench's own or timm's
- [ ] I agree to release my model(s) under the licence of the card: {card.license}
"""


def _other_rows(entry: LeaderboardEntry) -> str:
    top = headline_of(entry)
    rows = [row for row in entry.sam_bench.rows if row is not top]
    if not rows:
        return ""
    return "\n### Other evaluations of the same checkpoint\n\n" + "".join(f"- {_row_text(row)}\n" for row in rows)


def _row_text(row: EntryRow) -> str:
    return (
        f"{row.attack}, {row.norm} {radius_text(row.eps)}: {100 * row.robust_accuracy:.2f} "
        f"(clean {100 * row.clean_accuracy:.2f}, {row.n_examples:,} examples)"
    )
