"""Evaluation: one attack, at one radius, on one model, becomes a record with a verdict for every example."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone

import torch

from sam_bench.attacks import Attack, Progress
from sam_bench.data import Split, to_float
from sam_bench.device import device_name, package_versions
from sam_bench.errors import InputError
from sam_bench.models import check_model
from sam_bench.modes import attacking
from sam_bench.progress import Reporter, Stage
from sam_bench.records import EvaluationRecord, Norm, Radius, accuracies
from sam_bench.zoo import LoadedModel


def run_attack(
    model: LoadedModel,
    test: Split,
    *,
    dataset: str,
    attack: Attack,
    norm: Norm,
    eps: Radius,
    seed: int,
    batch_size: int,
    device: torch.device,
    reporter: Reporter,
    spelled: str,
    command: str = "",
) -> EvaluationRecord:
    """Attack a model on every example of a split.

    Args:
        model: What `zoo.load_model` returned; on `device`.
        test: The examples, in the order of the data set.
        dataset: Name of the data set for the record.
        attack: What to run.
        norm: Norm of the ball.
        eps: Its radius for inputs in [0, 1], as written.
        seed: Decides every random draw.
        batch_size: Examples at a time.
        device: Where the model is.
        reporter: Where progress goes.
        spelled: MODEL as the user gave it.
        command: The command line, for the record.

    Raises:
        InputError: The model does not fit the data: wrong input shape or number of classes.
        SamBenchError: The model returns NaN or infinite logits.
    """
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
    with ExitStack() as stages:
        result = attack.run(
            model.module,
            to_float(test.images.cpu()),
            test.labels.cpu(),
            norm=norm,
            eps=float(eps),
            seed=seed,
            batch_size=batch_size,
            device=device,
            progress=_displayed(reporter, stages, len(test)),
        )
    return EvaluationRecord(
        model=spelled,
        checkpoint_sha256=model.sha256,
        dataset=dataset,
        dataset_fingerprint=test.fingerprint,
        attack=attack.method,
        version=str(attack.model_dump().get("version", "")),
        engine=result.engine,
        settings=attack.model_dump(mode="json", exclude={"version"}, exclude_none=True),
        norm=norm,
        eps=eps,
        eps_float=float(eps),
        seed=seed,
        batch_size=batch_size,
        n_examples=len(test),
        warnings=result.warnings,
        seconds=result.seconds,
        device=device_name(device),
        packages=package_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        verdicts=result.verdicts,
        **accuracies(result.verdicts, result.attacks),
    )


def _displayed(reporter: Reporter, stages: ExitStack, total: int) -> Callable[[Progress], None]:
    """A progress callback that opens a stage for each attack as it begins."""
    shown: dict[str, Stage] = {}

    def show(progress: Progress) -> None:
        if progress.stage not in shown:
            stages.close()
            shown[progress.stage] = stages.enter_context(reporter.stage(progress.stage, progress.total))
        robust = "" if progress.robust is None else f"{progress.robust}/{total} robust"
        shown[progress.stage].update(progress.done, robust)

    return show


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} channel{'s' if shape[0] > 1 else ''} of {shape[1]}x{shape[2]}"
