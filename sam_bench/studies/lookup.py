"""What a study's folder holds already: cards, records and notes that belong to the plan."""

from __future__ import annotations

from typing import Any, TypeVar

from sam_bench.api import TrainSpec
from sam_bench.errors import InputError
from sam_bench.records import EvaluationRecord, ModelCard, read_record
from sam_bench.studies.jobs import STANDARD, Job, Measurement, Model, Study
from sam_bench.studies.notes import Clean, Distances, Fault, Matched, Note
from sam_bench.studies.plan import Evaluation
from sam_bench.training import differences
from sam_bench.zoo import Zoo

N = TypeVar("N", bound=Note)

_SAID = {"summary", "good_for", "source"}  # of a recipe; they decide nothing


def card_of(study: Study, model: Model) -> ModelCard | None:
    """The card of a model that the plan asks for; None if it is not trained yet.

    A card is accepted whoever trained it, if it says that it is the same run.

    Raises:
        InputError: A model of this name is of another run; says what differs.
    """
    card = _in_zoo(study, model)
    if card is None:
        return None
    spec = study.training(model)
    difference = first_difference(card, spec, study.dataset_name)
    if difference:
        raise InputError(
            f"{model.name} in {study.zoo} is of another run: {difference}; take it out, or use another `output`"
        )
    first = _in_zoo(study, Model(STANDARD, 0))
    if first is not None and first.train_fingerprint != card.train_fingerprint:
        raise InputError(
            f"{model.name} in {study.zoo} learned from {card.train_examples} images and {first.name} from "
            f"{first.train_examples}, which are not the same: take out the one that is not trained with `validation=0` "
            "on the study's data, or use another `output`"
        )
    if first is not None and first.test_fingerprint != card.test_fingerprint:
        raise InputError(
            f"{model.name} in {study.zoo} was tested on other images than {first.name}: take out the one that is not "
            "of the study's data, or use another `output`"
        )
    if first is not None and not _sets_augmentation(spec):
        augmented = (each.recipe.augmentation.model_dump() for each in (first, card))
        other = differences.first_difference(*augmented)
        if other is not None:
            raise InputError(
                f"{model.name} in {study.zoo} was trained with {other.field} {other.now} and {first.name} with "
                f"{other.before}; take one of them out, or use another `output`"
            )
    return card


def _sets_augmentation(spec: TrainSpec) -> bool:
    """Whether the plan says how this row's images are augmented; else that suits the images, and is one for all."""
    return bool(spec.settings.keys() & set(type(spec.method.recipe.augmentation).model_fields))


def _in_zoo(study: Study, model: Model) -> ModelCard | None:
    return next(iter(Zoo(study.zoo).matches(model.name)), None)


def first_difference(card: ModelCard, spec: TrainSpec, dataset: str) -> str:
    """The first field in which a card is not of this training, in words; empty if it is.

    The card's augmentation may suit the images better than the recipe's. So it is compared where the plan sets it.
    """
    recipe = spec.method.recipe
    compared = set(type(recipe).model_fields) - _SAID
    if not _sets_augmentation(spec):
        compared.remove("augmentation")
    asked: dict[str, Any] = {
        "dataset": dataset,
        "arch": spec.arch,
        "arch_options": dict(spec.arch_options),
        "seed": spec.seed,
        "precision": spec.precision,
        "epochs": recipe.epochs,
        "init": spec.init,
        "extra_data": spec.extra_data,
        **recipe.model_dump(mode="json", include=compared),
    }
    there: dict[str, Any] = {
        "dataset": card.dataset,
        "arch": card.architecture.name,
        "arch_options": dict(card.architecture.options),
        "seed": card.seed,
        "precision": card.precision,
        "epochs": card.epochs,
        "init": card.init,
        "extra_data": card.extra_data and card.extra_data.file,
        **card.recipe.model_dump(mode="json", include=compared),
    }
    if spec.limit_train is not None:
        asked["train_examples"], there["train_examples"] = spec.limit_train, card.train_examples
    difference = differences.first_difference(there, asked)
    return f"its {difference.field} is {difference.before}, not {difference.now}" if difference else ""


def records_of(study: Study, measurement: Measurement, card: ModelCard) -> list[EvaluationRecord]:
    """The records of an attack on a model, the smallest radius first; those that are there and are of that model."""
    evaluation = study.plan.evaluations[measurement.evaluation]
    checkpoint = card.weights.sha256
    if evaluation.temperature is not None:
        note = note_of(study, measurement, card, Matched)
        standard = card_of(study, Model(STANDARD, measurement.model.seed))
        if note is None or standard is None or note.target_sha256 not in (None, standard.weights.sha256):
            return []
        checkpoint = note.module_sha256
    paths = [study.record(measurement, eps) for eps in sorted(evaluation.eps, key=float)]
    records = [read_record(path, EvaluationRecord) for path in paths if path.exists()]
    return [record for record in records if record.checkpoint_sha256 == checkpoint]


def note_of(study: Study, measurement: Measurement, card: ModelCard, kind: type[N]) -> N | None:
    """A measurement that is no record; None if it is not there, or is of another model or fewer images."""
    path = study.notes(measurement)
    if not path.exists():
        return None
    note = read_record(path, kind)
    count = study.scale.first.get(measurement.evaluation, note.n_examples)
    return note if (note.checkpoint_sha256, note.n_examples) == (card.weights.sha256, count) else None


def kind_of(evaluation: Evaluation | None) -> type[Note] | None:
    """What an evaluation writes besides records; None stands for clean accuracy, which every model is asked for."""
    if evaluation is None:
        return Clean
    if evaluation.fault is not None:
        return Fault
    if evaluation.temperature is not None:
        return Matched
    return Distances if evaluation.measure is not None else None


def is_done(study: Study, job: Job) -> bool:
    """Whether nothing is left to do for a job.

    Raises:
        InputError: What is there belongs to another run, or is damaged.
    """
    if isinstance(job, Model):
        return card_of(study, job) is not None
    card = card_of(study, job.model)
    if card is None:
        return False
    evaluation = study.plan.evaluations.get(job.evaluation)
    kind = kind_of(evaluation)
    if evaluation is None or kind in (Fault, Distances):
        return note_of(study, job, card, kind or Note) is not None
    return len(records_of(study, job, card)) == len(evaluation.eps)
