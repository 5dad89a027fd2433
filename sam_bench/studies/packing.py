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
from sam_bench.locks import claimed
from sam_bench.records import write_atomic
from sam_bench.studies.opening import DECISIONS

ARCHIVE = "results.tar.xz"
_ZOO = "model_zoo"
_PATTERNS = (DECISIONS, f"{_ZOO}/*/*/*.json", "evaluations/*/*.json", "measurements/*/*.json")


def pack(folder: Path) -> Path:
    """Write `results.tar.xz` of a study's folder into it; the same files give the same bytes.

    Where the folder has nothing but the archive, that stays as it is.

    Raises:
        InputError: There is nothing to pack, or the archive that is there has files that the folder lacks.
    """
    path = folder / ARCHIVE
    if path.exists():
        if not _is_unpacked(folder):
            return path
        _refuse_to_lose(path)
    files = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern) if not path.name.startswith("."))
    if not any(path.parent != folder for path in files):
        raise InputError(f"{folder} holds no card, record or note that could be packed")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9) as archive:
        for each in files:
            entry = tarfile.TarInfo(each.relative_to(folder).as_posix())
            entry.size = each.stat().st_size
            with each.open("rb") as file:
                archive.addfile(entry, file)
    write_atomic(path, content.getvalue())
    return path


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """A folder with the study's files: the folder itself, or what its `results.tar.xz` holds if they are packed.

    Raises:
        InputError: The archive is damaged.
    """
    archive = folder / ARCHIVE
    if _is_unpacked(folder) or not archive.exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        with _opened(archive) as packed:
            packed.extractall(temporary, filter="data")
        yield Path(temporary)


def unpack(folder: Path) -> None:
    """Put what `results.tar.xz` holds into its folder, if that has no models yet. So a packed study can go on.

    Raises:
        InputError: The archive is damaged.
    """
    if _is_unpacked(folder) or not (folder / ARCHIVE).exists():
        return
    with claimed(folder / "locks" / "unpack"), unpacked(folder) as there:
        if there == folder:
            return  # another process was first
        shutil.copytree(there, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_ZOO))
        # A zoo says that everything is unpacked. So it comes last, and whole.
        partial = folder / f".{_ZOO}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(there / _ZOO, partial)
        partial.replace(folder / _ZOO)


def _is_unpacked(folder: Path) -> bool:
    zoo = folder / _ZOO
    return zoo.is_dir() and any(zoo.iterdir())


def _refuse_to_lose(archive: Path) -> None:
    """Refuse to write an archive anew without files that it has."""
    with _opened(archive) as packed:
        lost = [name for name in packed.getnames() if not (archive.parent / name).exists()]
    if lost:
        raise InputError(
            f"{archive} has {len(lost)} files that its folder lacks, such as {lost[0]}: put them there, or take the "
            "archive away"
        )


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive) as packed:
            yield packed
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"cannot read {archive}: {error}") from error
