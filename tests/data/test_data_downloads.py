"""CIFAR-10, CIFAR-100 and SVHN: files in each one's own format, read through the real torchvision classes.

The files are small, so their checksums stand in for the published ones; a local web server stands in
for the publishers'. Everything else is what a user runs.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from sam_bench.data import load_dataset
from sam_bench.data.torchvision_sets import _obtain
from sam_bench.errors import InputError, SamBenchError

RNG = np.random.RandomState(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def images(count: int) -> np.ndarray:
    return RNG.randint(0, 256, (count, 3, 32, 32)).astype(np.uint8)


class Published:
    """What a publisher offers: the files, and the images and labels inside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.x: dict[str, np.ndarray] = {}
        self.y: dict[str, list[int]] = {}


def publish_cifar(kind: Any, folder: Path, patch: pytest.MonkeyPatch) -> Published:
    """Write batches and archive in CIFAR's format and make their checksums the expected ones."""
    published = Published(folder)
    hundred = kind is CIFAR100
    inside = folder / "inside" / kind.base_folder
    inside.mkdir(parents=True)
    lists = {}
    for part, entries in (("train", kind.train_list), ("test", kind.test_list)):
        batches, checksums = [], []
        for file, _ in entries:
            x, y = images(8), RNG.randint(0, 100 if hundred else 10, 8).tolist()
            labels = {"fine_labels": y, "coarse_labels": [0] * 8} if hundred else {"labels": y}
            (inside / file).write_bytes(pickle.dumps({"data": x.reshape(8, -1), **labels}))
            batches.append((x, y))
            checksums.append([file, md5(inside / file)])
        lists[part] = checksums
        published.x[part] = np.concatenate([x for x, _ in batches])
        published.y[part] = [label for _, y in batches for label in y]
    names = [f"kind {index}" for index in range(100 if hundred else 10)]
    meta = inside / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: names}))
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        archive.add(inside, arcname=kind.base_folder)
    patch.setattr(kind, "train_list", lists["train"])
    patch.setattr(kind, "test_list", lists["test"])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    patch.setattr(kind, "tgz_md5", md5(folder / kind.filename))
    return published


def publish_svhn(folder: Path, patch: pytest.MonkeyPatch, url: str) -> Published:
    published = Published(folder)
    offered = {}
    for part in ("train", "test"):
        file = f"{part}_32x32.mat"
        x, y = images(10), np.arange(1, 11)  # SVHN calls the digit 0 class 10
        scipy.io.savemat(folder / file, {"X": x.transpose(2, 3, 1, 0), "y": y[:, None].astype(np.uint8)})
        published.x[part], published.y[part] = x, (y % 10).tolist()
        offered[part] = [f"{url}/{file}", file, md5(folder / file)]
    patch.setattr(SVHN, "split_list", offered)
    return published


@pytest.fixture
def publisher(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a web server offers it."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def nowhere(monkeypatch) -> str:
    """An address at which nothing answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("no_proxy", "*")
    return f"http://127.0.0.1:{port}"


KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", KINDS)
def test_cifar_is_downloaded_once_and_read_whole(name, publisher, tmp_path, monkeypatch, capsys):
    folder, url = publisher
    kind = KINDS[name]
    published = publish_cifar(kind, folder, monkeypatch)
    monkeypatch.setattr(kind, "url", f"{url}/{kind.filename}")
    data_dir = tmp_path / "new" / "data"
    dataset = load_dataset(name.upper(), data_dir=data_dir)
    assert dataset.name == name and dataset.robustbench == name
    assert dataset.num_classes == (100 if kind is CIFAR100 else 10) and dataset.classes[3] == "kind 3"
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(split.images.numpy(), published.x[part])
        assert split.labels.tolist() == published.y[part]
    assert listing(data_dir) == [kind.base_folder]
    captured = capsys.readouterr()
    assert captured.out == "" and "100%" in captured.err  # the progress bar
    (folder / kind.filename).unlink()
    again = load_dataset(name, data_dir=data_dir, test_only=True)
    assert again.train is None and again.test.fingerprint == dataset.test.fingerprint


def test_svhn_is_downloaded_once_and_read_whole(publisher, tmp_path, monkeypatch, capsys):
    folder, url = publisher
    published = publish_svhn(folder, monkeypatch, url)
    data_dir = tmp_path / "data"
    only_test = load_dataset("svhn", data_dir=data_dir, test_only=True)
    assert only_test.train is None and listing(data_dir) == ["test_32x32.mat"]
    dataset = load_dataset("svhn", data_dir=data_dir)
    assert listing(data_dir) == ["test_32x32.mat", "train_32x32.mat"]
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(split.images.numpy(), published.x[part])
        assert split.labels.tolist() == published.y[part]
    assert dataset.classes == tuple("0123456789") and dataset.robustbench is None
    assert capsys.readouterr().out == ""


def test_an_archive_put_into_the_data_folder_needs_no_network(tmp_path, monkeypatch, nowhere):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    published = publish_cifar(CIFAR10, data_dir, monkeypatch)
    monkeypatch.setattr(CIFAR10, "url", nowhere + "/cifar.tar.gz")
    dataset = load_dataset("cifar10", data_dir=data_dir)
    np.testing.assert_array_equal(dataset.test.images.numpy(), published.x["test"])


@pytest.mark.parametrize("exists", [False, True])
def test_without_a_network_the_message_says_what_to_put_where(exists, tmp_path, monkeypatch, nowhere):
    monkeypatch.setattr(CIFAR10, "url", nowhere + "/cifar-10-python.tar.gz")
    data_dir = tmp_path / "data"
    if exists:
        data_dir.mkdir()
        (data_dir / "other.txt").write_text("mine")
    with pytest.raises(SamBenchError) as caught:
        load_dataset("cifar10", data_dir=data_dir)
    message = str(caught.value)
    assert not isinstance(caught.value, InputError) and caught.value.exit_code == 1
    assert f"data set 'cifar10' could not be brought into {data_dir}" in message and "refused" in message
    assert f"put cifar-10-python.tar.gz (from {nowhere}/cifar-10-python.tar.gz) into {data_dir}" in message
    assert "FILE.npz" in message and "\n" not in message
    assert listing(data_dir) == (["other.txt"] if exists else [])


def test_svhn_without_a_network_says_which_file(tmp_path, monkeypatch, nowhere):
    folder = tmp_path / "published"
    folder.mkdir()
    publish_svhn(folder, monkeypatch, nowhere)
    with pytest.raises(
        SamBenchError, match=r"data set 'svhn' could not .* put train_32x32\.mat \(from .* and test_32x32\.mat \("
    ):
        load_dataset("svhn", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_web_page_in_place_of_the_archive_is_refused_and_not_kept(publisher, tmp_path, monkeypatch):
    folder, url = publisher
    publish_cifar(CIFAR10, folder, monkeypatch)
    monkeypatch.setattr(CIFAR10, "url", f"{url}/{CIFAR10.filename}")
    (folder / CIFAR10.filename).write_text("<html>please log in</html>")
    with pytest.raises(SamBenchError, match=r"could not be brought into .*corrupted.*put cifar-10-python"):
        load_dataset("cifar10", data_dir=tmp_path / "data")
    assert listing(tmp_path / "data") == []


def test_a_missing_page_is_said(publisher, tmp_path, monkeypatch):
    _, url = publisher
    monkeypatch.setattr(CIFAR10, "url", f"{url}/gone.tar.gz")
    with pytest.raises(SamBenchError, match=r"File not found|Not Found"):
        load_dataset("cifar10", data_dir=tmp_path / "data")


def test_a_damaged_archive_in_the_data_folder_is_said(tmp_path, monkeypatch, nowhere):
    publish_cifar(CIFAR10, tmp_path, monkeypatch)
    archive = tmp_path / CIFAR10.filename
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(SamBenchError, match=r"cifar-10-python\.tar\.gz is cut off or altered .*MD5.*delete it"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert archive.exists() and not (tmp_path / CIFAR10.base_folder).exists()


@pytest.mark.parametrize("change", ["altered", "missing"])
@pytest.mark.parametrize("file", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_damaged_batch_is_named(file, change, tmp_path, monkeypatch):
    publish_cifar(CIFAR10, tmp_path, monkeypatch)
    (tmp_path / "inside" / CIFAR10.base_folder).rename(tmp_path / CIFAR10.base_folder)
    batch = tmp_path / CIFAR10.base_folder / file
    if change == "missing":
        batch.unlink()
    else:
        batch.write_bytes(batch.read_bytes() + b"\0")
    said = "is missing" if change == "missing" else "is cut off or altered"
    with pytest.raises(SamBenchError, match=f"{file} {said}.*; delete .*cifar-10-batches-py to download it again"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_a_damaged_svhn_file_is_named(publisher, tmp_path, monkeypatch):
    folder, url = publisher
    publish_svhn(folder, monkeypatch, url)
    (folder / "test_32x32.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(SamBenchError, match=r"test_32x32\.mat is cut off or altered .*delete it to download it again"):
        load_dataset("svhn", data_dir=folder)


def test_a_data_folder_that_is_a_file_is_said(tmp_path, monkeypatch, nowhere):
    monkeypatch.setattr(CIFAR10, "url", nowhere + "/cifar.tar.gz")
    (tmp_path / "data").write_text("mine")
    with pytest.raises(SamBenchError, match=r"could not be brought into .*data \(File exists\)"):
        load_dataset("cifar10", data_dir=tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"


def test_a_transfer_that_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")

    class Breaking(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaking)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_address[1]}/cifar.tar.gz")
        with pytest.raises(SamBenchError, match="data set 'cifar10' could not be brought into"):
            load_dataset("cifar10", data_dir=tmp_path / "data")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert listing(tmp_path / "data") == []


def test_what_a_download_prints_stays_off_stdout(tmp_path, capsys):
    _obtain("some", tmp_path, lambda scratch: print("Downloading, as older torchvision versions say"), "")
    captured = capsys.readouterr()
    assert captured.out == "" and "Downloading" in captured.err
