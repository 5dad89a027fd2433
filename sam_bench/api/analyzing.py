"""From an analysis's spec to its numbers and its figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sam_bench.analysis import Analysis, Context, FreeAnalysis, Json, ModelAnalysis, NamedRecord, RecordAnalysis
from sam_bench.api.model_and_data import model_and_data
from sam_bench.api.record_files import check_folder
from sam_bench.api.specs.analyze import AnalyzeSpec
from sam_bench.data import Dataset, Split, first_examples, load_dataset, to_float
from sam_bench.device import choose_device, device_name, true_float32
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation import check_fit
from sam_bench.modes import inputs_copied
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import EvaluationRecord, ModelCard, read_record, write_atomic
from sam_bench.versions import package_versions, timestamp
from sam_bench.zoo import LoadedModel, Zoo, load_model, zoo_dir
from sam_bench.zoo.names import full_name


@dataclass(frozen=True)
class AnalysisResult:
    """A finished analysis.

    Attributes:
        measured: Name to what was measured; empty for an analysis of records.
        findings: What follows from all of it.
        lines: The answer as text.
        numbers: The JSON file with both, the settings and the conditions.
        figures: The figure, as SVG and PNG.
    """

    measured: Json
    findings: Json
    lines: list[str]
    numbers: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class _Models:
    """The models of an analysis with the data that they share."""

    loaders: dict[str, Callable[[], LoadedModel]]
    keys: dict[str, str]
    cards: dict[str, ModelCard]
    data: Dataset


def run_analysis(spec: AnalyzeSpec, *, reporter: Reporter | None = None, command: str = "") -> AnalysisResult:
    """Answer the question that the spec describes. See `sam_bench.analyze`."""
    reporter = reporter or SilentReporter()
    analysis = spec.built
    check_folder(spec.folder, what="no analysis")
    measured: Json = {}
    about: Json = {"seed": spec.seed}
    if isinstance(analysis, ModelAnalysis):
        device, why = choose_device(spec.device)
        reporter.say(f"device: {device_name(device)} ({why})")
        models = _models(spec, device)
        measured = _measure(analysis, spec, models, device, reporter)
        findings = analysis.combine(measured, models.cards)
        count = min(spec.n_examples, len(models.data.test))
        about |= {"dataset": models.data.name, "n_examples": count, "device": device_name(device)}
    elif isinstance(analysis, RecordAnalysis):
        records = _records(spec)
        findings = analysis.combine(records, *_labels(analysis, spec, records))
        about |= {"records": [each.path for each in records]}
    else:
        assert isinstance(analysis, FreeAnalysis)
        _refuse_subjects(spec)
        findings = analysis.combine(spec.seed)
    return _written(spec, analysis, measured, findings, about | {"command": command})


def _refuse_subjects(spec: AnalyzeSpec) -> None:
    if spec.subjects:
        raise InputError(f"{spec.analysis} needs neither models nor records; leave {spec.subjects[0]!r} away")


def _models(spec: AnalyzeSpec, device: torch.device) -> _Models:
    """The models by name, and the data; each is loaded once to see that it is there and fits the data."""
    names = spec.subjects or tuple(full_name(card) for card in Zoo(zoo_dir(spec.zoo)).cards())
    if not names:
        raise InputError(f"{spec.analysis} needs models: name some, or train one, as the zoo is empty")
    loaders: dict[str, Callable[[], LoadedModel]] = {}
    keys: dict[str, str] = {}
    cards, sets = {}, {}
    for asked in names:
        model, data = model_and_data(asked, spec, device=device)
        check_fit(model, data.test, data.name)
        sets[data.test.fingerprint] = data
        listed = model.card.dataset if model.card else data.robustbench
        loaders[model.name] = partial(load_model, asked, zoo=spec.zoo, dataset=listed, device=device)
        key = f"{model.sha256}:{model.architecture_sha256}"
        if keys.setdefault(model.name, key) != key:
            raise InputError(f"two models that differ are called {model.name}: leave one out, or give it another name")
        if model.card:
            cards[model.name] = model.card
    if len(sets) > 1:
        raise InputError(
            f"the models are of different data sets ({', '.join(sorted(each.name for each in sets.values()))}); "
            "name models of one, or give `dataset`"
        )
    return _Models(loaders, keys, cards, next(iter(sets.values())))


def _measure(
    analysis: ModelAnalysis, spec: AnalyzeSpec, models: _Models, device: torch.device, reporter: Reporter
) -> Json:
    """What is known of each model. What was measured before with the same settings is read, not measured again."""
    test = first_examples(models.data.test, min(spec.n_examples, len(models.data.test)))
    x, y = to_float(test.images.to(device)), test.labels.to(device)
    train = _train(spec, models.data) if analysis.needs_train else None
    every = sorted(models.keys.items()) if analysis.asks_others else []
    measured: Json = {}
    for name, load in models.loaders.items():
        identity = [analysis.spec().model_dump(mode="json"), spec.seed, test.fingerprint, models.keys[name], every]
        identity += [train.fingerprint] if train else []
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        kept = spec.folder / "measured" / f"{name}-{key}.json"
        measured[name] = _kept(kept)
        if measured[name] is None:
            with reporter.stage(f"{spec.analysis} {name}", len(test)) as stage:
                stage.update(0)  # analyses report whole batches: the first of them is done by this process, too
                context = Context(x, y, models.data.classes, spec.batch_size, spec.seed, stage, models.loaders, train)
                model = load()
                with true_float32(), inputs_copied(model.module):
                    measured[name] = analysis.measure(model, context)
            write_atomic(kept, _json(measured[name], f"{spec.analysis} of {name}"))
    return measured


def _train(spec: AnalyzeSpec, data: Dataset) -> Split:
    """The training images of the data set whose test images are `data`."""
    whole = load_dataset(
        spec.dataset or data.name, data_dir=spec.data_dir, name=spec.dataset_name, image_size=data.image_size
    )
    if whole.train is None:
        raise InputError(f"{spec.analysis} needs training images, and data set {data.name} has none")
    return whole.train


def _kept(path: Path) -> Json | None:
    """What was measured before; None if nothing was, or the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _records(spec: AnalyzeSpec) -> list[NamedRecord]:
    """The records that were named, each with the card of its model."""
    if not spec.subjects:
        raise InputError(f"{spec.analysis} needs records: give their files, as in evaluations/MODEL/….json")
    return named_records(spec.subjects, spec.zoo)


def named_records(paths: Sequence[str], zoo: Path | None) -> list[NamedRecord]:
    """Records from their files, each with the card of its model if the zoo has one.

    Raises:
        InputError: A file is no record.
    """
    cards = list(Zoo(zoo_dir(zoo)).cards())
    found = []
    for path in paths:
        record = read_record(Path(path), EvaluationRecord)
        found.append(NamedRecord(record, path, _card_of(record, cards)))
    return found


def _card_of(record: EvaluationRecord, cards: Sequence[ModelCard]) -> ModelCard | None:
    """The card with the record's weights; of several with the same weights the one of the record's name."""
    same = [
        card
        for card in cards
        if card.weights.sha256 == record.checkpoint_sha256
        and record.architecture_sha256 in (None, card.architecture.sha256)
    ]
    named = [card for card in same if card.name == record.model.rsplit("/", 1)[-1]]
    return next(iter(named or same), None)


def _labels(
    analysis: RecordAnalysis, spec: AnalyzeSpec, records: list[NamedRecord]
) -> tuple[dict[int, torch.Tensor] | None, tuple[str, ...]]:
    """The labels of so many first test examples and the class names, if the analysis asks for them."""
    if not analysis.needs_labels:
        return None, ()
    dataset = spec.dataset or records[0].record.dataset
    size = spec.image_size or (records[0].card.architecture.image_size if records[0].card else None)
    data = load_dataset(dataset, data_dir=spec.data_dir, name=spec.dataset_name, image_size=size, test_only=True)
    tested = {count: first_examples(data.test, count) for count in {each.record.n_examples for each in records}}
    for each in records:
        if tested[each.record.n_examples].fingerprint != each.record.dataset_fingerprint:
            raise InputError(f"{each.path} is a record over other images than the first of {data.name}")
    return {count: split.labels for count, split in tested.items()}, data.classes


def _written(spec: AnalyzeSpec, analysis: Analysis, measured: Json, findings: Json, about: Json) -> AnalysisResult:
    """Numbers and figure on disk."""
    from sam_bench.analysis.figures import rendered  # Matplotlib takes a second to import

    content = {
        "analysis": spec.analysis,
        "settings": analysis.model_dump(mode="json"),
        **about,
        "created": timestamp(),
        "packages": package_versions(),
        "measured": measured,
        "findings": findings,
    }
    numbers = spec.folder / f"{spec.analysis}.json"
    text, lines = _json(content), analysis.lines(measured, findings)
    figures = {
        numbers.with_suffix(f".{suffix}"): drawn
        for suffix, drawn in rendered(partial(analysis.draw, measured, findings)).items()
    }
    write_atomic(numbers, text)  # once all is made: else new numbers could lie beside an old figure
    for path, drawn in figures.items():
        write_atomic(path, drawn)
    return AnalysisResult(measured, findings, lines, numbers, tuple(figures))


def _json(content: Any, found_by: str = "the analysis") -> str:
    try:
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise SamBenchError(f"{found_by} found a number that is not finite, which JSON cannot hold") from error
