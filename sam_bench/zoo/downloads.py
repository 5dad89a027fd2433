"""RobustBench's checkpoints on disk: whole or not there, with their checksum once it is known.

RobustBench writes a download where the checkpoint belongs, and takes whatever lies there for whole. So a download
goes into a folder of its own, and is moved when RobustBench has loaded it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sam_bench.errors import SamBenchError
from sam_bench.locks import claimed
from sam_bench.records import sha256_file, write_atomic
from sam_bench.zoo.checkpoint import what_is_wrong

if TYPE_CHECKING:
    import requests

MIRROR_VARIABLE = "SAM_BENCH_MIRROR"
_TIMEOUT = 30.0  # seconds without an answer
_BLOCK = 1 << 16


@contextmanager
def downloading(folder: Path, dataset: str, threat: str, files: list[str]) -> Iterator[Path]:
    """The folder to give to RobustBench in this block: the cache if the files are there, else one for the download.

    Files of the mirror, where one is named, are fetched first. At the block's end the new files are moved into the
    cache with their checksums; if the block fails, they are deleted, and so is what the mirror sent.

    Args:
        folder: The cache; files lie in `<dataset>/<threat>` below it.
        dataset: RobustBench's name.
        threat: As RobustBench writes it.
        files: What the checkpoint consists of.

    Raises:
        SamBenchError: A file in the cache is no checkpoint, or not the one that was loaded before.
    """
    final = folder / dataset / threat
    sent = [final / name for name in files if _from_mirror(final / name, f"{dataset}/{threat}/{name}")]
    there = [final / name for name in files if (final / name).is_file()]
    for path in there:
        _check(path)
    if len(there) == len(files):
        try:
            yield folder
        except Exception:
            for path in sent:  # an answer without a length may have been cut short
                path.unlink(missing_ok=True)
            raise
        _remember(there)
        return
    final.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        staged = Path(scratch, dataset, threat)
        staged.mkdir(parents=True)
        for path in there:  # a part of an ensemble
            shutil.copy2(path, staged / path.name)
        try:
            yield Path(scratch)
        except Exception as error:
            _explain(staged, final, error)
            raise
        new = [path for path in sorted(staged.iterdir()) if path.name in files]
        _remember([path.replace(final / path.name) for path in new])


def _explain(staged: Path, final: Path, error: Exception) -> None:
    for path in sorted(staged.iterdir()):
        wrong = what_is_wrong(path) if path.is_file() else None
        if wrong is not None:
            raise SamBenchError(
                f"RobustBench's download of {path.name} failed: what came {wrong} (it has been deleted here). "
                f"The file can also be fetched by hand and put at {final / path.name}"
            ) from error


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _check(path: Path) -> None:
    wrong = what_is_wrong(path)
    if wrong is not None:
        raise SamBenchError(f"{path} {wrong}")
    try:
        known = _sum_of(path).read_text(encoding="utf-8").split()[0]
    except (OSError, ValueError, IndexError):
        return
    found = sha256_file(path)
    if found != known:
        raise SamBenchError(
            f"{path} is not the file that was loaded before: SHA-256 expected {known}, found {found}; delete it to "
            f"download it again, or delete {_sum_of(path).name} if the new one is meant"
        )


def _remember(paths: list[Path]) -> None:
    """Keep the checksums of files that RobustBench could load, in the form that `sha256sum` reads."""
    for path in paths:
        if not _sum_of(path).exists() and os.access(path.parent, os.W_OK):
            write_atomic(_sum_of(path), f"{sha256_file(path)}  {path.name}\n")


def _from_mirror(path: Path, name: str) -> bool:
    """Fetch a file that is not there from the mirror; a fetch that was cut short is continued the next time.

    Returns:
        Whether this process fetched it.
    """
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror or path.exists():
        return False
    url = f"{mirror.rstrip('/')}/{name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path.parent):
            if path.exists():  # another process has fetched it while this one waited
                return False
            _fetch(url, path)
            return path.exists()
    except OSError as error:  # those of requests, too
        raise SamBenchError(
            f"cannot fetch {url}: {str(error)[:200]}; asked again, it goes on where it was ({MIRROR_VARIABLE} names "
            "the mirror)"
        ) from error


def _fetch(url: str, path: Path) -> None:
    import requests

    partial, version = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.version")
    begun = partial.stat().st_size if partial.exists() else 0
    # Compressed on the way, it would have another length than is announced.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as answer:
        if answer.status_code == 404:
            return  # RobustBench's own place may have it
        total = _total(answer)
        if begun and answer.status_code == 416:
            if total != begun:
                partial.unlink()
                return _fetch(url, path)
        elif begun and answer.status_code == 206 and not _is_of(answer, version):
            partial.unlink()
            return _fetch(url, path)
        else:
            answer.raise_for_status()
            with partial.open("ab" if answer.status_code == 206 else "wb") as file:
                if answer.status_code == 200:
                    version.write_text(_version(answer), encoding="utf-8")
                for block in answer.iter_content(_BLOCK):
                    file.write(block)
    size = partial.stat().st_size
    if total not in (None, size):
        raise OSError(f"{size:,} bytes came, not {total:,}")
    wrong = what_is_wrong(partial)
    if wrong is not None:
        partial.unlink()
        raise SamBenchError(f"{url} {wrong}")
    partial.replace(path)
    version.unlink(missing_ok=True)


def _version(answer: requests.Response) -> str:
    """What tells a file from another one of the same name, where the answer says it."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")


def _is_of(answer: requests.Response, version: Path) -> bool:
    """Whether an answer is the rest of the very file whose version was written down."""
    return version.exists() and _version(answer) == version.read_text(encoding="utf-8") != ""


def _total(answer: requests.Response) -> int | None:
    """The whole file's length, where the answer says it."""
    stated = answer.headers.get("Content-Length" if answer.status_code == 200 else "Content-Range", "")
    length = stated.rpartition("/")[2]
    return int(length) if length.isdecimal() else None
