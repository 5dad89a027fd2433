"""`submit`: from a model and its records to an entry. `build_leaderboard`: from entries to tables and pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path

import torch
from torch import nn

from sam_bench import zoo as zoos
from sam_bench.api.specs.checks import StrPath
from sam_bench.api.verifying import images_of
from sam_bench.data import Dataset, Split, first_examples, load_dataset
from sam_bench.errors import InputError
from sam_bench.evaluation.adversarial import packed, read_adversarial
from sam_bench.evaluation.replay import compact, tested_by
from sam_bench.leaderboard import BuiltLeaderboard, Submission, TestLabels, server, submit_entry
from sam_bench.leaderboard import build_leaderboard as build
from sam_bench.records import EvaluationRecord, ModelCard

# What lies in the folder of downloads once a data set has been downloaded; "" where none is needed.
_DOWNLOADED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "svhn": "test_32x32.mat", "digits": ""}


def submit(
    model: str,
    records: Sequence[StrPath],
    *,
    zoo: StrPath | None = None,
    folder: StrPath = Path("leaderboards"),
    replace: bool = False,
    dataset: StrPath | None = None,
    data_dir: StrPath = Path("data"),
) -> Submission:
    """Make a leaderboard entry from a model's card and its records; no number is typed.

    Args:
        model: A name in the zoo.
        records: EvaluationRecords of exactly that checkpoint.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        folder: Folder of the leaderboards.
        replace: Let a record take the place of a row over more or other test examples, too, or of one of another
            package's attack with other settings.
        dataset: The model's data, FILE.npz or FOLDER: a record over its first examples is held against them. A data
            set with a name is found by itself, unless it would have to be downloaded.
        data_dir: Where downloads are looked for.

    Returns:
        Where the entry is, RobustBench's `model_info` and the text of its "New Model" issue.

    Raises:
        InputError: A record is of another checkpoint, architecture or data set, it contradicts itself or another
            record, it would replace such a row without `replace`, or there is none by AutoAttack.
    """
    store = zoos.Zoo(zoos.zoo_dir(zoo))
    card = store.find(model)
    of_first = first_examples_of(card, dataset, Path(data_dir))
    return submit_entry(
        card,
        store.card_path(card),
        [Path(path) for path in records],
        folder=Path(folder),
        fingerprint_of_first=of_first,
        replace=replace,
        # Without the data at hand, the adversarial examples stay as the evaluation wrote them.
        compact=None if of_first is None else _compact(store, card, dataset, Path(data_dir)),
    )


def _compact(
    store: zoos.Zoo, card: ModelCard, dataset: StrPath | None, data_dir: Path
) -> Callable[[EvaluationRecord, bytes], bytes]:
    """What makes the file of a record's adversarial examples smaller; the model and the data are loaded once."""

    @cache
    def loaded() -> tuple[nn.Module, Split]:
        return store.load(card), images_of(dataset, data_dir)(card)

    def compacted(record: EvaluationRecord, content: bytes) -> bytes:
        module, images = loaded()
        test = tested_by(record, images)
        read = read_adversarial(content, f"file of {card.name}", record, test)
        return packed(compact(module, test, record, read, device=torch.device("cpu")), test)

    return compacted


def first_examples_of(card: ModelCard, dataset: StrPath | None, data_dir: Path) -> Callable[[int], str] | None:
    """What gives the fingerprint of the first n test examples of a card's data set; None without the data."""
    plain = card.dataset.removesuffix(f"-{card.architecture.image_size}px")
    if dataset is None and not _at_hand(plain, data_dir):
        return None

    @cache
    def fingerprint_of_first(count: int) -> str:
        test = images_of(dataset, data_dir)(card)
        if test.fingerprint != card.test_fingerprint:
            raise InputError(
                f"the test images of {card.dataset} here are not those the card of {card.name} names (SHA-256 "
                f"{test.fingerprint[:12]}… instead of {card.test_fingerprint[:12]}…)"
            )
        return first_examples(test, count).fingerprint

    return fingerprint_of_first


def _at_hand(dataset: str, data_dir: Path) -> bool:
    """Whether a data set with a name can be loaded without a download."""
    folder = _DOWNLOADED.get(dataset)
    return folder is not None and (not folder or (data_dir / folder).exists())


def build_leaderboard(
    folder: StrPath = Path("leaderboards"),
    *,
    zoo: StrPath | None = None,
    robustbench: StrPath | None = None,
    dataset: StrPath | None = None,
    data_dir: StrPath = Path("data"),
) -> BuiltLeaderboard:
    """Write the tables, the figure and the pages of a leaderboards folder.

    Args:
        folder: The leaderboards folder.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        robustbench: RobustBench's `model_info` folder, or a checkout that has one: its entries of the same boards
            are shown beside ours. Nothing of it is copied but what the pages show.
        dataset: Data of the boards, FILE.npz or FOLDER, for the accuracy of each class. A data set with a name is
            found by itself, unless it would have to be downloaded.
        data_dir: Where downloads are looked for.

    Raises:
        InputError: No entries, or an entry that its records or its card do not support.
    """
    return build(
        Path(folder),
        zoo=None if zoo is None else Path(zoo),
        robustbench=None if robustbench is None else Path(robustbench),
        labels_of=_labels_of(dataset, Path(data_dir)),
    )


def _labels_of(dataset: StrPath | None, data_dir: Path) -> Callable[[EvaluationRecord], TestLabels | None]:
    """What gives the labels of a record's test images, if these very images are at hand."""

    @cache
    def loaded(name: str) -> Dataset:
        return load_dataset(name, data_dir=data_dir, test_only=True)

    @cache
    def labels(name: str, count: int, fingerprint: str) -> TestLabels | None:
        for spec in [str(dataset)] * (dataset is not None) + [name] * _at_hand(name, data_dir):
            data = loaded(spec)
            tested = first_examples(data.test, count)
            if tested.fingerprint == fingerprint:
                return TestLabels(tested.labels.numpy(), data.classes)
        return None

    return lambda record: labels(record.dataset, record.n_examples, record.dataset_fingerprint)


def serve(
    folder: StrPath = Path("leaderboards"), *, zoo: StrPath | None = None, port: int = 0
) -> tuple[ThreadingHTTPServer, str]:
    """A server of the built pages on this machine's loopback, and their address.

    Args:
        folder: The leaderboards folder.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        port: 0: any that is free.

    Raises:
        InputError: There are no pages, or the port is taken.
    """
    return server(Path(folder), zoo=zoos.zoo_dir(zoo), port=port)
