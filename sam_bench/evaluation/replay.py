"""Replay: stored adversarial examples are held against the model, so that nobody has to believe a record's verdicts.

What an example needs to count as not robust: the model gets it wrong as it is, or a stored example lies in ball and
box around it and the model gets that wrong, both in float32. So the share of the others is an upper bound on the
robust accuracy, whoever made the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam_bench.attacks.events import Examples
from sam_bench.attacks.verify import Verifier
from sam_bench.data import Split, first_examples, to_float
from sam_bench.errors import InputError
from sam_bench.evaluation.adversarial import AdversarialExamples
from sam_bench.modes import attacking
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST, EvaluationRecord

_BATCH = 256


@dataclass(frozen=True)
class Block:
    """A few test examples, and what a stored adversarial example does to them.

    Attributes:
        places: Their places in the data set.
        right: Which of them the model gets right as they are, bool [B].
        stored: Which of them have a stored adversarial example, bool [B].
        inside: Which of those lie in ball and box, bool [B].
        fooled: Which of those the model gets wrong, bool [B].
        nan: The model answered NaN.
    """

    places: range
    right: Tensor
    stored: Tensor
    inside: Tensor
    fooled: Tensor
    nan: bool


def replay(
    module: nn.Module,
    test: Split,
    record: EvaluationRecord,
    stored: Mapping[int, NDArray[Any]],
    *,
    device: torch.device,
    batch_size: int = _BATCH,
) -> float:
    """The upper bound on the robust accuracy that the stored examples prove.

    Another device may round otherwise: one answer in 1,000 may differ from the record's, and counts against it.

    Args:
        module: The record's model.
        test: The test examples of the record, and no others.
        record: What is claimed.
        stored: Place in the data set to an adversarial example, float32 in [0, 1] or uint8.
        device: Where the model is.
        batch_size: Examples at a time.

    Raises:
        InputError: An example that the record calls misclassified is not, or one that it calls broken is not shown to
            be; says how many and names the first.
    """
    wrong: dict[str, list[int]] = {}
    shown = 0
    for block in _blocks(module, test, Ball(record.norm, float(record.eps)), stored, device, batch_size):
        if block.nan:
            raise InputError("the model answers NaN on some of the examples, which is no answer")
        for row, place in enumerate(block.places):
            right, fooled = bool(block.right[row]), bool(block.inside[row] & block.fooled[row])
            shown += not right or fooled
            problem = _problem(record.verdicts[place], block, row)
            if problem:
                wrong.setdefault(problem, []).append(place)
    _refuse(wrong, record)
    return 1 - shown / record.n_examples


_DIFFERS = "the model classifies otherwise than the record says"
_NOT_FOOLED = "the stored adversarial example does not fool the model"


def _problem(verdict: str, block: Block, row: int) -> str:
    """What is wrong with a verdict; '' where nothing is."""
    if bool(block.right[row]) != (verdict != MISCLASSIFIED):
        return _DIFFERS
    if verdict in (ROBUST, MISCLASSIFIED):
        return ""
    if not block.stored[row]:
        return "there is no adversarial example although the record says that it is broken"
    if not block.inside[row]:
        return "the stored adversarial example lies outside ball or box"
    return "" if block.fooled[row] else _NOT_FOOLED


def _refuse(wrong: Mapping[str, list[int]], record: EvaluationRecord) -> None:
    rounding = sum(len(wrong.get(problem, ())) for problem in (_DIFFERS, _NOT_FOOLED))
    for problem, places in wrong.items():
        if problem not in (_DIFFERS, _NOT_FOOLED) or rounding > record.n_examples // 1000:
            raise InputError(
                f"at {len(places):,} of {record.n_examples:,} test examples, the first {places[0]}, {problem}"
            )


def _blocks(
    module: nn.Module,
    test: Split,
    ball: Ball,
    stored: Mapping[int, NDArray[Any]],
    device: torch.device,
    batch_size: int,
) -> Iterator[Block]:
    with attacking(module):
        for first in range(0, len(test), batch_size):
            places = range(first, min(first + batch_size, len(test)))
            part = test.select(torch.arange(first, places.stop))
            examples = Examples.of(to_float(part.images).cpu(), part.labels.cpu())
            verifier = Verifier(module, ball=ball, batch_size=batch_size, device=device)
            right = verifier.clean(examples)
            found = torch.tensor([place in stored for place in places])
            x_adv = examples.x.clone()
            for row in found.nonzero().flatten().tolist():
                x_adv[row] = as_input(stored[places[row]])
            inside = found & ball.contains(x_adv, examples.x)
            rows = (inside & right).nonzero().flatten()
            fooled = torch.zeros_like(right)
            if len(rows):
                # The verifier counts the examples that the model gets right.
                fooled[rows] = verifier.check((right.cumsum(0) - 1)[rows], x_adv[rows])
            yield Block(places, right, found, inside, fooled, nan=bool(verifier.warnings))


def tested_by(record: EvaluationRecord, test: Split) -> Split:
    """The test examples that a record is over, of all of its data set.

    Raises:
        InputError: The record is over others.
    """
    examples = first_examples(test, record.n_examples)
    if examples.fingerprint != record.dataset_fingerprint:
        raise InputError(
            f"the record's {record.n_examples:,} test examples have fingerprint {record.dataset_fingerprint}, the "
            f"first of {record.dataset} {examples.fingerprint}: evaluate it on {record.dataset}"
        )
    return examples


def as_input(image: NDArray[Any]) -> Tensor:
    """A stored example as the model takes it: float32 [C, H, W]."""
    tensor = torch.from_numpy(image.copy())
    return to_float(tensor) if tensor.dtype == torch.uint8 else tensor


def compact(
    module: nn.Module,
    test: Split,
    record: EvaluationRecord,
    examples: AdversarialExamples,
    *,
    device: torch.device,
) -> AdversarialExamples:
    """The same adversarial examples, those as 8-bit images that stay adversarial: a quarter of the bytes, or less.

    Args:
        module: The record's model.
        test: The test examples of the record.
        record: Says the ball.
        examples: As an evaluation kept them.
        device: Where the model is.
    """
    rounded = {place: _eight_bits(image) for place, image in examples.x_adv.items()}
    kept = dict(examples.x_adv)
    for block in _blocks(module, test, Ball(record.norm, float(record.eps)), rounded, device, _BATCH):
        for row in (block.inside & block.fooled).nonzero().flatten().tolist():
            kept[block.places[row]] = rounded[block.places[row]]
    return replace(examples, x_adv=kept)


def _eight_bits(image: NDArray[Any]) -> NDArray[Any]:
    if image.dtype == "uint8":
        return image
    rounded: NDArray[Any] = (image.clip(0, 1) * 255).round().astype("uint8")  # NaN becomes anything, and is checked
    return rounded
