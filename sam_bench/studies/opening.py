"""A study's folder is opened: what holds for all of its runs is decided once, and kept there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sam_bench.api import is_named_dataset
from sam_bench.api.record_files import check_folder
from sam_bench.data import known_name, name_of
from sam_bench.device import choose_device, choose_precision
from sam_bench.errors import InputError
from sam_bench.records import write_atomic
from sam_bench.studies.jobs import Study
from sam_bench.studies.plan import PlanFile
from sam_bench.zoo import Zoo

DECISIONS = "study.json"


def open_study(
    file: PlanFile,
    scale: str,
    *,
    folder: Path,
    dataset: str | None = None,
    precision: str = "auto",
    device: str = "auto",
    data_dir: Path = Path("data"),
    read_only: bool = False,
) -> Study:
    """The study of a plan at a scale, in its folder.

    Args:
        file: The plan.
        scale: A name of its scales.
        folder: Of the study; it is made if it is not there.
        dataset: A file or folder, where the scale's data set is one's own; or another data set than the scale's.
        precision: bf16, fp32, or auto: what the folder has, else what the device is good at.
        device: Where models are trained and measured.
        data_dir: Where downloads are kept.
        read_only: Only what is there is wanted: no data are needed, and nothing is written.

    Raises:
        InputError: The scale is unknown, a data set of one's own is not given, or the folder holds another study.
    """
    planned = file.plan.scale(scale).dataset
    kept = _kept(folder)
    if not read_only:
        check_folder(folder, what="nothing")
    if dataset is None and not read_only:
        refuse_unknown_data(planned, scale)
    called = name_of(dataset) if dataset else kept.get("dataset", planned)
    precision = _precision(precision, kept, folder, device)
    decided = {"scale": scale, "dataset": called, "precision": precision}
    for name, value in decided.items():
        if kept.get(name, value) != value:
            raise InputError(
                f"{folder} holds the study with {name} {kept[name]}, not {value}: give another `output`, or the same"
            )
    if not kept and not read_only:
        write_atomic(folder / DECISIONS, json.dumps({**decided, "plan_sha256": file.sha256}, indent=2) + "\n")
    return Study(
        file=file,
        scale_name=scale,
        folder=folder,
        dataset=dataset or called,
        dataset_name=called,
        precision=precision,
        device=device,
        data_dir=data_dir,
    )


def refuse_unknown_data(dataset: str, scale: str) -> None:
    """Refuse a scale's data set that is a file of the user's own and was not given.

    Raises:
        InputError: The data set cannot be loaded by this name.
    """
    if not is_named_dataset(dataset):
        known = "or another data set, such as cifar10, "
        raise InputError(f"scale {scale} is on {dataset}: give its FILE.npz or FOLDER, {known}with `dataset`")


def refuse_missing_data(dataset: str | None) -> None:
    """Refuse data that are not there, before a folder is made for them.

    Raises:
        InputError: It is neither known by name, nor a file or folder.
    """
    if dataset is not None and known_name(dataset) is None and not Path(dataset).expanduser().exists():
        raise InputError("is no file, folder or known name", field="dataset", value=dataset)


def plan_of(folder: Path) -> str | None:
    """SHA-256 of the plan with which the folder was begun."""
    return _kept(folder).get("plan_sha256")


def _kept(folder: Path) -> dict[str, Any]:
    path = folder / DECISIONS
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(kept, dict):
        raise InputError(f"{path} must hold what was decided for the study, as an object")
    return kept


def _precision(asked: str, kept: dict[str, Any], folder: Path, device: str) -> str:
    """The precision of all trainings: decided before, or that of the models that are there, or the device's."""
    if asked != "auto":
        return asked
    if "precision" in kept:
        return str(kept["precision"])
    there = {card.precision for card in Zoo(folder / "model_zoo").cards()}
    if len(there) > 1:
        raise InputError(f"the models in {folder} have several precisions; say which with `precision`")
    return there.pop() if there else choose_precision("auto", choose_device(device)[0])[0]
