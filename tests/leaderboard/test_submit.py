"""An entry says what card and records say, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboard_samples import AT, SAM, STANDARD, Bench, digest, head_fingerprint, make_card, make_record

from sam_bench import build_leaderboard, submit
from sam_bench.data import load_dataset
from sam_bench.errors import InputError
from sam_bench.leaderboard import attack_name, method_label, read_entries, submit_entry
from sam_bench.leaderboard.boards import make_boards
from sam_bench.records import Architecture, ComponentSpec, LeaderboardEntry, read_record, sha256_file, write_record
from sam_bench.training import build_recipe, load_recipe, override


def test_an_entry_is_filled_from_card_and_record_alone(bench: Bench) -> None:
    card = make_card("sam-rho0.2", passes=200, authors="Ada Lovelace", paper_title="Sharp", venue="Journal 2026")
    done = bench.submit(card, make_record(card, clean=83, robust=41))
    entry = read_record(done.path, LeaderboardEntry)
    assert done.path == bench.folder / "cifar10" / "Linf" / "sam-rho0.2.json"
    assert (entry.clean_acc, entry.autoattack_acc, entry.reported, entry.eps) == ("83.00", "41.00", "41.00", "8/255")
    assert (entry.name, entry.authors, entry.venue, entry.dataset) == (
        "Sharp",
        "Ada Lovelace",
        "Journal 2026",
        "cifar10",
    )
    assert entry.architecture == "PreActResNet-18 (width 16)"
    evidence = entry.sam_bench
    assert (evidence.method, evidence.passes, evidence.parameters) == ("SAM rho=0.2", 200, 702_442)
    assert (done.path.parent / evidence.card).resolve() == bench.card_file(card).resolve()
    copy = done.path.parent / evidence.rows[0].record
    assert copy == done.path.parent / "records" / "sam-rho0.2-autoattack-Linf-8over255.json"
    assert sha256_file(copy) == evidence.rows[0].record_sha256


@settings(deadline=None, max_examples=40)
@given(clean=st.integers(0, 250), share=st.floats(0, 1))
def test_per_cent_strings_follow_from_the_verdicts(
    clean: int, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    card, robust = make_card("m"), int(share * clean)
    entry = bench.submit(card, make_record(card, clean=clean, robust=robust, n=250)).entry
    assert float(entry.clean_acc) == pytest.approx(clean / 2.5, abs=0.005)
    assert float(entry.autoattack_acc) == pytest.approx(robust / 2.5, abs=0.005)
    assert all(len(text.split(".")[1]) == 2 for text in (entry.clean_acc, entry.autoattack_acc))


def test_every_robustbench_field_is_filled_when_the_card_says_nothing(bench: Bench) -> None:
    card = make_card("m", STANDARD, venue="  ")
    entry = bench.submit(card, make_record(card, clean=80, robust=2)).entry
    assert (entry.name, entry.authors, entry.venue, entry.link) == (
        "sam-bench: standard",
        "Anonymous",
        "Unpublished",
        "N/A",
    )


def test_a_record_of_another_checkpoint_is_refused_and_both_are_named(bench: Bench) -> None:
    card, other = make_card("one"), make_card("two")
    with pytest.raises(InputError) as refusal:
        bench.submit(card, make_record(other, clean=80, robust=2))
    assert digest("one") in str(refusal.value) and digest("two") in str(refusal.value)
    assert not bench.folder.exists()


def test_a_record_on_another_data_set_is_refused(bench: Bench) -> None:
    card = make_card("m")
    with pytest.raises(InputError, match=r"evaluated on svhn, but the card of m is of cifar10"):
        bench.submit(card, make_record(card, clean=80, robust=2, dataset="svhn"))


def test_without_autoattack_there_is_no_entry_but_the_command_that_makes_it_one(bench: Bench) -> None:
    card = make_card("m")
    weaker = [
        make_record(card, clean=80, robust=40, attack="pgd"),
        make_record(card, clean=80, robust=40, version="rand"),
        make_record(card, clean=80, robust=40, norm="L2", eps="0.5"),
    ]
    for record in weaker:
        with pytest.raises(InputError, match=r"evaluate it with autoattack in Linf at eps 8/255"):
            bench.submit(card, record)
    assert not bench.folder.exists()


def test_the_headline_is_robustbenchs_radius_and_without_it_the_largest(bench: Bench) -> None:
    card = make_card("m")
    small = make_record(card, clean=80, robust=60, eps="1/255")
    large = make_record(card, clean=80, robust=1, eps="16/255")
    official = make_record(card, clean=80, robust=20, eps="8 / 255")
    assert bench.submit(card, small, large).entry.eps == "16/255"
    entry = bench.submit(card, official).entry
    assert (entry.eps, entry.autoattack_acc) == ("8/255", "20.00")
    assert len(entry.sam_bench.rows) == 3


def test_the_largest_radius_is_the_largest_number_not_the_last_text(bench: Bench) -> None:
    card = make_card("m")
    records = [make_record(card, clean=80, robust=60 - int(eps), eps=f"{eps}/255") for eps in ("2", "16", "4")]
    assert bench.submit(card, *records).entry.eps == "16/255"


def test_paths_may_be_texts_and_the_first_examples_are_held_against_the_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.root)
    test = load_dataset("digits", image_size=8, test_only=True).test
    card = make_card(
        "m",
        dataset="digits-8px",
        test_fingerprint=test.fingerprint,
        architecture=Architecture(name="preactresnet10", num_classes=10, in_channels=1, image_size=8),
    )
    bench.card_file(card)
    first = make_record(card, clean=80, robust=30, dataset_fingerprint=test.head(100).fingerprint)
    write_record(Path("r.json"), first)
    done = submit("m", ["r.json"], zoo="model_zoo", folder="lb")
    assert done.notes == [] and done.path == Path("lb/digits-8px/Linf/m.json")
    assert build_leaderboard("lb").paths["md"] == Path("lb/leaderboard.md")
    easy = first.model_copy(update={"dataset_fingerprint": test.select(torch.arange(100, 200)).fingerprint})
    write_record(Path("easy.json"), easy)
    with pytest.raises(
        InputError, match=r"easy.json has fingerprint .*, but the first 100 test examples of digits-8px"
    ):
        submit("m", ["easy.json"], folder="lb2")
    with pytest.raises(InputError, match="the test images of own here are not those the card of o names"):
        save_own(Path("own.npz"))
        other = card.model_copy(update={"name": "o", "dataset": "own"})
        bench.card_file(other)
        write_record(Path("o.json"), first.model_copy(update={"dataset": "own"}))
        submit("o", ["o.json"], folder="lb2", dataset="own.npz")


def save_own(path: Path) -> None:
    """Another data set of the same shape."""
    generator = np.random.RandomState(0)
    images = generator.randint(0, 256, (120, 8, 8), dtype=np.uint8)
    labels = np.arange(120) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)


def test_a_second_record_replaces_its_own_row_and_leaves_the_others(bench: Bench) -> None:
    card = make_card("m")
    kept = make_record(card, clean=80, robust=60, attack="pgd")
    bench.submit(card, make_record(card, clean=80, robust=30), kept)
    done = bench.submit(card, make_record(card, clean=80, robust=25, eps=str(8 / 255), eps_float=8 / 255))
    rows = {row.attack: row for row in done.entry.sam_bench.rows}
    assert set(rows) == {"autoattack", "pgd-20"}
    assert rows["autoattack"].robust_accuracy == 0.25 and rows["pgd-20"].robust_accuracy == 0.6
    assert any("replaced the row autoattack" in note for note in done.notes)
    on_disk = {path.name for path in (done.path.parent / "records").iterdir()}
    assert on_disk == {"m.manifest.json", *(Path(row.record).name for row in rows.values())}


def test_a_record_over_fewer_or_other_images_replaces_a_row_only_when_told_to(bench: Bench) -> None:
    card = make_card("m")
    row = r"the row autoattack at Linf 8/255 of .*m\.json over"
    bench.submit(card, make_record(card, clean=80, robust=30))
    before = (bench.folder / "cifar10/Linf/m.json").read_bytes()
    for record, message in (
        (
            make_record(card, clean=40, robust=20, n=50),
            rf"is over only 50 test examples, but {row} 100: add replace=True",
        ),
        (
            make_record(card, clean=80, robust=60, dataset_fingerprint=digest("easy")),
            rf"over images with fingerprint {digest('easy')}, but {row} others \({head_fingerprint('cifar10', 100)}\)",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bench.submit(card, record)
        assert (bench.folder / "cifar10/Linf/m.json").read_bytes() == before
        done = bench.submit(card, record, replace=True)
        assert [each.n_examples for each in done.entry.sam_bench.rows] == [record.n_examples]
        bench.submit(card, make_record(card, clean=80, robust=30), replace=True)
    more = bench.submit(card, make_record(card, clean=160, robust=60, n=200))
    assert more.entry.sam_bench.rows[0].n_examples == 200


def test_a_row_whose_record_is_gone_is_replaced_by_as_many_examples_and_not_by_fewer(bench: Bench) -> None:
    card = make_card("m")
    bench.submit(card, make_record(card, clean=80, robust=30)).records[0].unlink()
    with pytest.raises(InputError, match="is over only 50 test examples"):
        bench.submit(card, make_record(card, clean=40, robust=20, n=50))
    assert bench.submit(card, make_record(card, clean=80, robust=31)).entry.autoattack_acc == "31.00"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attacks": ["apgd-ce", "square"]},
            "of autoattack, version standard, which runs apgd-ce, apgd-t, fab-t, square, but accuracy_after names "
            "apgd-ce, square: evaluate with the whole attack",
        ),
        ({"version": ""}, "does not say which version of autoattack it is of"),
        (
            {"settings": {"steps": 2}},
            "is not of autoattack as sam-bench has it: steps: attack 'autoattack' takes ",
        ),
        ({"settings": {"suite": ["apgd-ce"]}}, "is not of autoattack as sam-bench has it"),
        ({"attack": "pgd", "attacks": ["apgd-ce"]}, "of pgd which runs pgd, but accuracy_after names apgd-ce"),
    ],
)
def test_a_record_that_did_not_run_what_it_is_called_is_refused(
    bench: Bench, changes: dict[str, Any], message: str
) -> None:
    card = make_card("m")
    with pytest.raises(InputError, match=re.escape(message)):
        bench.submit(card, make_record(card, clean=80, robust=30, **changes))
    assert not bench.folder.exists()


def test_attacks_of_different_strength_are_different_rows(bench: Bench) -> None:
    card = make_card("m")
    names = [
        attack_name(make_record(card, clean=8, robust=4, n=10, attack=attack, version=version, settings=settings))
        for attack, version, settings in (
            ("autoattack", "standard", {}),
            ("autoattack", "rand", {}),
            ("pgd", "", {"steps": 10, "restarts": 1}),
            ("pgd", "", {"steps": 20, "restarts": 5}),
            ("pgd", "", {"steps": 10, "restarts": 1, "random_start": True, "step_size": "1/255"}),
            ("pgd", "", {"steps": 10, "restarts": 1, "random_start": False}),
            ("fgsm", "", {}),
            ("../../etc", "", {}),
        )
    ]
    assert names[:4] == ["autoattack", "autoattack-rand", "pgd-10", "pgd-20x5"]
    assert names[4:] == ["pgd-10-step-1over255", "pgd-10-no-random-start", "fgsm", "..-..-etc"]


def test_a_record_given_twice_counts_once_and_two_different_ones_are_refused(bench: Bench) -> None:
    card = make_card("m")
    record = make_record(card, clean=80, robust=30)
    assert len(bench.submit(card, record, record).entry.sam_bench.rows) == 1
    with pytest.raises(InputError, match="both autoattack at Linf 8/255"):
        bench.submit(card, record, make_record(card, clean=80, robust=31))


def test_an_altered_record_beside_the_entry_is_noticed_when_another_is_added(bench: Bench) -> None:
    card = make_card("m")
    done = bench.submit(card, make_record(card, clean=80, robust=30))
    done.records[0].write_text(done.records[0].read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match=r"is not the record that .* was computed from"):
        bench.submit(card, make_record(card, clean=80, robust=60, attack="pgd"))
    mended = bench.submit(card, make_record(card, clean=80, robust=30))
    assert sha256_file(mended.records[0]) == mended.entry.sam_bench.rows[0].record_sha256


def test_rows_of_older_weights_go_when_the_model_was_trained_again(bench: Bench) -> None:
    old = make_card("m")
    bench.submit(old, make_record(old, clean=80, robust=30), make_record(old, clean=80, robust=60, attack="pgd"))
    new = make_card("m", weights=old.weights.model_copy(update={"sha256": digest("again")}))
    done = bench.submit(new, make_record(new, clean=81, robust=33))
    assert [row.attack for row in done.entry.sam_bench.rows] == ["autoattack"]
    assert any("other weights" in note for note in done.notes)
    on_disk = {path.name for path in (done.path.parent / "records").iterdir()}
    assert on_disk == {"m.manifest.json", "m-autoattack-Linf-8over255.json"}


def test_a_record_over_the_whole_test_set_has_to_have_the_cards_fingerprint(bench: Bench) -> None:
    card = make_card("m")
    whole = make_record(card, clean=8000, robust=3000, n=10_000)
    assert bench.submit(card, whole).notes == []
    wrong = make_record(card, clean=8000, robust=3000, n=10_000, dataset_fingerprint=digest("other"))
    with pytest.raises(
        InputError, match=r"over all 10,000 test examples of cifar10 with .*, but on the model's card they have"
    ):
        bench.submit(card, wrong)


def test_a_head_of_the_test_set_is_checked_where_the_data_is_at_hand_and_else_said(bench: Bench) -> None:
    card = make_card("m")
    record = make_record(card, clean=80, robust=30)
    assert "could not be checked" in bench.submit(card, record).notes[0]
    known = {"fingerprint_of_first": lambda count: head_fingerprint("cifar10", count)}
    assert not any("could not be checked" in note for note in bench.submit(card, record, **known).notes)
    with pytest.raises(InputError, match="the first 100 test examples of cifar10 have"):
        bench.submit(card, record, fingerprint_of_first=lambda count: digest("something else"))


def test_records_over_equally_many_but_other_examples_do_not_go_together(bench: Bench) -> None:
    card = make_card("m")
    other = make_record(card, clean=80, robust=50, attack="pgd", dataset_fingerprint=digest("other"))
    with pytest.raises(InputError, match="not the same ones"):
        bench.submit(card, make_record(card, clean=80, robust=30), other)


def test_a_card_that_is_not_the_one_in_the_file_is_refused(bench: Bench) -> None:
    card = make_card("m")
    path, record = bench.card_file(card), bench.record_file(make_record(card, clean=80, robust=30))
    with pytest.raises(InputError, match="is not the card of m"):
        submit_entry(card.model_copy(update={"epochs": 11}), path, [record], folder=bench.folder)


def test_warnings_make_the_entry_unreliable_and_are_in_its_footnote(bench: Bench) -> None:
    card = make_card("m")
    entry = bench.submit(card, make_record(card, clean=80, robust=30, warnings=("randomized: draws",))).entry
    assert entry.unreliable is True and "randomized: draws" in (entry.footnote or "")


def test_what_a_second_attack_found_is_not_a_check_of_autoattacks_own(bench: Bench) -> None:
    card = make_card("m", AT, clean_accuracy=0.84)
    warnings = ("second-opinion: pgd-margin broke a further 2.00% of all examples",)
    done = bench.submit(card, make_record(card, clean=8400, robust=4700, n=10_000, warnings=warnings))
    assert done.entry.footnote == "a second attack: pgd-margin broke a further 2.00% of all examples"
    assert done.entry.unreliable is True
    assert "- [x] AutoAttack's own checks: no warning\n" in done.issue
    assert "- [ ] A second attack: pgd-margin broke a further 2.00% of all examples\n" in done.issue
    both = make_record(card, clean=8400, robust=4700, n=10_000, warnings=("randomized: draws", *warnings))
    again = bench.submit(card, both)
    assert (again.entry.footnote or "").startswith("AutoAttack warns: randomized: draws; a second attack: pgd-margin")
    assert "- [ ] AutoAttack's own checks: randomized: draws\n" in again.issue


@pytest.mark.parametrize(("eps", "name"), [("1e+1", "10"), ("1e-1", "1e-1"), ("+0.5", "0.5"), ("8/255", "8over255")])
def test_a_record_whose_radius_has_a_sign_is_built_like_any_other(bench: Bench, eps: str, name: str) -> None:
    card = make_card("m")
    records = [make_record(card, clean=80, robust=30), make_record(card, clean=80, robust=10, attack="fgsm", eps=eps)]
    done = bench.submit(card, *records)
    assert {path.name for path in done.records} > {f"m-fgsm-Linf-{name}.json"}
    assert len(make_boards(read_entries(bench.folder))) == 2


def test_a_claim_that_meets_robustbenchs_conditions_is_called_one(bench: Bench) -> None:
    card = make_card(
        "m",
        AT,
        clean_accuracy=0.84,
        authors="Alan Turing, Ada Lovelace",
        venue="Mind 1950",
        paper_title="computing machinery",
    )
    done = bench.submit(card, make_record(card, clean=8400, robust=4700, n=10_000))
    assert done.issue_title == "[New Model] Turing1950Computing"
    # Card and record say what the data was; that it was CIFAR-10 only a published fingerprint would prove.
    assert [held.met for held in done.conditions] == [None, True, True, True, True, None, None]
    assert done.conditions[0].text == "Data set: CIFAR-10 by its name (please confirm)"
    assert "nothing additional, by the card (please confirm)" in done.conditions[5].text
    assert "- [ ] Data set" in done.issue and "3 are for you to confirm" in done.issue
    assert "- **Robust accuracy**: 47.00" in done.issue
    assert done.entry.footnote is None and done.entry.unreliable is None
    info = json.loads(done.model_info)
    assert "sam_bench" not in info and info["autoattack_acc"] == "47.00" and None not in info.values()


def test_a_claim_that_does_not_says_which_conditions_it_misses(bench: Bench) -> None:
    card = make_card("m", dataset="cifar10-jpeg", robustbench_dataset="cifar10")
    record = make_record(card, clean=150, robust=90, n=200, eps="1/255", warnings=("zero-gradients: some",))
    done = bench.submit(card, record)
    assert done.path.parent == bench.folder / "cifar10-jpeg" / "Linf" and done.entry.dataset == "cifar10"
    unmet = " ".join(held.text for held in done.conditions if held.met is False)
    assert "200 of the 10,000" in unmet and "Linf 1/255; the official one is 8/255" in unmet
    assert "cifar10-jpeg, whose pixels are not those of CIFAR-10" in unmet and "zero-gradients" in unmet
    assert "4 of the conditions are not met" in done.issue
    assert done.entry.footnote == (
        "evaluated on cifar10-jpeg, not on cifar10; on 200 test examples; at eps 1/255, not 8/255; "
        "AutoAttack warns: zero-gradients: some"
    )


def test_methods_are_labelled_by_recipe_and_telling_settings() -> None:
    awp = ComponentSpec(method="awp", gamma=0.005)
    pair = AT.model_copy(update={"name": "sam-at", "weights": SAM.weights})
    averaged = SAM.model_copy(update={"averaging": ComponentSpec(method="ema", decay=0.999)})
    labels = [
        method_label(recipe) for recipe in (STANDARD, SAM, AT, AT.model_copy(update={"weights": awp}), pair, averaged)
    ]
    assert labels == [
        "Standard",
        "SAM rho=0.2",
        "AT Linf 8/255",
        "AT Linf 8/255, AWP gamma=0.005",
        "SAM-AT Linf 8/255, rho=0.2",
        "SAM rho=0.2, EMA",
    ]


def test_recipes_that_ship_are_labelled_as_papers_write_them() -> None:
    noisy = override(load_recipe("standard"), {"inputs": "gaussian"})
    recipes = [override(load_recipe("at-linf-1"), {"eps": "3/255"}), noisy]
    recipes += [load_recipe(name) for name in ("at-l2-32", "fast-at", "at-rice", "vit-sam", "looksam", "ssam")]
    assert [method_label(build_recipe(recipe).recipe) for recipe in recipes] == [
        "AT Linf 3/255",
        "Standard Gaussian std=8/255",
        "AT L2 32/255",
        "Fast-AT Linf 8/255",
        "AT-Rice Linf 8/255",
        "ViT-SAM rho=0.2",
        "LookSAM rho=0.05",
        "SSAM rho=0.1",
    ]


def test_a_timm_model_is_listed_under_timms_name(bench: Bench) -> None:
    architecture = Architecture(name="timm:vit_tiny_patch16_224", num_classes=10, options={"patch_size": 4})
    card = make_card("m", architecture=architecture)
    entry = bench.submit(card, make_record(card, clean=80, robust=30)).entry
    assert entry.architecture == "vit_tiny_patch16_224 (patch 4)"


def test_an_entry_in_a_folder_that_is_not_its_own_is_refused(bench: Bench) -> None:
    card = make_card("m")
    done = bench.submit(card, make_record(card, clean=80, robust=30))
    done.path.rename(done.path.with_name("better.json"))
    with pytest.raises(InputError, match=r"is the entry of m under Linf: it belongs at Linf/m.json"):
        read_entries(bench.folder)
