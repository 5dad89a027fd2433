"""Tables rank as RobustBench does, show what a record's numbers rest on, and cannot be broken out of."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboard_samples import SAM, STANDARD, Bench, make_card, make_record

from sam_bench.errors import InputError
from sam_bench.leaderboard import build_leaderboard, plain_table, read_entries
from sam_bench.leaderboard.boards import RANKS_EXPLAINED, make_boards
from sam_bench.leaderboard.labels import architecture_label, network_label, parameters_text
from sam_bench.leaderboard.tables import csv_text, escape_latex, escape_markdown, latex, markdown
from sam_bench.records import Architecture, sha256_file, write_record

HOSTILE = "<script>alert(1)</script> & 100% _x_ #1 | a\\b ~^ {$} `*`"


def test_networks_that_differ_are_called_differently() -> None:
    known = {"name": "preactresnet18", "num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}
    named = [
        architecture_label(Architecture(**known, options=options))
        for options in ({}, {"width": 8}, {"width": 8, "activation": "relu"}, {"width": 8, "activation": "silu"})
    ]
    width = "PreActResNet-18 (width 8)"
    assert named == ["PreActResNet-18", width, width, "PreActResNet-18 (width 8, silu)"]
    wide = [network_label("wideresnet", {"depth": depth, "width": 10}) for depth in (28, 34)]
    assert wide == ["WideResNet-28-10", "WideResNet-34-10"]


def test_boards_hold_what_compares_and_rank_by_robust_then_clean_accuracy(filled: Bench) -> None:
    boards = make_boards(read_entries(filled.folder))
    assert [(board.dataset, board.attack, board.eps) for board in boards] == [
        ("cifar10", "autoattack", "8/255"),
        ("cifar10", "pgd-20", "1/255"),
        ("cifar10", "pgd-20", "8/255"),
        ("own-digits", "autoattack", "16/255"),
    ]
    for board in boards:
        ranking = [(-row.row.robust_accuracy, -row.row.clean_accuracy, row.model) for row in board.rows if row.ranked]
        assert ranking == sorted(ranking) and len(ranking) >= len(board.rows) - 1
        assert {(row.row.norm, row.row.attack, str(row.row.eps)) for row in board.rows} == {
            (board.norm, board.attack, board.eps)
        }
    assert [row.model for row in boards[0].rows][-2:] == ["sam-rho0.1", "standard"]  # both 0 %: 95 before 94 clean


def test_a_radius_written_two_ways_is_one_board(bench: Bench) -> None:
    for name, eps in (("a", "8/255"), ("b", "0.031372549019607843")):
        card = make_card(name)
        bench.submit(card, make_record(card, clean=80, robust=30, eps=eps))
    (board,) = make_boards(read_entries(bench.folder))
    assert board.eps == "8/255" and len(board.rows) == 2


HEADERS = (
    *("#", "model", "clean", "robust", "95 % interval", "state", "attack", "eps", "method", "architecture", "epochs"),
    *("training passes", "parameters"),
)
CSV_COLUMNS = (
    *("rank", "model", "dataset", "attack", "norm", "eps", "eps_float", "n_examples", "carried", "clean_percent"),
    *("robust_percent", "robust_low_percent", "robust_high_percent", "state", "method", "architecture", "epochs"),
    *("training_passes", "parameters", "threat", "authors", "engine", "notes", "card", "record", "record_sha256"),
    "checkpoint_sha256",
)


def test_a_table_has_the_columns_asked_for_and_says_how_many_examples(filled: Bench) -> None:
    table = plain_table(make_boards(read_entries(filled.folder))[0])
    assert tuple(table.headers) == HEADERS
    assert table.title == "cifar10 · AutoAttack · Linf 8/255 · 100 test examples"
    assert table.rows[0] == [
        "1",
        "at-eps8",
        "82.00",
        "46.00",
        "36.56 to 55.74",
        "claimed",
        "AutoAttack",
        "Linf 8/255",
        "AT Linf 8/255",
        "PreActResNet-18 (width 16)",
        "10",
        "110",
        "702k",
    ]


def test_doubts_and_fewer_examples_are_marked_and_explained_below(filled: Bench) -> None:
    doubted, smaller = (plain_table(board) for board in make_boards(read_entries(filled.folder))[:2])
    assert [row[1] for row in doubted.rows if "[" in row[1]] == ["sam-rho0.4 [1]"]
    assert doubted.footnotes[0].startswith("[1] zero-gradients")
    assert [row[1] for row in smaller.rows if "[" in row[1]] == ["at-eps4 [1]"]
    assert smaller.footnotes == ["[1] on 50 test examples only: not ranked"]


def test_rows_on_other_images_or_with_other_settings_are_marked(bench: Bench) -> None:
    for name, images, alpha in (("one", "a", "1/255"), ("two", "a", "2/255"), ("three", "b", "2/255")):
        card = make_card(name)
        record = make_record(card, clean=40, robust=30, n=50)
        foreign = record.model_copy(update={"attack": "torchattacks:PGD", "settings": {"steps": 10, "alpha": alpha}})
        bench.submit(
            card, *(each.model_copy(update={"dataset_fingerprint": images * 64}) for each in (record, foreign))
        )
    auto, foreign_board = (plain_table(board) for board in make_boards(read_entries(bench.folder)))
    assert [row[1] for row in auto.rows] == ["one", "two", "three [1]"]
    assert auto.footnotes == ["[1] on other test images (fingerprint bbbbbbbbbbbb…): not ranked"]
    assert [row[1] for row in foreign_board.rows] == ["one [1]", "two [2]", "three [3] [2]"]
    assert foreign_board.footnotes[:2] == ["[1] attacked with alpha 1/255", "[2] attacked with alpha 2/255"]


def test_rows_over_fewer_or_other_images_are_below_all_others_and_have_no_rank(bench: Bench) -> None:
    for name, robust, n, images in (
        ("low", 10, 100, "a"),
        ("high", 30, 100, "a"),
        ("few", 50, 50, "c"),
        ("other", 60, 100, "b"),
    ):
        card = make_card(name)
        bench.submit(
            card, make_record(card, clean=80 * n // 100, robust=robust * n // 100, n=n, dataset_fingerprint=images * 64)
        )
    built = build_leaderboard(bench.folder)
    table = plain_table(built.boards[0])
    assert [(row[0], row[1].split(" ")[0], row[3]) for row in table.rows] == [
        ("1", "high", "30.00"),
        ("2", "low", "10.00"),
        ("–", "other", "60.00"),
        ("–", "few", "50.00"),
    ]
    assert table.title.endswith("100 test examples")
    assert "    -- & few {[}2{]} &" in built.paths["tex"].read_text()
    assert [row["rank"] for row in csv.DictReader(io.StringIO(built.paths["csv"].read_text()))] == ["1", "2", "", ""]


def test_rows_that_the_images_do_not_tell_apart_share_a_rank(bench: Bench) -> None:
    """The samples' verdicts are nested: 5 of 100 images apart give p = 0.0625, 6 give p = 0.03125."""
    for name, robust in (("a", 60), ("b", 55), ("c", 54), ("d", 49), ("e", 48), ("f", 10)):
        card = make_card(name)
        bench.submit(card, make_record(card, clean=80, robust=robust))
    built = build_leaderboard(bench.folder)
    assert [(row.model, row.rank_text) for row in built.rows] == [
        ("a", "1="),
        ("b", "1="),
        ("c", "3="),
        ("d", "3="),
        ("e", "5"),
        ("f", "6"),
    ]
    ranks = [row["rank"] for row in csv.DictReader(io.StringIO(built.paths["csv"].read_text()))]
    assert ranks == ["1", "1", "3", "3", "5", "6"]


def test_the_usual_images_are_those_of_most_rows_not_of_the_first(bench: Bench) -> None:
    for name, images in (("a", "b"), ("b", "a"), ("c", "a")):
        card = make_card(name)
        bench.submit(card, make_record(card, clean=80, robust=30, dataset_fingerprint=images * 64))
    (board,) = make_boards(read_entries(bench.folder))
    assert [(row.model, row.ranked) for row in board.rows] == [("b", True), ("c", True), ("a", False)]


def test_a_row_of_a_curve_says_what_it_carries_where_others_stand_alone(bench: Bench) -> None:
    for name, carried in (("alone", 0), ("curve", 7)):
        card = make_card(name)
        pgd = make_record(card, clean=80, robust=40, attack="pgd", carried=5)
        bench.submit(card, make_record(card, clean=80, robust=30, carried=carried), pgd)
    built = build_leaderboard(bench.folder)
    assert [board.footnotes for board in built.boards] == [("7 examples carried over from smaller radii",), ()]
    assert [row.model for row in built.rows if row.notes] == ["curve"]
    rows = list(csv.DictReader(io.StringIO(built.paths["csv"].read_text())))
    assert [(row["model"], row["carried"]) for row in rows] == [
        ("alone", "0"),
        ("curve", "7"),
        ("alone", "5"),
        ("curve", "5"),
    ]


def test_an_attack_of_a_plug_in_with_other_settings_is_marked_with_those_its_name_does_not_say(bench: Bench) -> None:
    for name, steps, queries in (("one", 10, 10), ("two", 10, 100_000), ("three", 20, 10)):
        card = make_card(name)
        settings = {"steps": steps, "queries": queries}
        foreign = make_record(card, clean=80, robust=40, attack="my-square", settings=settings)
        bench.submit(card, make_record(card, clean=80, robust=30), foreign)
    _, ten, twenty = (plain_table(board) for board in make_boards(read_entries(bench.folder)))
    assert [row[1] for row in ten.rows] == ["one [1]", "two [2]"]
    assert ten.footnotes == ["[1] attacked with queries 10", "[2] attacked with queries 100000"]
    assert twenty.footnotes == []


def test_our_own_attacks_say_in_their_names_all_that_tells_them_apart(bench: Bench) -> None:
    for name, engine, own in (
        ("one", "pyautoattack 0.2.0", {"engine": "reference"}),
        ("two", "sam-bench 0.1.0", {"engine": "fast", "rng": "counter"}),
    ):
        card = make_card(name)
        bench.submit(card, make_record(card, clean=80, robust=30, engine=engine, settings=own))
    (board,) = make_boards(read_entries(bench.folder))
    assert board.footnotes == ()


def test_an_entry_in_the_folder_of_another_data_set_is_refused(filled: Bench) -> None:
    folder = filled.folder / "cifar10"
    folder.rename(filled.folder / "cifar100")
    with pytest.raises(InputError, match=r"is about cifar10, but .* lies among the entries of cifar100"):
        make_boards(read_entries(filled.folder))


def test_markdown_has_as_many_cells_in_every_line_whatever_the_texts(bench: Bench) -> None:
    text = build_with_hostile_texts(bench).paths["md"].read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(HEADERS) + 1}
    assert "<script" not in text and text.endswith(f"{RANKS_EXPLAINED}\n")


def build_with_hostile_texts(bench: Bench) -> Any:
    recipe = SAM.model_copy(update={"weights": SAM.weights.model_copy(update={"method": HOSTILE})})
    architecture = make_card("m").architecture.model_copy(update={"name": HOSTILE})
    card = make_card(
        "m", recipe, authors=HOSTILE, architecture=architecture, paper_title=HOSTILE, paper_link="javascript:x"
    )
    texts: Any = {"warnings": (HOSTILE,), "command": HOSTILE, "device": HOSTILE}
    foreign = make_record(card, clean=80, robust=50, attack="theirs", engine=HOSTILE, settings={HOSTILE: HOSTILE})
    bench.submit(card, make_record(card, clean=80, robust=30, **texts), foreign)
    return build_leaderboard(bench.folder)


def test_latex_escapes_every_special_sign(bench: Bench) -> None:
    text = build_with_hostile_texts(bench).paths["tex"].read_text()
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)&", rows[0])) == len(HEADERS) - 1
    assert not re.search(r"(?<!\\)[%#$_]", rows[0])


@settings(deadline=None)
@given(st.text())
def test_escaped_latex_has_no_bare_special_sign(text: str) -> None:
    escaped = escape_latex(text)
    words = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textperiodcentered)\{\}"
    bare = re.sub(r"\\[&%$#_{}]", "", re.sub(words, "", escaped))
    assert not set(re.sub(r"\{[\[\]]\}", "", bare)) & set("\\&%$#_{}~^<>")


@settings(deadline=None)
@given(st.text())
def test_escaped_markdown_has_no_bare_pipe_tag_or_line_break(text: str) -> None:
    escaped = escape_markdown(text)
    assert not set(escaped) & set("<>\n\r")
    assert not re.search(r"(?<!\\)(\\\\)*[|`*_]", escaped)


def test_csv_holds_every_row_with_unrounded_numbers(filled: Bench) -> None:
    boards = make_boards(read_entries(filled.folder))
    lines = [row for board in boards for row in board.rows]
    rows = list(csv.DictReader(io.StringIO(csv_text(boards))))
    assert tuple(rows[0]) == CSV_COLUMNS and len(rows) == len(lines) == 20
    for text, row in zip(rows, lines, strict=True):
        assert float(text["robust_percent"]) / 100 == pytest.approx(row.row.robust_accuracy, abs=1e-9)
        bounds = (float(text["robust_low_percent"]) / 100, float(text["robust_high_percent"]) / 100)
        assert bounds == pytest.approx(row.interval(), abs=1e-9) and text["state"] == "claimed"
        assert (text["model"], int(text["n_examples"])) == (row.model, row.row.n_examples)


def test_csv_text_is_no_formula_of_a_spreadsheet(bench: Bench) -> None:
    card = make_card("m", authors='=HYPERLINK("x")')
    bench.submit(card, make_record(card, clean=80, robust=30))
    (row,) = csv.DictReader(io.StringIO(build_leaderboard(bench.folder).paths["csv"].read_text()))
    assert row["authors"] == '\'=HYPERLINK("x")'


def test_building_twice_gives_the_same_bytes(bench: Bench) -> None:
    for name, recipe, robust in (("a", STANDARD, 3), ("b", SAM, 9)):
        card = make_card(name, recipe)
        bench.submit(card, make_record(card, clean=80, robust=robust))
    first = {form: path.read_bytes() for form, path in build_leaderboard(bench.folder).paths.items()}
    second = {form: path.read_bytes() for form, path in build_leaderboard(bench.folder).paths.items()}
    assert first == second and set(first) == {"md", "tex", "csv", "html", "svg", "png"}


@pytest.mark.parametrize("folder", ["leaderboards", "benchmarks/results/what-they-buy-w8/leaderboards"])
def test_the_leaderboards_of_this_repository_are_what_their_cards_and_records_give(folder: str) -> None:
    path = Path(__file__).parents[2] / folder
    boards = make_boards(read_entries(path))
    assert all(row.card_found for board in boards for row in board.rows)
    assert csv_text(boards) == (path / "leaderboard.csv").read_text()
    assert markdown(boards) == (path / "leaderboard.md").read_text()
    if (path / "leaderboard.tex").exists():
        assert latex(boards) == (path / "leaderboard.tex").read_text()


def test_an_empty_folder_is_refused_with_the_command_that_fills_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="sam-bench leaderboard submit MODEL RECORD"):
            build_leaderboard(folder)


def edited(bench: Bench, change: Any) -> Path:
    """An entry of one model after `change` was done to its JSON."""
    card = make_card("m")
    path: Path = bench.submit(card, make_record(card, clean=80, robust=30)).path
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["sam_bench"]["rows"][0].update(robust_accuracy=0.6), "robust_accuracy of the row"),
        (lambda entry: entry["sam_bench"]["rows"][0].update(warnings=["x"]), "warnings of the row"),
        (lambda entry: entry["sam_bench"]["rows"][0].update(record_sha256="0" * 64), "SHA-256 expected 0000"),
        (lambda entry: entry["sam_bench"]["rows"][0].update(record="../m.json"), "not of the form records/NAME.json"),
        (lambda entry: entry["sam_bench"].update(checkpoint_sha256="0" * 64), "is about checkpoint"),
        (lambda entry: entry.pop("venue"), "venue"),
    ],
)
def test_an_entry_that_its_records_do_not_bear_out_is_refused(bench: Bench, change: Any, message: str) -> None:
    path = edited(bench, change)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        build_leaderboard(bench.folder)
    assert str(path.parent) in str(refusal.value)
    assert not list(bench.folder.glob("leaderboard.*"))


FROM_RECORDS: list[tuple[str, Any, str]] = [
    ("autoattack_acc", "66.00", '"30.00"'),
    ("reported", "66.00", '"30.00"'),
    ("eps", "16/255", '"8/255"'),
    ("external", "20.00", "null"),
    ("number_forward_passes", 2, "1"),
    ("footnote", None, '"on 100 test examples"'),
    ("unreliable", True, "null"),
]
FROM_CARD: list[tuple[str, Any, str]] = [
    ("additional_data", True, "false"),
    ("architecture", "WideResNet-70-16", '"PreActResNet-18 (width 16)"'),
    ("dataset", "imagenet", '"cifar10"'),
    ("sam_bench.method", "TRADES", '"SAM rho=0.2"'),
    ("sam_bench.epochs", 1, "10"),
    ("sam_bench.passes", 1.0, "20.0"),
    ("sam_bench.parameters", 10, "702442"),
]


def rewrite(field: str, value: Any) -> Any:
    """A change that sets a field, `sam_bench.` before those of our block."""
    *block, name = field.split(".")
    return lambda entry: (entry[block[0]] if block else entry).update({name: value})


@pytest.mark.parametrize(("field", "value", "right"), FROM_RECORDS + FROM_CARD)
def test_an_entry_that_its_card_does_not_bear_out_is_refused(bench: Bench, field: str, value: Any, right: str) -> None:
    path = edited(bench, rewrite(field, value))
    with pytest.raises(InputError) as refusal:
        build_leaderboard(bench.folder)
    message = str(refusal.value)
    assert (
        message.startswith(f"{path}: {field} is {json.dumps(value)}, but its card ") and f" give {right}: " in message
    )
    assert not list(bench.folder.glob("leaderboard.*"))


@pytest.mark.parametrize(("field", "value", "right"), FROM_RECORDS)
def test_what_follows_from_the_records_is_checked_without_a_card(
    bench: Bench, field: str, value: Any, right: str
) -> None:
    path = edited(bench, rewrite(field, value))
    bench.card_path("m").unlink()
    with pytest.raises(InputError) as refusal:
        build_leaderboard(bench.folder)
    assert f"{path}: {field} is {json.dumps(value)}, but its records give {right}: " in str(refusal.value)


def test_who_wrote_the_paper_and_where_it_is_may_be_edited_by_hand(bench: Bench) -> None:
    edited(bench, lambda entry: entry.update(link="https://x.org", name="Title", authors="Ada", venue="Mind 1950"))
    (row,) = build_leaderboard(bench.folder).rows
    assert (row.entry.authors, row.notes) == ("Ada", ())


def test_an_entry_whose_card_is_listed_elsewhere_is_refused(bench: Bench) -> None:
    card = make_card("m")
    bench.submit(card, make_record(card, clean=80, robust=30))
    bench.card_path("m").write_text(card.model_copy(update={"threat": "L2"}).model_dump_json())
    with pytest.raises(InputError, match=r"is of cifar10/Linf/m, but its card .* of cifar10/L2/m"):
        build_leaderboard(bench.folder)


def test_an_entry_without_its_autoattack_row_is_refused(bench: Bench) -> None:
    card = make_card("m")
    pgd = make_record(card, clean=80, robust=40, attack="pgd")
    path = bench.submit(card, make_record(card, clean=80, robust=30), pgd).path
    fields = json.loads(path.read_text())
    del fields["sam_bench"]["rows"][0]
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"m\.json has no row of AutoAttack \(standard\) in Linf"):
        build_leaderboard(bench.folder)


def test_a_record_that_did_not_run_what_it_is_called_is_refused_when_it_is_built(bench: Bench) -> None:
    card = make_card("m")
    done = bench.submit(card, make_record(card, clean=80, robust=30))
    (copy,) = done.records
    write_record(copy, make_record(card, clean=80, robust=30, attacks=["apgd-ce", "square"]))
    done.path.write_text(done.path.read_text().replace(done.entry.sam_bench.rows[0].record_sha256, sha256_file(copy)))
    with pytest.raises(InputError, match=r"but accuracy_after names apgd-ce, square: evaluate with the whole attack"):
        build_leaderboard(bench.folder)


def test_a_missing_record_is_named(bench: Bench) -> None:
    card = make_card("m")
    bench.submit(card, make_record(card, clean=80, robust=30)).records[0].unlink()
    with pytest.raises(InputError, match=r"m-autoattack-Linf-8over255\.json"):
        build_leaderboard(bench.folder)


def test_a_card_that_is_gone_or_of_other_weights_is_said_not_hidden(bench: Bench) -> None:
    gone, changed = make_card("gone", STANDARD), make_card("changed")
    for card in (gone, changed):
        bench.submit(card, make_record(card, clean=80, robust=30))
    bench.card_file(gone).unlink()
    bench.card_file(changed.model_copy(update={"weights": gone.weights}))
    rows = {row.model: row for row in build_leaderboard(bench.folder).rows}
    stated = "method, network and cost as the entry states them"
    assert not rows["gone"].card_found and rows["gone"].notes == (f"no card at hand: {stated}",)
    assert rows["changed"].notes == (f"the card now describes other weights than the ones evaluated: {stated}",)


@settings(deadline=None)
@given(st.integers(1, 10**10))
def test_parameters_are_shown_to_three_digits(number: int) -> None:
    text = parameters_text(number)
    unit = {"k": 1e3, "M": 1e6, "B": 1e9}.get(text[-1], 1)
    assert float(text.rstrip("kMB")) * unit == pytest.approx(number, rel=0.006)
