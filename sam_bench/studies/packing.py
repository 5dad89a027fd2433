"""Cards, records and notes of a study in one small file, so that they can be committed; weights stay out."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam_bench.errors import InputError
from sam_bench.records import write_atomic
from sam_bench.studies.opening import DECISIONS

ARCHIVE = "results.tar.xz"
_PATTERNS = (DECISIONS, "model_zoo/*/*/*.json", "evaluations/*/*.json", "measurements/*/*.json")


def pack(folder: Path) -> Path:
    """Write `results.tar.xz` of a study's folder into it; the same files give the same bytes.

    Raises:
        InputError: There is nothing to pack.
    """
    files = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern) if not path.name.startswith("."))
    if not any(path.parent != folder for path in files):
        raise InputError(f"{folder} holds no card, record or note that could be packed")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9) as archive:
        for path in files:
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    write_atomic(folder / ARCHIVE, content.getvalue())
    return folder / ARCHIVE


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """A folder with the study's files: the folder itself, or what its `results.tar.xz` holds if they are packed.

    Raises:
        InputError: The archive is damaged.
    """
    archive = folder / ARCHIVE
    if (folder / "model_zoo").exists() or not archive.exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        _extract(archive, Path(temporary))
        yield Path(temporary)


def unpack(folder: Path) -> None:
    """Put what `results.tar.xz` holds into its folder, if that has no models yet. So a packed study can go on.

    Raises:
        InputError: The archive is damaged.
    """
    with unpacked(folder) as there:
        if there != folder:
            shutil.copytree(there, folder, dirs_exist_ok=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"cannot read {archive}: {error}") from error
