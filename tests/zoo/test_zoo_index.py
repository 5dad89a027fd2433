"""The index of a large zoo says what the cards say, whatever happens to them and to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sam_bench.records import ModelCard
from sam_bench.zoo import Zoo
from sam_bench.zoo.index import INDEX, Listed

Fields = Callable[..., dict[str, Any]]
Networks = Callable[..., nn.Module]


@pytest.fixture
def large(zoo: Zoo, network: Networks, fields: Fields, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A zoo of five cards, taken for a large one."""
    monkeypatch.setattr("sam_bench.zoo.index.WORTH_IT", 3)
    card = zoo.save(network(), fields(name="m0"))
    text = zoo.card_path(card).read_text()
    for index in range(1, 5):
        zoo.card_path(card).with_name(f"m{index}.json").write_text(text.replace('"m0', f'"m{index}'))
    return zoo


def _parsed(zoo: Zoo) -> list[Listed]:
    return [Listed.of(card) for card in zoo.cards()]


def test_a_listing_from_the_index_parses_no_card_that_is_unchanged(large: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _parsed(large)
    assert large.listed() == expected and len(expected) == 5 and (large.root / INDEX).exists()
    read: list[str] = []

    def counted(path: Path) -> ModelCard:
        read.append(path.stem)
        return ModelCard.model_validate_json(path.read_text())

    monkeypatch.setattr(large, "read", counted)
    assert large.listed() == expected and read == []
    path = next(large.root.glob("*/*/m3.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clean_accuracy": 0.25}))
    assert [each.clean_accuracy for each in large.listed()] == [0.5, 0.5, 0.5, 0.25, 0.5] and read == ["m3"]
    next(large.root.glob("*/*/m1.json")).unlink()
    assert [each.name for each in large.listed()] == ["m0", "m2", "m3", "m4"] and read == ["m3"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 0}', '{"version": 1, "cards": {"a/b/c.json": [1]}}'])
def test_a_damaged_index_is_made_anew(large: Zoo, damage: str) -> None:
    large.listed()
    whole = (large.root / INDEX).read_text()
    (large.root / INDEX).write_text(damage)
    assert large.listed() == _parsed(large) and (large.root / INDEX).read_text() == whole


def test_a_broken_card_is_warned_of_and_passed_over(large: Zoo) -> None:
    next(large.root.glob("*/*/m2.json")).write_text("{")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"passed over in the zoo: .*m2\.json"):
            assert [each.name for each in large.listed()] == ["m0", "m1", "m3", "m4"]


def test_a_small_zoo_has_no_index(zoo: Zoo, network: Networks, fields: Fields) -> None:
    zoo.save(network(), fields())
    assert zoo.listed() == _parsed(zoo) and not (zoo.root / INDEX).exists()
