"""What a record says is held against itself, against the model's card, and against the model's other records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from sam_bench.attacks import ATTACKS, Attack, AttackWarning
from sam_bench.attacks.autoattack.sampled import SAMPLED, AutoAttackSampled
from sam_bench.attacks.autoattack.suite import build_suite, fit_to_classes
from sam_bench.attacks.warnings import second_attack_warnings, square_warnings
from sam_bench.data.sources import SOURCES, reserved_name
from sam_bench.errors import InputError, shortened
from sam_bench.leaderboard.labels import AUTOATTACK, attack_name, examples_text, radius_key, radius_text
from sam_bench.records import (
    MISCLASSIFIED,
    ComponentSpec,
    EvaluationRecord,
    ModelCard,
    Sampled,
    sample_key,
    sampling_of,
)

TEST_SET_SIZES = {"cifar10": 10_000, "cifar100": 10_000, "svhn": 26_032, "digits": 500, "imagenet": 50_000}
"""How many test examples there are of the data sets that everyone has."""

REFERENCE_ENGINES = ("pyautoattack", "autoattack")
"""The names under which AutoAttack's authors' own implementation is installed."""


@dataclass(frozen=True)
class Evidence:
    """A record and the file it was read from."""

    path: Path
    record: EvaluationRecord


@cache
def our_attacks() -> frozenset[str]:
    """Names of the attacks that come with sam-bench, not with another package."""
    return frozenset(attack.method for attack in ATTACKS if attack.__module__.startswith("sam_bench."))


def check_record(evidence: Evidence) -> None:
    """Refuse a record that no evaluation writes, whatever model it is about.

    Raises:
        InputError: It names one of our attacks, but another one ran, or another engine; it carries more than was
            broken; its sample was chosen; or it lacks a warning that follows from its own verdicts.
    """
    record, path = evidence.record, evidence.path
    attack = _attack_of(record, path)
    broken = len(record.broken)
    if record.carried > broken:
        raise InputError(
            f"{path} carries {examples_text(record.carried)} over from smaller radii, but only {broken:,} were broken: "
            "evaluate again"
        )
    _check_sample(record, attack, path)
    follow = []
    if attack is not None:
        follow = [*attack.warnings, *square_warnings(record.verdicts, attack.attacks, record.sampled)]
    if record.second_opinion is not None:
        opinion = record.second_opinion
        follow += second_attack_warnings(record.attack, opinion.attack, opinion.gap)
    _check_warnings(evidence, follow, "its verdicts and its attack")


def _check_sample(record: EvaluationRecord, attack: Attack | None, path: Path) -> None:
    """Refuse a sample that was chosen: which examples FAB-T and Square see follows from model, images and ball."""
    if not isinstance(attack, AutoAttackSampled):
        if record.sampled is not None:
            raise InputError(f"{path} names a sample, but {shortened(record.attack)} runs on all examples")
        return
    model, images = (record.checkpoint_sha256, record.architecture_sha256), record.dataset_fingerprint
    chosen = attack.keyed(sample_key(*model, images, record.norm, record.eps)).chosen
    inside = chosen.contains(torch.arange(record.n_examples)).tolist()
    if record.sampled != sampling_of(record.verdicts, SAMPLED, inside):
        raise InputError(
            f"{path}: sampled is not what model, images, ball and the share {chosen.share:g} give: evaluate again"
        )


def _attack_of(record: EvaluationRecord, path: Path) -> Attack | None:
    """The attack of ours that the record is of, None for another package's; what that runs is not known here.

    AutoAttack's standard version is APGD-CE, APGD-T, FAB-T and Square; fewer attacks are not AutoAttack.
    """
    if record.attack not in our_attacks():
        _refuse_borrowed_name(record, path)
        return None
    version = {"version": record.version} if record.version else {}
    try:
        spec = ComponentSpec.model_validate({**record.settings, **version, "method": record.attack})
        attack = ATTACKS.build(spec)
    except InputError as error:
        problem = str(error).removeprefix("attack.")
        raise InputError(f"{path} is not of {record.attack} as sam-bench has it: {shortened(problem, 400)}") from error
    meant = str(attack.model_dump().get("version", ""))
    if record.version != meant:
        raise InputError(f"{path} does not say which version of {record.attack} it is of: evaluate again")
    ran = list(record.accuracy_after)
    if ran != attack.attacks:
        called = f"{record.attack}, version {meant}," if meant else record.attack
        raise InputError(
            f"{path} says that it is of {called} which runs {', '.join(attack.attacks)}, but accuracy_after names "
            f"{shortened(', '.join(ran)) or 'none'}: evaluate with the whole attack"
        )
    _check_engine(record, path)
    return attack


def _refuse_borrowed_name(record: EvaluationRecord, path: Path) -> None:
    """Refuse another package's attack under a name that a row of ours has: `AutoAttack`, `pgd-10`."""
    ours = "|".join(sorted(map(re.escape, our_attacks())))
    told = r"(-(standard|plus|rand|custom|step|no-random-start|\d+).*)?"
    if re.fullmatch(rf"({ours}){told}", attack_name(record).lower()):
        raise InputError(
            f"{path} is of an attack {shortened(record.attack)!r}, which is not one of sam-bench's but would be listed "
            "as one: register it under another name"
        )


def _check_engine(record: EvaluationRecord, path: Path) -> None:
    """Refuse an engine that is not the one the settings ask for."""
    engine, asked = record.engine.split(" ")[0].lower(), record.settings.get("engine")
    allowed = {"fast": ("sam-bench",), "reference": REFERENCE_ENGINES}.get(str(asked), ("sam-bench",))
    if record.attack == AUTOATTACK and asked is None:
        allowed = ("sam-bench", *REFERENCE_ENGINES)  # records from before there was a choice
    if engine not in allowed:
        settings = f" with the setting engine={asked}" if asked else ""
        raise InputError(
            f"{path} says that {shortened(record.engine)!r} ran, but {record.attack}{settings} is run by "
            f"{' or '.join(allowed)}: evaluate again"
        )


def _check_warnings(evidence: Evidence, follow: Sequence[AttackWarning], source: str) -> None:
    """Refuse a record without a warning that follows; its sentence may differ, its code and percentages not."""
    for expected in follow:
        code = expected.code
        told = [each for each in evidence.record.warnings if AttackWarning.parse(each).code == code]
        if not told:
            raise InputError(f"{evidence.path} lacks the warning {code} that follows from {source}: evaluate again")
        for share in re.findall(r"[\d.]+%", expected.text):
            if share not in told[0]:
                raise InputError(
                    f"{evidence.path}: its warning {code} should say {share}, which follows from {source}: evaluate "
                    "again"
                )


def check_against_card(evidence: Evidence, card: ModelCard) -> None:
    """Refuse a record that is not about the card's model and data.

    Raises:
        InputError: Another checkpoint, architecture or data set; another accuracy on the same images; or it lacks
            the warning that the model has fewer classes than the attack has targets.
    """
    record, path = evidence.record, evidence.path
    if record.checkpoint_sha256 != card.weights.sha256:
        raise InputError(
            f"{path} evaluates checkpoint {record.checkpoint_sha256}, but the card of {card.name} is of "
            f"{card.weights.sha256}: evaluate this model's own weights"
        )
    evaluated, stated = record.architecture_sha256, card.architecture.sha256
    if evaluated not in (None, stated):
        raise InputError(
            f"{path} evaluates the weights in architecture {evaluated}, but the card of {card.name} describes "
            f"{stated} (its options, mean and std are part of it): evaluate the model again"
        )
    if record.dataset != card.dataset:
        raise InputError(
            f"{path} was evaluated on {record.dataset}, but the card of {card.name} is of {card.dataset}: "
            f"evaluate it on {card.dataset}"
        )
    if record.dataset_fingerprint == card.test_fingerprint and not _is_random(record):
        apart = abs(record.clean_accuracy - card.clean_accuracy) * record.n_examples
        if apart > _rounding(record.n_examples):
            raise InputError(
                f"{path} has clean accuracy {record.clean_accuracy:.2%}, but the card of {card.name} "
                f"{card.clean_accuracy:.2%} on the same images: evaluate the model again"
            )
    attacked = record.n_examples - record.verdicts.count(MISCLASSIFIED) - record.carried
    if record.attack == AUTOATTACK and record.version and attacked > 0:
        configs = build_suite(record.version, record.settings.get("suite", ()), norm=record.norm)  # type: ignore[arg-type]
        try:
            few = fit_to_classes(configs, card.architecture.num_classes)[1]
        except InputError as error:
            raise InputError(f"{path} cannot be of {card.name}: {error}") from error
        _check_warnings(evidence, few, f"the card's {card.architecture.num_classes} classes")


def published_fingerprints(dataset: str) -> tuple[str | None, str | None]:
    """Of the training and the test images of a published data set, each None where it is not known here."""
    source = SOURCES.get(dataset)
    return (source.fingerprints if source else None) or (None, None)


def check_published(card: ModelCard) -> None:
    """Refuse a card of images that go by the name of published ones, and are not those.

    Raises:
        InputError: They are not, or the name differs from a published one in its spelling alone.
    """
    meant = reserved_name(card.dataset)
    if meant is None:
        return
    published = published_fingerprints(card.dataset)[1]
    if re.sub(r"-\d+px$", "", card.dataset) != meant or published not in (None, card.test_fingerprint):
        raise InputError(
            f"the card of {card.name} is of {card.dataset}, with test images {card.test_fingerprint}, which are not "
            f"known to be those of the published {meant}: evaluate it on {meant}, or give its own data another name"
        )


def whole_test_set(dataset: str) -> int | None:
    """How many test examples a data set has that is known by name, at any image size; None for others."""
    return TEST_SET_SIZES.get(re.sub(r"-\d+px$", "", dataset))


def check_test_set(evidence: Evidence, test_fingerprint: str | None, whole: int | None) -> None:
    """Refuse a record over more examples than there are, or over all of them and yet over other images.

    Args:
        evidence: The record.
        test_fingerprint: Of the whole test set, as the card states it, if it is known.
        whole: How many test examples there are, if that is known.
    """
    record, path = evidence.record, evidence.path
    if whole is None or record.n_examples < whole:
        return
    if record.n_examples > whole:
        raise InputError(
            f"{path} is over {examples_text(record.n_examples)}, but {record.dataset} has {whole:,}: evaluate it on "
            f"{record.dataset}"
        )
    if test_fingerprint is not None and record.dataset_fingerprint != test_fingerprint:
        raise InputError(
            f"{path} is over all {examples_text(whole)} of {record.dataset} with fingerprint "
            f"{record.dataset_fingerprint}, but on the model's card they have {test_fingerprint}: evaluate it on "
            f"{record.dataset}"
        )


def check_together(records: Sequence[Evidence]) -> None:
    """Refuse records of one model that cannot all be true.

    Raises:
        InputError: Two are over equally many, but other examples, or over the same ones in another number; or the
            same images are classified right in one and wrong in the other.
    """
    for one, other in itertools.combinations(records, 2):
        same_count = one.record.n_examples == other.record.n_examples
        same_images = one.record.dataset_fingerprint == other.record.dataset_fingerprint
        if same_count != same_images:
            what = "not the same ones" if same_count else "they are said to be the same ones as the other's"
            counts = f"{examples_text(one.record.n_examples)} and {examples_text(other.record.n_examples)}"
            raise InputError(
                f"{one.path} and {other.path} are over {counts}, but {what} (fingerprints "
                f"{one.record.dataset_fingerprint} and {other.record.dataset_fingerprint})"
            )
        if same_images:
            _check_clean(one, other)


def check_heads(records: Sequence[Evidence], test_fingerprint: str) -> None:
    """Refuse a record over the first images of a test set that a record over all of it contradicts.

    Where the images are sorted by class, a part of them is not the first ones (`data.first_examples`). Nothing is
    refused here then; a replay compares the images themselves.

    Args:
        records: All of one model.
        test_fingerprint: Of the whole test set.
    """
    wholes = [each for each in records if each.record.dataset_fingerprint == test_fingerprint]
    heads = [each for each in records if not each.record.sorted_by_class]
    for whole, head in itertools.product(wholes[:1], heads):
        _check_clean(whole, head)


def _check_clean(one: Evidence, other: Evidence) -> None:
    if _is_random(one.record) or _is_random(other.record):
        return
    pairs = list(zip(one.record.verdicts, other.record.verdicts, strict=False))
    apart = sum((here == MISCLASSIFIED) != (there == MISCLASSIFIED) for here, there in pairs)
    if apart > _rounding(len(pairs)):
        raise InputError(
            f"{one.path} and {other.path} disagree on {apart:,} of the first {examples_text(len(pairs))}: one has "
            "them classified right without an attack, the other wrong; they are not of one model and data set"
        )


def _is_random(record: EvaluationRecord) -> bool:
    """Whether the model's answers change from pass to pass, so that no two records need agree."""
    return record.version == "rand" or any(each.startswith("randomized:") for each in record.warnings)


def _rounding(count: int) -> int:
    """How many of so many examples another device's rounding may classify otherwise."""
    return 1 + count // 200


def sampled_text(sampled: Sampled) -> str:
    """What a record by a sample says of AutoAttack on all examples."""
    count = len(sampled.examples)
    return (
        f"FAB-T and Square on {count:,} of the {sampled.of:,} examples that APGD left: AutoAttack leaves at least "
        f"{sampled.at_least:.2%} (at {sampled.level:.0%}), most likely {sampled.estimate:.2%}"
    )


def odd_curves(records: Mapping[str, EvaluationRecord]) -> Iterator[tuple[str, str]]:
    """Records that are more robust than another one of the same attack in a smaller ball over the same images.

    Args:
        records: All of one model, by any key.

    Yields:
        The key, and a note that says so.
    """
    for (key, large), small in itertools.product(records.items(), records.values()):
        same = (large.dataset_fingerprint, large.norm, attack_name(large)) == (
            small.dataset_fingerprint,
            small.norm,
            attack_name(small),
        )
        gained = (large.robust_accuracy - small.robust_accuracy) * large.n_examples
        if same and radius_key(large.eps) > radius_key(small.eps) and gained > _rounding(large.n_examples):
            yield (
                key,
                (
                    f"more robust than at {small.norm} {radius_text(small.eps)} ({large.robust_accuracy:.2%} against "
                    f"{small.robust_accuracy:.2%}), which cannot be: the attack failed here"
                ),
            )
