"""Every way to forge an entry that we could think of is refused, or noted at the row, with its reason."""

from __future__ import annotations

import csv
import io
import re

import pytest
from forgeries import NOTED, REFUSED, Model
from leaderboard_samples import Bench, digest, make_record

from sam_bench.errors import InputError
from sam_bench.leaderboard import build_leaderboard


def test_a_sound_entry_passes_without_a_note(bench: Bench) -> None:
    Model(bench).write()
    built = build_leaderboard(bench.folder)
    assert len(built.rows) == 3 and all(row.notes == () and row.card_found for row in built.rows)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_forgery_is_refused_with_its_reason(bench: Bench, kind: str) -> None:
    forge, reason = REFUSED[kind]
    model = Model(bench)
    forge(model)
    model.write()
    with pytest.raises(InputError) as refusal:
        build_leaderboard(bench.folder)
    message = str(refusal.value)
    assert reason in message
    assert message.isprintable() and len(message) < 1500
    assert not list(bench.folder.glob("leaderboard.*"))


@pytest.mark.parametrize("kind", NOTED)
def test_a_forgery_that_may_be_honest_is_noted_with_its_reason(bench: Bench, kind: str) -> None:
    forge, reason = NOTED[kind]
    model = Model(bench)
    forge(model)
    model.write()
    noted = [row for row in build_leaderboard(bench.folder).rows if row.model == "m" and row.notes]
    assert noted and all(any(reason in note for note in row.notes) for row in noted)


def test_the_architecture_is_part_of_what_was_evaluated(bench: Bench) -> None:
    model = Model(bench)
    for key in model.records:
        model.set(key, architecture_sha256=model.card.architecture.sha256)
    model.write()
    build_leaderboard(bench.folder)
    changed = model.card.architecture.model_copy(update={"mean": (0.1, 0.1, 0.1), "std": (1.0, 1.0, 1.0)})
    model.card = model.card.model_copy(update={"architecture": changed})
    model.write()
    with pytest.raises(InputError, match="its options, mean and std are part of it"):
        build_leaderboard(bench.folder)


@pytest.mark.parametrize("dataset", ["CIFAR-10", "digits", "cifar_100"])
def test_images_that_go_by_a_published_name_are_refused(bench: Bench, dataset: str) -> None:
    Model(bench, dataset=dataset).write()
    with pytest.raises(InputError, match=r"not known to be those of the published (cifar10|digits|cifar100)"):
        build_leaderboard(bench.folder)


def test_a_lone_entry_over_more_examples_than_a_known_data_set_has_takes_nobodys_rank(bench: Bench) -> None:
    Model(bench, "honest", dataset="cifar10").write()
    forged = Model(bench, "forged", dataset="cifar10", test_fingerprint=digest("mine"))
    forged.records = {"aa": make_record(forged.card, clean=16_000, robust=15_000, n=20_000)}
    forged.write()
    with pytest.raises(InputError, match="is over 20,000 test examples, but cifar10 has 10,000"):
        build_leaderboard(bench.folder)


@pytest.mark.parametrize(
    "text",
    ["=1+1", " =1+1", "\n=1+1", "x\n@x", "a;=1+1", "a; +1", "＝1+1", "\u3000－1", '"=1', "\ufeff=1", "-1", "\t=1"],
)
def test_a_formula_in_a_text_is_marked_as_text_in_the_csv(bench: Bench, text: str) -> None:
    model = Model(bench)
    model.change_entry = lambda fields: fields.update(authors=text)
    model.write()
    written = build_leaderboard(bench.folder).paths["csv"].read_text()
    for row in csv.DictReader(io.StringIO(written, newline="")):
        assert row["authors"].replace("'", "") == text
        starts = [part.lstrip(' \u3000\ufeff"')[:1] for part in re.split("[\n\t;]", row["authors"])]
        assert "'" in starts and not set(starts) & set("=+-@＝－")


def test_honest_texts_are_left_alone_in_the_csv(bench: Bench) -> None:
    model = Model(bench)
    authors = "Ada-Mae Lovelace, A. B.; C. d'E (rho = 0.1 + 2) @home"
    model.change_entry = lambda fields: fields.update(authors=authors)
    model.write()
    assert authors in build_leaderboard(bench.folder).paths["csv"].read_text()
