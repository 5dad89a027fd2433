"""CIFAR-10, CIFAR-100 and SVHN through torchvision, downloaded on first use.

A download goes into a temporary folder. It is moved to its destination when it is whole and its
checksum is right, so that nothing half-written ever has a valid name.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_bench.data.splits import Dataset, Split
from sam_bench.errors import SamBenchError
from sam_bench.records import RobustBenchDataset

_STALLED_AFTER_SECONDS = 60.0


def load_cifar10(data_dir: Path, test_only: bool) -> Dataset:
    """CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)."""
    from torchvision.datasets import CIFAR10

    return _load_cifar(CIFAR10, "cifar10", data_dir, test_only, "cifar10")


def load_cifar100(data_dir: Path, test_only: bool) -> Dataset:
    """CIFAR-100 with its 100 fine classes (A. Krizhevsky, 2009)."""
    from torchvision.datasets import CIFAR100

    return _load_cifar(CIFAR100, "cifar100", data_dir, test_only, "cifar100")


def _load_cifar(kind: Any, name: str, data_dir: Path, test_only: bool, robustbench: RobustBenchDataset) -> Dataset:
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

    folder, archive = data_dir / kind.base_folder, data_dir / kind.filename
    remedy = f"put {kind.filename} (from {kind.url}) into {data_dir}, or pass your own images as FILE.npz"

    if not folder.exists():
        if archive.exists() and not check_integrity(archive, kind.tgz_md5):
            raise _damaged(name, archive, f"delete it to download it again, or {remedy}")

        def fetch(scratch: Path) -> None:
            source = archive
            if not archive.exists():
                download_url(kind.url, scratch, kind.filename, kind.tgz_md5)
                source = scratch / kind.filename
            extract_archive(str(source), str(scratch))
            _move(scratch / kind.base_folder, folder)

        _obtain(name, data_dir, fetch, remedy)
    for file, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
        if not check_integrity(folder / file, md5):
            raise _damaged(name, folder / file, f"delete {folder} to download it again, or {remedy}")

    def split(part: Any) -> Split:
        images = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
        return Split(images, torch.tensor(part.targets, dtype=torch.int64))

    test = kind(str(data_dir), train=False)
    return Dataset(
        name=name,
        train=None if test_only else split(kind(str(data_dir), train=True)),
        test=split(test),
        classes=tuple(test.classes),
        robustbench=robustbench,
        mirrors=True,
    )


def load_svhn(data_dir: Path, test_only: bool) -> Dataset:
    """SVHN, cropped digits (Y. Netzer et al., Reading Digits in Natural Images, 2011)."""
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import check_integrity, download_url

    wanted = [SVHN.split_list[part] for part in (["test"] if test_only else ["train", "test"])]
    files = " and ".join(f"{file} (from {url})" for url, file, _ in wanted)
    remedy = f"put {files} into {data_dir}, or pass your own images as FILE.npz"

    for url, file, md5 in wanted:

        def fetch(scratch: Path, url: str = url, file: str = file, md5: str = md5) -> None:
            download_url(url, scratch, file, md5)
            _move(scratch / file, data_dir / file)

        if not (data_dir / file).exists():
            _obtain("svhn", data_dir, fetch, remedy)
        if not check_integrity(data_dir / file, md5):
            raise _damaged("svhn", data_dir / file, f"delete it to download it again, or {remedy}")

    def split(part: str) -> Split:
        loaded = SVHN(str(data_dir), split=part)
        return Split(torch.from_numpy(np.ascontiguousarray(loaded.data)), torch.from_numpy(loaded.labels))

    return Dataset(
        name="svhn",
        train=None if test_only else split("train"),
        test=split("test"),
        classes=tuple(str(digit) for digit in range(10)),
        mirrors=False,
    )


def _obtain(name: str, data_dir: Path, fetch: Callable[[Path], None], remedy: str) -> None:
    """Run `fetch` on a temporary folder inside `data_dir`; say what to do when it fails."""
    made = not data_dir.exists()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{name}-", suffix=".tmp") as scratch, _downloading():
            fetch(Path(scratch))
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        if made:
            with contextlib.suppress(OSError):  # not empty, or never made
                data_dir.rmdir()
        raise SamBenchError(
            f"data set {name!r} could not be brought into {data_dir} ({_reason(error)}); {remedy}"
        ) from error


@contextlib.contextmanager
def _downloading() -> Iterator[None]:
    """Keep stdout for results (some torchvision versions print there), and give up on a stalled connection."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_AFTER_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _move(source: Path, destination: Path) -> None:
    try:
        source.replace(destination)
    except OSError:
        if not destination.exists():  # otherwise another process was faster; its files are checked like ours
            raise


def _damaged(name: str, path: Path, remedy: str) -> SamBenchError:
    what = "is cut off or altered (its MD5 checksum is not the published one)" if path.exists() else "is missing"
    return SamBenchError(f"data set {name!r}: {path} {what}; {remedy}")


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(reason) or type(error).__name__
