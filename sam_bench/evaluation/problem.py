"""What is evaluated: one attack at one radius on one model, and what makes two evaluations the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sam_bench.attacks import Attack
from sam_bench.attacks.events import Examples
from sam_bench.errors import InputError
from sam_bench.models import check_input_gradient, check_model
from sam_bench.modes import attacking
from sam_bench.perturb.ball import Ball
from sam_bench.records import Norm, Radius, sample_key
from sam_bench.zoo import LoadedModel

UNASKED = -1
"""Attacks survived by an example of which it is not known whether the model gets it right without one."""


class Tested(Protocol):
    """The examples of an evaluation: a `Split`, or inputs that are no bytes.

    Attributes:
        images: uint8 [N, C, H, W], or float32 in [0, 1].
        labels: int64 [N].
        fingerprint: SHA-256 of both.
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Problem:
    """One attack at one radius on one model.

    Attributes:
        model: What `zoo.load_model` returned.
        test: The examples, in the order of the data set.
        dataset: Name of the data set for the record.
        attack: What to run.
        norm: Norm of the ball.
        eps: Its radius for inputs in [0, 1], as written.
        seed: Decides every random number.
        batch_size: Examples at a time.
        carried: Examples that the same run broke in a smaller ball: place in the data set to the attack's name.
        save_adversarial: Keep the adversarial examples, too.
        spelled: MODEL as the user gave it, for the record.
        command: The command line, for the record.
    """

    model: LoadedModel
    test: Tested
    dataset: str
    attack: Attack
    norm: Norm
    eps: Radius
    seed: int
    batch_size: int
    carried: Mapping[int, str] = field(default_factory=dict)
    save_adversarial: bool = False
    spelled: str = ""
    command: str = ""

    @property
    def ball(self) -> Ball:
        """What the attack may do to an input."""
        return Ball(norm=self.norm, eps=float(self.eps))

    @property
    def key(self) -> str:
        """A digest of the model, the images and the ball: what the evaluation is of, and not how it is done."""
        model = self.model
        return sample_key(model.sha256, model.architecture_sha256, self.test.fingerprint, self.norm, self.eps)

    def identity(self) -> dict[str, Any]:
        """What has to be the same for verdicts to belong together, as JSON has it.

        The first few names are those of a record's fields, so that a record is compared by them.
        """
        attack = self.attack
        decides: dict[str, Any] = {
            "n_examples": len(self.test),
            "checkpoint_sha256": self.model.sha256,
            "architecture_sha256": self.model.architecture_sha256,
            "dataset": self.dataset,
            "dataset_fingerprint": self.test.fingerprint,
            "attack": attack.method,
            "version": version_of(attack),
            "engine": engine_text(attack.implementation, attack.engine_revision),
            "settings": settings_of(attack),
            "norm": self.norm,
            "eps": str(self.eps),
            "seed": self.seed,
        }
        if attack.per_example:
            return decides
        # Which examples share a batch decides, too: how many there are in one, and which are left out.
        text = ",".join(f"{place}:{self.carried[place]}" for place in sorted(self.carried))
        which = hashlib.sha256(text.encode()).hexdigest()
        return decides | {"batch_size": self.batch_size, "carried": len(self.carried), "carried_sha256": which}

    def check(self) -> None:
        """Refuse what cannot work, before anything is attacked.

        Raises:
            InputError: The model does not fit the data (wrong input shape or number of classes) or the attack.
            SamBenchError: The model returns NaN or infinite logits.
        """
        model, shape = self.model, check_fit(self.model, self.test, self.dataset)
        name = f"model {model.name}"
        if self.attack.needs_gradients:
            check_input_gradient(model.module, shape, attack=self.attack.method, name=name)
        self.attack.check_model(self.norm, classes=model.num_classes, shape=shape)

    def stored(self, todo: Mapping[int, int]) -> Examples:
        """Examples with `x` as it is stored; bytes are a quarter of what the inputs take to send.

        Args:
            todo: As for `Executor.run`.
        """
        index = torch.tensor(list(todo), dtype=torch.int64)
        survived = torch.tensor(list(todo.values()), dtype=torch.int64)
        images, labels = self.test.images.cpu()[index], self.test.labels.cpu()[index]
        return Examples(images, labels, index, survived.clamp(min=0), right=survived != UNASKED)


def check_fit(model: LoadedModel, test: Tested, dataset: str) -> tuple[int, int, int]:
    """Refuse a model that cannot be run on the data.

    Args:
        model: In eval mode.
        test: The examples.
        dataset: Their name, for messages.

    Returns:
        The shape of an image, (C, H, W).

    Raises:
        InputError: There are no examples, or the model takes other images or knows fewer classes.
        SamBenchError: It returns NaN or infinite logits.
    """
    if not len(test):
        raise InputError(f"data set {dataset} has no test images: there is nothing to attack")
    shape = (test.images.shape[1], test.images.shape[2], test.images.shape[3])
    if model.input_shape is not None and model.input_shape != shape:
        raise InputError(
            f"model {model.name} takes images of {_size(model.input_shape)}, but data set {dataset} has {_size(shape)}"
        )
    highest = int(test.labels.max())
    if highest >= model.num_classes:
        raise InputError(
            f"model {model.name} knows {model.num_classes} classes, but data set {dataset} has labels up to {highest}"
        )
    with attacking(model.module):
        check_model(model.module, num_classes=model.num_classes, input_shape=shape, name=f"model {model.name}")
    return shape


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two evaluations differ: name to what each has. A name that one of them lacks is None there.

    Args:
        there: What is on disk.
        here: The `identity` of what is asked for.
    """
    one, other = (json.loads(json.dumps(each, default=str)) for each in (there, here))
    if re.match(r"sam-bench \d", str(one.get("engine"))):
        one["engine"] = "sam-bench revision 1"  # written by a version that named itself
    pairs = {name: (one.get(name), other.get(name)) for name in [*other, *(name for name in one if name not in other)]}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def engine_text(implementation: str, revision: int | None) -> str:
    """What must be the same of an engine for verdicts to belong together: our revision, or a package's version."""
    return implementation if revision is None else f"sam-bench revision {revision}"


def in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """The first difference, for a message."""
    name, (there, here) = next(iter(differing.items()))
    return f"{name} = {there} and this command gives {here}"


def version_of(attack: Attack) -> str:
    """Which version of the attack runs, as a record has it; '' where there is one."""
    return str(attack.model_dump().get("version", ""))


def settings_of(attack: Attack) -> dict[str, Any]:
    """An attack's settings as a record has them: those that say something, the version apart."""
    given = attack.model_dump(mode="json", exclude={"version"}, exclude_none=True)
    return {key: value for key, value in given.items() if value != []}


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} channel{'s' if shape[0] > 1 else ''} of {shape[1]}x{shape[2]}"
