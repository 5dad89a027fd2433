"""Replay holds stored examples against the model; audit attacks random ones of those claimed robust again."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import CPU, Nearest, digits, problem_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from sam_bench.errors import InputError
from sam_bench.evaluation import Local, evaluate_curve_of
from sam_bench.evaluation.adversarial import AdversarialExamples, about_record, largest_level, packed, read_adversarial
from sam_bench.evaluation.audit import audit, draw
from sam_bench.evaluation.replay import as_input, compact, replay
from sam_bench.perturb.ball import Ball
from sam_bench.records import ROBUST, EvaluationRecord, Radius
from sam_bench.records.sampling import clopper_pearson

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def nearest() -> Nearest:
    return Nearest()


@pytest.fixture(scope="module")
def evaluated(nearest: Nearest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationRecord, bytes]:
    """A record over 60 digits, and the file of its adversarial examples."""
    path = tmp_path_factory.mktemp("replay") / "r.json"
    problem = problem_of(nearest, digits(), save_adversarial=True, eps=Radius("24/255"))
    (record,) = evaluate_curve_of(problem, [problem.eps], [path], executor=Local(CPU))
    assert {"robust", "misclassified", "pgd"} == set(record.verdicts)
    return record, path.with_suffix(".adversarial.npz").read_bytes()


def read(content: bytes, record: EvaluationRecord) -> AdversarialExamples:
    return read_adversarial(content, "file", record, digits())


def test_what_an_evaluation_keeps_is_replayed(nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes]) -> None:
    record, content = evaluated
    examples = read(content, record)
    assert examples.about == about_record(record)
    at_most = replay(nearest, digits(), record, examples.x_adv, device=CPU, batch_size=25)
    assert at_most == pytest.approx(record.robust_accuracy)


def test_compact_examples_are_bytes_that_still_fool_the_model(
    nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes]
) -> None:
    record, content = evaluated
    small = compact(nearest, digits(), record, read(content, record), device=CPU)
    kinds = [image.dtype for image in small.x_adv.values()]
    assert kinds.count(np.dtype("uint8")) > len(kinds) / 2
    again = read(packed(small, digits()), record)
    assert list(again.x_adv) and again.about == small.about
    for place, image in again.x_adv.items():
        assert image.dtype == small.x_adv[place].dtype and np.array_equal(image, small.x_adv[place])
        x, y = digits().images[place].float() / 255, int(digits().labels[place])
        assert float((as_input(image) - x).abs().max()) <= 24 / 255 + 1e-6
        assert int(nearest(as_input(image)[None]).argmax()) != y
    assert replay(nearest, digits(), record, again.x_adv, device=CPU) == pytest.approx(record.robust_accuracy)


def test_what_does_not_survive_rounding_stays_float(
    nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes]
) -> None:
    record, _ = evaluated
    problem = problem_of(nearest, digits())
    # In a ball of half a level, rounding leaves nothing of a perturbation.
    tiny = record.model_copy(update={"eps": Radius("0.5/255"), "eps_float": 0.5 / 255})
    place = record.verdicts.index("pgd")
    image = (problem.test.images[place].float() / 255 + 0.4 / 255).clamp(0, 1).numpy()
    small = compact(nearest, digits(), tiny, AdversarialExamples({}, {place: image}), device=CPU)
    assert small.x_adv[place].dtype == np.float32 and np.array_equal(small.x_adv[place], image)


class Answers(torch.nn.Module):
    """The model with its answer to one image changed."""

    def __init__(self, module: Nearest, image: torch.Tensor, change: float) -> None:
        super().__init__()
        self.module, self.image, self.change = module, image, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        same = (x - self.image).flatten(1).abs().amax(1, keepdim=True) < 1e-7
        logits: torch.Tensor = self.module(x)
        return torch.where(same, logits * self.change, logits)


@pytest.mark.parametrize(
    ("change", "reason"), [(-1.0, "the model classifies otherwise"), (float("nan"), "answers NaN")]
)
def test_another_answer_is_seen(
    nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes], change: float, reason: str
) -> None:
    record, content = evaluated
    place = record.verdicts.index(ROBUST)
    other = Answers(nearest, digits().images[place].float() / 255, change)
    with pytest.raises(InputError, match=reason):
        replay(other, digits(), record, read(content, record).x_adv, device=CPU)


def test_one_answer_in_a_thousand_may_differ_and_counts_against_the_record(
    nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes]
) -> None:
    """Another device rounds otherwise; over 1,000 examples one robust one is found misclassified."""
    split, (record, content) = digits(60), evaluated
    many = dataclasses.replace(split, images=split.images.repeat(17, 1, 1, 1), labels=split.labels.repeat(17))
    stored = {60 * k + place: image for place, image in read(content, record).x_adv.items() for k in range(17)}
    verdicts = record.verdicts * 17
    place = record.verdicts.index("misclassified")
    for flipped in ((place,), (place, place + 60)):
        forged = record.model_copy(
            update={"n_examples": 1020, "verdicts": [ROBUST if i in flipped else v for i, v in enumerate(verdicts)]}
        )
        if len(flipped) == 2:
            with pytest.raises(InputError, match="at 2 of 1,020 test examples, the first"):
                replay(nearest, many, forged, stored, device=CPU)
        else:
            assert replay(nearest, many, forged, stored, device=CPU) == pytest.approx(record.robust_accuracy)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_projection_lies_in_the_ball_and_a_hundredth_more_does_not(norm: Any) -> None:
    x = torch.rand(50, 3, 8, 8) * 0.5 + 0.25
    ball = Ball(norm, {"Linf": 0.1, "L2": 0.5, "L1": 3.0}[norm])
    x_adv = ball.project(x + torch.randn_like(x), x)
    assert bool(ball.contains(x_adv, x).all())
    assert not bool(ball.contains(x + 1.01 * (x_adv - x), x).any())
    for value in (-1e-3, 1.001, float("nan"), float("inf")):
        wrong = x.clone()
        wrong[:, 0, 0, 0] = value
        assert not bool(Ball(norm, 1e6).contains(wrong, x).any())


def _archive(**members: bytes | np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            data = io.BytesIO()
            if isinstance(content, bytes):
                data.write(content)
            else:
                np.save(data, content, allow_pickle=True)
            archive.writestr(f"{name}.npy", data.getvalue())
    return file.getvalue()


INDEX, IMAGES = np.arange(2), np.zeros((2, *SHAPE), np.float32)
HEADER = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")


LEVELS = np.zeros((2, *SHAPE), np.int8)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"x_adv": None}, "is not a file of adversarial examples"),
        ({"code": INDEX}, "'code.npy', which does not belong"),
        ({"x_adv": np.array([len] * 2)}, "x_adv is not a plain array"),
        ({"x_adv": np.zeros((2, 1, 400, 400), np.float32)}, "x_adv is larger than"),
        ({"x_adv": IMAGES.astype(np.float64)}, "not float32"),
        ({"x_adv": IMAGES[:1]}, "not float32"),
        ({"index": INDEX + 59}, "index leads outside the 60 test examples"),
        ({"index": INDEX * 0}, "index holds an example twice"),
        ({"index": INDEX.astype(float)}, "index is not int64"),
        ({"eps": np.array([b"x" * 9000])}, "eps is larger than"),
        ({"eps": np.array(3)}, "eps is not a text"),
        ({"eps": np.array("8/255")}, "is of eps 8/255, but its record of 24/255"),
        ({"format": np.array("1")}, "is in format '1', not 2"),
        ({"format": None}, "is in format '1', not 2"),
        (
            {"x_adv": HEADER + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 8, 999999999)}".ljust(118)},
            "x_adv is cut short, or longer than its header says",
        ),
        ({"index_levels": INDEX, "levels": LEVELS}, "holds example 0 twice"),
        ({"index_levels": INDEX + 2, "levels": LEVELS + np.int8(25)}, "example 2 reach 25, but .* beyond 24"),
        ({"index_levels": INDEX + 2, "levels": LEVELS + np.int8(-128)}, "example 2 reach 128"),
        ({"index_levels": INDEX + 2, "levels": LEVELS - np.int8(1)}, "example 2 lead outside .* below 0 or above 255"),
        ({"index_levels": INDEX + 2, "levels": LEVELS.view(np.uint8)}, "levels is uint8"),
        ({"index_levels": INDEX + 2, "levels": LEVELS[:, :, :4]}, r"levels is int8 \[2, 1, 4, 8\], not"),
        ({"index_levels": INDEX + 2}, "is not a file of adversarial examples"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(
    evaluated: tuple[EvaluationRecord, bytes], members: dict[str, Any], reason: str
) -> None:
    record, _ = evaluated
    about = {name: np.array(text) for name, text in about_record(record).items()}
    whole = {**about, "format": np.array("2"), "index": INDEX, "x_adv": IMAGES}
    assert set(read(_archive(**whole), record).x_adv) == {0, 1}
    with pytest.raises(InputError, match=reason):
        read(_archive(**{name: each for name, each in {**whole, **members}.items() if each is not None}), record)


@pytest.mark.parametrize("content", [b"", slice(0, -40)])
def test_what_is_no_archive_is_refused(evaluated: tuple[EvaluationRecord, bytes], content: bytes | slice) -> None:
    record, whole = evaluated
    with pytest.raises(InputError, match="is not a file of adversarial examples"):
        read(whole[content] if isinstance(content, slice) else content, record)


def test_levels_are_small_and_mean_nothing_without_their_images(
    nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes]
) -> None:
    record, content = evaluated
    small = packed(compact(nearest, digits(), record, read(content, record), device=CPU), digits())
    assert len(small) < len(content)
    with np.load(io.BytesIO(small)) as archive:
        levels, places = archive["levels"], archive["index_levels"]
    assert levels.dtype == np.int8 and abs(levels.astype(int)).max() <= 24
    shown = read_adversarial(small, "file", record, digits()).x_adv
    for place, level in zip(places.tolist(), levels, strict=True):
        clean = digits().images[place].numpy().astype(int)
        assert np.array_equal(shown[place].astype(int), clean + level)
    other = dataclasses.replace(digits(), images=digits().images.flip(0))
    with pytest.raises(InputError, match=r"outside ball and box|does not fool|test examples, the first"):
        replay(nearest, digits(), record, read_adversarial(small, "file", record, other).x_adv, device=CPU)


@pytest.mark.parametrize(("eps", "most"), [("1/255", 1), ("2/255", 2), ("8/255", 8), ("0.0313", 7), ("0.5/255", 0)])
def test_the_ball_says_how_far_levels_go(eps: str, most: int) -> None:
    assert largest_level(Radius(eps)) == most
    assert largest_level(Radius("3")) == 127


def test_more_levels_than_int8_holds_are_kept_as_float(evaluated: tuple[EvaluationRecord, bytes]) -> None:
    record, _ = evaluated
    wide = record.model_copy(update={"eps": Radius("200/255"), "eps_float": 200 / 255})
    clean = digits().images[0].numpy()
    image = np.where(clean == 0, np.uint8(200), clean)
    content = packed(AdversarialExamples(about_record(wide), {0: image}), digits())
    (kept,) = read(content, wide).x_adv.values()
    assert kept.dtype == np.float32 and np.array_equal((kept * 255).round(), image)


def test_a_draw_is_decided_by_the_beacon_and_the_manifest() -> None:
    claimed = list(range(0, 1000, 3))
    known: dict[str, str] = {"beacon": "b", "manifest_sha256": "m", "record_sha256": "r"}
    drawn = draw(claimed, 50, **known)
    assert drawn == sorted(set(drawn)) and len(drawn) == 50 and set(drawn) <= set(claimed)
    assert draw(claimed[::-1], 50, **known) == drawn
    for name in known:
        assert len(set(draw(claimed, 50, **known | {name: "other"})) & set(drawn)) < 25
    assert draw(claimed, 5000, **known) == claimed


@given(sample=st.integers(1, 300), share=st.floats(0, 1), level=st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_is_the_share_at_which_so_few_become_unlikely(sample: int, share: float, level: float) -> None:
    broken = int(share * sample)
    bound = clopper_pearson(broken, sample, level)
    if broken < sample:
        assert binom.cdf(broken, sample, bound) == pytest.approx(1 - level, abs=1e-6)
    else:
        assert bound == 1.0


def test_an_audit_finds_false_claims_and_bounds_the_accuracy(
    nearest: Nearest, evaluated: tuple[EvaluationRecord, bytes]
) -> None:
    record, _ = evaluated
    forged = record.model_copy(update={"verdicts": [ROBUST if v == "pgd" else v for v in record.verdicts]})
    drawn = [place for place, verdict in enumerate(record.verdicts) if verdict == "pgd"][:4]
    found = audit(nearest, digits(), forged, drawn, beacon="b", device=CPU)
    assert found.broken == drawn and found.may_be_false == 1.0 and found.at_least == 0.0
    sound = record.verdicts.index(ROBUST)
    true = audit(nearest, digits(), record, [sound], beacon="b", device=CPU)
    assert true.broken == [] and true.may_be_false == pytest.approx(0.95)
    assert true.at_least == pytest.approx(record.robust_accuracy * 0.05)
