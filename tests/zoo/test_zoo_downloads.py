"""A mirror's files come whole: to processes that ask at once, and after one that was killed."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hub_server import Hub, running_hub

from sam_bench.errors import SamBenchError
from sam_bench.zoo.downloads import downloading

PLACE = "cifar10/Linf/net.pt"
CONTENT = random.Random(0).randbytes(8 << 20)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local mirror with one file."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_hub() as server:
        monkeypatch.setenv("SAM_BENCH_MIRROR", f"{server.url}/the/mirror/resolve/main")
        server.repos["the/mirror"] = {PLACE: CONTENT}
        yield server


def _fetched(folder: Path) -> str:
    try:
        with downloading(folder, "cifar10", "Linf", ["net.pt"]) as where:
            return "whole" if (where / PLACE).read_bytes() == CONTENT else "damaged"
    except Exception as error:
        return repr(error)


def _fetch_when_all_are_ready(folder: Path, ready: Any, told: Any) -> None:
    ready.wait()
    told.put(_fetched(folder))


def test_processes_that_ask_the_mirror_at_once_all_get_the_whole_file(mirror: Hub, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, told = fork.Barrier(4), fork.SimpleQueue()
    asking = [fork.Process(target=_fetch_when_all_are_ready, args=(tmp_path, ready, told)) for _ in range(4)]
    for process in asking:
        process.start()
    said = [told.get() for _ in asking]
    for process in asking:
        process.join()
    assert said == ["whole"] * 4
    assert sorted(path.name for path in (tmp_path / PLACE).parent.iterdir()) == ["net.pt", "net.pt.sha256"]


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"of another file"], ids=["complete", "too long"])
def test_a_part_that_is_as_long_as_the_file_or_longer_needs_no_second_try(
    mirror: Hub, tmp_path: Path, left: bytes
) -> None:
    partial = (tmp_path / PLACE).with_name(".net.pt.part")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    assert _fetched(tmp_path) == "whole" and not partial.exists()
    assert mirror.ranges == [f"bytes={len(left)}-"]


def test_a_file_of_another_length_than_announced_is_not_taken(
    mirror: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What requests does with urllib3 1: a connection that ends early raises nothing.
    with monkeypatch.context() as patch:
        patch.setattr(requests.Response, "iter_content", lambda *_: iter([CONTENT[:1000]]))
        with pytest.raises(SamBenchError, match=r"1,000 bytes came, not 8,388,608; asked again, it goes on"):
            downloading(tmp_path, "cifar10", "Linf", ["net.pt"]).__enter__()
    assert not (tmp_path / PLACE).exists()
    assert _fetched(tmp_path) == "whole" and mirror.ranges == ["bytes=1000-"]


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(mirror: Hub, tmp_path: Path) -> None:
    (tmp_path / "cifar10").write_text("a file in the folder's place")
    with pytest.raises(SamBenchError, match=rf"cannot fetch {mirror.url}/the/mirror/.*: .*cifar10"):
        downloading(tmp_path, "cifar10", "Linf", ["net.pt"]).__enter__()


def test_a_download_that_was_cut_short_does_not_go_on_with_another_file(mirror: Hub, tmp_path: Path) -> None:
    mirror.cut[PLACE] = 1 << 20
    assert "asked again" in _fetched(tmp_path)
    mirror.repos["the/mirror"][PLACE] = other = random.Random(1).randbytes(len(CONTENT))
    with downloading(tmp_path, "cifar10", "Linf", ["net.pt"]) as where:
        assert (where / PLACE).read_bytes() == other
    assert sorted(path.name for path in (tmp_path / PLACE).parent.iterdir()) == ["net.pt", "net.pt.sha256"]


def test_what_the_mirror_sent_and_cannot_be_loaded_is_asked_for_again(mirror: Hub, tmp_path: Path) -> None:
    mirror.repos["the/mirror"][PLACE] = b'{"error": "quota exceeded"}'
    with pytest.raises(ValueError, match="no checkpoint"), downloading(tmp_path, "cifar10", "Linf", ["net.pt"]):
        raise ValueError("no checkpoint")
    mirror.repos["the/mirror"][PLACE] = CONTENT
    assert _fetched(tmp_path) == "whole"


def test_a_file_put_there_by_hand_stays_when_it_cannot_be_loaded(mirror: Hub, tmp_path: Path) -> None:
    (tmp_path / PLACE).parent.mkdir(parents=True)
    (tmp_path / PLACE).write_bytes(b"theirs")
    with pytest.raises(ValueError, match="no memory"), downloading(tmp_path, "cifar10", "Linf", ["net.pt"]):
        raise ValueError("no memory")
    assert (tmp_path / PLACE).read_bytes() == b"theirs"
