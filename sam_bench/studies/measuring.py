"""The measurements that are no plain evaluation: equal confidence, distances, the published fault."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench import api
from sam_bench.attacks.minimum_norm import minimum_norms
from sam_bench.attacks.verify import predict
from sam_bench.data import Dataset, first_examples, load_dataset, to_float
from sam_bench.device import choose_device, device_name, true_float32
from sam_bench.errors import InputError
from sam_bench.models.temperature import Tempered, matching_temperature, mean_confidence
from sam_bench.modes import attacking
from sam_bench.progress import Reporter
from sam_bench.records import ModelCard, write_record
from sam_bench.studies import published
from sam_bench.studies.claims import CLEAN
from sam_bench.studies.jobs import STANDARD, Measurement, Model, Study
from sam_bench.studies.lookup import card_of
from sam_bench.studies.notes import Clean, Distances, Fault, Matched, conditions
from sam_bench.zoo import load_model
from sam_bench.zoo.names import full_name

_BATCH = 250  # images at a time


@dataclass(frozen=True)
class Work:
    """Who does a measurement, and what it says of itself."""

    study: Study
    reporter: Reporter
    command: str

    @property
    def device(self) -> torch.device:
        """Where models are measured."""
        return choose_device(self.study.device)[0]

    def measure(self, job: Measurement, card: ModelCard) -> None:
        """Do what the plan asks for, and write it down."""
        if job.evaluation == CLEAN:
            self.clean(job, card)
            return
        evaluation = self.study.plan.evaluations[job.evaluation]
        if evaluation.fault is not None:
            self.fault(job, card)
        elif evaluation.temperature is not None:
            self.matched(job, card)
        elif evaluation.measure is not None:
            self.distances(job, card)
        else:
            self.attack(job, card)

    def clean(self, job: Measurement, card: ModelCard) -> None:
        """What is right without an attack; its mean is the card's clean accuracy."""
        began = time.monotonic()
        x, y, shared = self._images(job, card)
        model = self._model(card)
        with attacking(model):
            right = predict(model, x, batch_size=_BATCH, device=self.device) == y.cpu()
        digits = "".join("01"[hit] for hit in right.tolist())
        self._keep(job, Clean(**shared, right=digits, **self._made(began)))

    def attack(self, job: Measurement, card: ModelCard) -> None:
        """The plain evaluation: records of an attack on the model of the zoo."""
        spec = self.study.attack(job, **data_fields(self.study, card))
        api.evaluate_curve(full_name(card), spec, reporter=self.reporter, command=self.command)

    def matched(self, job: Measurement, card: ModelCard) -> None:
        """The attack on the model whose logits are divided, so that it is as confident as `standard`."""
        began = time.monotonic()
        x, _, shared = self._images(job, card)
        standard = card_of(self.study, Model(STANDARD, job.model.seed))
        assert standard is not None  # the job would not have been ready
        model = self._model(card)
        with true_float32():
            target, before = mean_confidence(self._model(standard), x), mean_confidence(model, x)
            temperature = 1.0 if job.model.row == STANDARD else matching_temperature(model, x, target)
            tempered = Tempered(model, temperature)
            after = mean_confidence(tempered, x)
        spec = self.study.attack(job, **{"dataset": self.study.dataset, "image_size": x.shape[-1]})
        (first, *_) = api.evaluate_curve(tempered, spec, reporter=self.reporter, command=self.command)
        found = {"temperature": temperature, "target": target, "confidence_before": before, "confidence_after": after}
        digests = {"module_sha256": first.checkpoint_sha256, "target_sha256": standard.weights.sha256}
        self._keep(job, Matched(**shared, **found, **digests, **self._made(began)))

    def distances(self, job: Measurement, card: ModelCard) -> None:
        """Minimum-norm distances of each image."""
        began = time.monotonic()
        x, y, shared = self._images(job, card)
        norm = self.study.plan.evaluations[job.evaluation].norm
        if norm == "L1":
            raise InputError(
                f"{job.evaluation} of the plan must have the norm Linf or L2: no distances are found in L1"
            )
        self.reporter.say(f"{job.name}: distances in {norm} of {len(x):,} images")
        with true_float32():
            found = minimum_norms(self._model(card), x, y, norm=norm)
        lengths = [length if length != float("inf") else None for length in found.tolist()]
        self._keep(job, Distances(**shared, norm=norm, distances=lengths, **self._made(began)))

    def fault(self, job: Measurement, card: ModelCard) -> None:
        """AutoAttack as the published script calls it, on normalised images."""
        began = time.monotonic()
        x, y, shared = self._images(job, card)
        evaluation = self.study.plan.evaluations[job.evaluation]
        if len(evaluation.eps) != 1:
            raise InputError(f"evaluations.{job.evaluation}.eps of the plan must be one radius: it is a fault's")
        self.reporter.say(f"{job.name}: AutoAttack on {len(x):,} normalised images")
        with true_float32():
            found = published.evaluated(self._model(card), x, y, card=card, norm=evaluation.norm, eps=evaluation.eps[0])
        of = {"norm": evaluation.norm, "eps": evaluation.eps[0], "head": self._are_first(shared, card)}
        self._keep(job, Fault(**shared, **of, **found, **self._made(began)))

    def _model(self, card: ModelCard) -> nn.Module:
        return load_model(full_name(card), zoo=self.study.zoo, device=self.device).module

    def _images(self, job: Measurement, card: ModelCard) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Images and labels on the device, and what a note says of them."""
        data = _loaded(self.study.dataset, self.study.data_dir, card.architecture.image_size)
        if data.test.fingerprint != card.test_fingerprint:
            raise InputError(f"the test images of {data.name} here are not those of the card of {card.name}")
        count = self.study.scale.first.get(job.evaluation, len(data.test))
        if count > len(data.test):
            raise InputError(f"{job.evaluation} asks for {count} test images, and {data.name} has {len(data.test)}")
        test = first_examples(data.test, count)
        shared = {
            "checkpoint_sha256": card.weights.sha256,
            "dataset": data.name,
            "dataset_fingerprint": test.fingerprint,
            "n_examples": count,
        }
        return to_float(test.images.to(self.device)), test.labels.to(self.device), shared

    def _are_first(self, shared: dict[str, Any], card: ModelCard) -> bool:
        """Whether the images of a note are those that the test set begins with."""
        test = _loaded(self.study.dataset, self.study.data_dir, card.architecture.image_size).test
        return bool(test.head(shared["n_examples"]).fingerprint == shared["dataset_fingerprint"])

    def _made(self, began: float) -> dict[str, Any]:
        return conditions(seconds=time.monotonic() - began, device=device_name(self.device), command=self.command)

    def _keep(self, job: Measurement, note: Any) -> None:
        write_record(self.study.notes(job), note)


def data_fields(study: Study, card: ModelCard) -> dict[str, Any]:
    """What an evaluation has to be told of the data: a card names no file."""
    if api.is_named_dataset(card.dataset):
        return {}
    return {"dataset": study.dataset, "dataset_name": card.dataset}


@lru_cache(maxsize=1)
def _loaded(dataset: str, data_dir: Path, image_size: int) -> Dataset:
    return load_dataset(dataset, data_dir=data_dir, image_size=image_size, test_only=True)
