"""What a card vouches for: weights and architecture of its own, and one run under one name."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import ModelCard, read_record
from sam_bench.zoo import Zoo, load_model

Fields = Callable[..., dict[str, Any]]
Networks = Callable[..., nn.Module]


def _changed(zoo: Zoo, card: ModelCard, **changes: Any) -> ModelCard:
    """The card with fields changed by hand, on disk under its (new) name."""
    path = zoo.card_path(card)
    content = json.loads(path.read_text())
    for key, value in changes.items():
        where = content
        *folders, last = key.split("__")
        for folder in folders:
            where = where[folder]
        where[last] = value
    path = path.with_name(f"{content['name']}.json")
    path.write_text(json.dumps(content))
    return read_record(path, ModelCard)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_a_changed_normalisation_is_noticed(zoo: Zoo, network: Networks, fields: Fields, field: str) -> None:
    card = zoo.save(network(), fields())
    assert card.architecture_sha256 == card.architecture.sha256
    changed = _changed(zoo, card, **{f"architecture__{field}": [0.1, 0.2, 0.3]})
    (problem,) = zoo.verify(changed)
    assert problem.check == "architecture" and problem.expected == card.architecture_sha256
    with pytest.raises(SamBenchError, match="architecture on the card of cifar10-jpeg/Linf/sam was altered"):
        zoo.load(changed)


def test_a_card_without_the_digest_loads_and_is_identified_by_its_architecture(
    zoo: Zoo, network: Networks, fields: Fields
) -> None:
    card = zoo.save(network(), fields())
    old = _changed(zoo, card, architecture_sha256=None)
    assert zoo.verify(old) == []
    before = load_model("sam", zoo=zoo.root)
    assert before.architecture_sha256 == card.architecture.sha256
    _changed(zoo, card, architecture_sha256=None, architecture__mean=[0.1, 0.2, 0.3])
    after = load_model("sam", zoo=zoo.root)
    assert after.sha256 == before.sha256
    assert after.architecture_sha256 != before.architecture_sha256


def test_every_committed_card_is_identified_and_whole() -> None:
    zoo = Zoo(Path(__file__).parents[2] / "model_zoo")
    cards = zoo.cards()
    assert cards and all(zoo.verify(card) == [] for card in cards)


def test_the_digest_of_an_architecture_sees_every_field(fields: Fields) -> None:
    plain = fields()["architecture"]
    changes: list[dict[str, Any]] = [
        {"name": "preactresnet34"},
        {"num_classes": 9},
        {"in_channels": 1},
        {"image_size": 16},
        {"mean": ()},
        {"std": (0.25, 0.24, 0.27)},
        {"options": {"width": 8}},
    ]
    assert {key for change in changes for key in change} == set(type(plain).model_fields)
    digests = {plain.sha256, *(plain.model_copy(update=change).sha256 for change in changes)}
    assert len(digests) == len(changes) + 1
    assert type(plain).model_validate_json(plain.model_dump_json()).sha256 == plain.sha256


def test_removing_a_copied_card_leaves_the_weights_to_the_first(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields())
    copy = _changed(zoo, card, name="copy")
    for either in (card, copy):
        problems = zoo.verify(either)
        assert any("named by two cards" in problem.message for problem in problems)
    zoo.remove(copy)
    assert zoo.verify(card) == []


def test_saving_over_a_copied_card_leaves_the_weights_to_the_first(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(0), fields())
    _changed(zoo, card, name="copy")
    second = zoo.save(network(1), fields(name="copy"))
    assert zoo.verify(card) == zoo.verify(second) == []


def test_removing_the_first_leaves_the_weights_to_a_card_that_names_them(
    zoo: Zoo, network: Networks, fields: Fields
) -> None:
    card = zoo.save(network(0), fields())
    copy = _changed(zoo, card, name="copy")
    zoo.remove(card)
    zoo.load(copy)
    (problem,) = zoo.verify(copy)
    assert "not its own" in problem.message


@pytest.mark.parametrize("how", ["removed", "saved over"])
def test_a_card_that_names_another_file_deletes_none(zoo: Zoo, network: Networks, fields: Fields, how: str) -> None:
    other = zoo.save(network(0), fields(name="other"))
    card = zoo.save(network(1), fields())
    changed = _changed(zoo, card, weights__file="other.json")
    if how == "removed":
        zoo.remove(changed)
    else:
        zoo.save(network(2), fields())
    assert zoo.find("other") == other and zoo.verify(other) == []


def test_weights_that_are_a_pipe_are_refused(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields())
    zoo.weights_path(card).unlink()
    os.mkfifo(zoo.weights_path(card))
    assert [problem.check for problem in zoo.verify(card)] == ["file"]
    with pytest.raises(SamBenchError, match="no regular file"):
        zoo.load(card)


def test_a_finished_run_does_not_replace_another_one(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(0), fields(), same_run=True)
    with pytest.raises(
        InputError, match=r"already, from a run with another seed: .*; then resume=True registers this run"
    ):
        zoo.save(network(1), fields(seed=1), same_run=True)
    assert zoo.find("sam") == card and zoo.verify(card) == [] and zoo.strays() == []
    zoo.save(network(1), fields(), same_run=True)


def _save_when_all_are_ready(root: Path, ready: Any, done: Any, module: nn.Module, fields: dict[str, Any]) -> None:
    ready.wait()
    try:
        Zoo(root).save(module, fields, same_run=True)
        done.put("saved")
    except InputError as error:
        done.put(str(error))


def test_of_runs_that_finish_at_once_under_one_name_one_is_saved(zoo: Zoo, network: Networks, fields: Fields) -> None:
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Barrier(4), fork.SimpleQueue()
    runs = [
        fork.Process(target=_save_when_all_are_ready, args=(zoo.root, ready, done, network(seed), fields(seed=seed)))
        for seed in range(4)
    ]
    for run in runs:
        run.start()
    told = [done.get() for _ in runs]
    for run in runs:
        run.join()
    assert told.count("saved") == 1
    assert sum("from a run with another seed" in each for each in told) == 3
    (card,) = zoo.cards()
    assert zoo.verify(card) == [] and zoo.strays() == []


def test_a_zoo_that_was_copied_is_whole(zoo: Zoo, network: Networks, fields: Fields, tmp_path: Path) -> None:
    card = zoo.save(network(), fields())
    shutil.copytree(zoo.root, tmp_path / "copied")
    assert Zoo(tmp_path / "copied").verify(card) == []
