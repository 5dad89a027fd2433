"""The file of an evaluation's adversarial examples, beside its record."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from sam_bench.evaluation.problem import Problem
from sam_bench.records import atomic_file


def write_adversarial(path: Path, found: Mapping[int, Tensor], problem: Problem) -> None:
    """Write adversarial examples: `index` int64 [K], places in the data set, and `x_adv` float32 [K, C, H, W].

    Examples that were carried over from a smaller ball are in that ball's file.

    Args:
        path: The file, a NumPy archive.
        found: Place in the data set to the adversarial example.
        problem: What they are of; its names are written along as strings.
    """
    said: dict[str, Any] = {name: np.array(value) for name, value in _about(problem).items()}
    said["index"] = np.array(sorted(found), dtype=np.int64)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in said.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
        with archive.open("x_adv.npy", "w", force_zip64=True) as member:
            _write_stack(member, [found[place] for place in sorted(found)])


def has_adversarial(path: Path, problem: Problem) -> bool:
    """Whether a file holds the adversarial examples of this evaluation."""
    try:
        with np.load(path) as bundle:
            there = {name: str(bundle[name]) for name in bundle.files if name not in ("index", "x_adv")}
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return there == _about(problem)


def _about(problem: Problem) -> dict[str, str]:
    identity = problem.identity()
    names = ("attack", "checkpoint_sha256", "dataset_fingerprint", "norm", "eps")
    return {name: str(identity[name]) for name in names}


def _write_stack(file: IO[bytes], images: Sequence[Tensor]) -> None:
    """Images as one array in NumPy's format, one by one: together they may take half of the memory."""
    shape = (len(images), *images[0].shape) if images else (0,)
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    for image in images:
        file.write(image.numpy().astype("<f4").tobytes())
