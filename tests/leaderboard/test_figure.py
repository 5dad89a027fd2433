"""The figure shows every model, labels do not cover one another, and texts stay texts."""

from __future__ import annotations

import io
import itertools
import random
import re
from xml.etree import ElementTree

import pytest
from leaderboard_samples import AT, SAM, Bench, make_card, make_record
from PIL import Image

from sam_bench.leaderboard import read_entries
from sam_bench.leaderboard.boards import make_boards
from sam_bench.leaderboard.figure import render
from sam_bench.leaderboard.placement import Box, Marker, place_labels


def test_svg_and_png_are_whole_and_show_a_marker_for_every_ranked_row(filled: Bench) -> None:
    boards = make_boards(read_entries(filled.folder))
    svg, png = render(boards)
    ElementTree.fromstring(svg)
    assert Image.open(io.BytesIO(png)).size[0] > 1000
    assert len(re.findall(r'id="PathCollection_\d+"', svg)) == sum(row.ranked for board in boards for row in board.rows)


@pytest.mark.parametrize(("counts", "markers"), [((100, 100), 2), ((100, 50), 1)])
def test_a_panel_shows_the_rows_over_the_examples_that_its_axis_names(
    bench: Bench, counts: tuple[int, int], markers: int
) -> None:
    for name, recipe, n in (("sam", SAM, counts[0]), ("at", AT, counts[1])):
        card = make_card(name, recipe)
        bench.submit(card, make_record(card, clean=40, robust=10, n=n))
    svg, _ = render(make_boards(read_entries(bench.folder)))
    assert "clean accuracy (100 test examples)" in svg
    assert len(re.findall(r'id="PathCollection_\d+"', svg)) == markers


def test_marker_area_is_proportional_to_training_passes(bench: Bench) -> None:
    for name, recipe, passes, robust in (("sam", SAM, 50, 10), ("at", AT, 200, 40)):
        card = make_card(name, recipe, passes=passes)
        bench.submit(card, make_record(card, clean=80, robust=robust))
    svg, _ = render(make_boards(read_entries(bench.folder)))
    widths = []
    for path in re.findall(r'id="PathCollection_\d+".*? d="(M [^"]*)"', svg, flags=re.DOTALL):
        x = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path)[0::2]]
        widths.append(max(x) - min(x))
    assert len(widths) == 2
    assert (max(widths) / min(widths)) ** 2 == pytest.approx(200 / 50, rel=0.02)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a --> b", "$\\frac{1}{", "名前 é"])
def test_any_text_can_be_a_label(bench: Bench, text: str) -> None:
    card = make_card("m", SAM.model_copy(update={"weights": SAM.weights.model_copy(update={"method": text})}))
    bench.submit(card, make_record(card, clean=80, robust=30))
    boards = make_boards(read_entries(bench.folder))
    assert text.lower() in boards[0].rows[0].method.lower()
    ElementTree.fromstring(render(boards)[0])


def test_a_model_without_training_passes_and_one_with_nothing_robust_are_drawn(bench: Bench) -> None:
    card = make_card("m", passes=0)
    bench.submit(card, make_record(card, clean=100, robust=0))
    svg, _ = render(make_boards(read_entries(bench.folder)))
    assert "PathCollection_1" in svg and "nan" not in svg.lower().replace("nano", "")


@pytest.mark.parametrize("seed", range(20))
def test_six_labels_cover_neither_markers_nor_one_another(seed: int) -> None:
    draw = random.Random(seed)
    frame = Box(0, 0, 360, 300)
    markers = [
        Marker(draw.uniform(15, 345), draw.uniform(15, 285), draw.uniform(3, 12), draw.uniform(50, 110), 12)
        for _ in range(6)
    ]
    boxes = place_labels(markers, frame)
    for box, other in itertools.combinations(boxes, 2):
        assert box.overlap(other) == 0
    for box, marker in itertools.product(boxes, markers):
        assert box.overlap(marker.box) < 1e-6
    assert all(box.outside(frame) < 1e-6 for box in boxes)
