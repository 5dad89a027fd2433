"""From a model and images to a record: every number in it follows from the model, the images and the attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_samples import Nearest, digits, evaluate, loaded, problem_of
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS, Attack, AttackWarning, Event, Examples, Progress, Verifier
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.data import Split, to_float
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation.executors import local
from sam_bench.evaluation.results import existing
from sam_bench.progress import SilentReporter
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec, Radius, write_record
from sam_bench.versions import package_versions


@pytest.fixture(scope="module")
def test_split() -> Split:
    return digits()


@pytest.fixture(scope="module")
def nearest() -> Nearest:
    return Nearest()


def test_a_record_says_what_ran_on_what_and_what_came_out(nearest: Nearest, test_split: Split) -> None:
    record = evaluate(nearest, test_split)
    x, y = to_float(test_split.images), test_split.labels
    direct = PGDAttack(steps=5).run(nearest, x, y, norm="Linf", eps=16 / 255, seed=3, batch_size=25)
    assert record.verdicts == direct.verdicts and {ROBUST, "pgd", MISCLASSIFIED} == set(record.verdicts)
    assert record.clean_accuracy == pytest.approx((nearest(x).argmax(1) == y).float().mean().item())
    assert record.accuracy_after == {"pgd": record.robust_accuracy}
    assert record.dataset_fingerprint == test_split.fingerprint and record.checkpoint_sha256 == "a" * 64
    assert (str(record.eps), record.eps_float, record.norm) == ("16/255", 16 / 255, "Linf")
    assert (record.attack, record.version, record.engine.split()[0]) == ("pgd", "", "sam-bench")
    assert record.settings == {"steps": 5, "restarts": 1, "random_start": True}
    assert (record.seed, record.batch_size, record.n_examples) == (3, 25, 60)
    assert record.packages == package_versions() and record.created.endswith("+00:00")
    assert record.command == "sam-bench evaluate nearest" and record.model == "nearest"


@pytest.mark.parametrize("start", [{"random_start": False}, {"restarts": 2}])
def test_the_settings_of_a_record_build_the_attack_again(
    start: dict[str, Any], nearest: Nearest, test_split: Split
) -> None:
    attack = PGDAttack(steps=3, step_size="2/255", **start)
    record = evaluate(nearest, test_split, attack)
    again = ATTACKS.build(ComponentSpec(method=record.attack, **record.settings))
    assert again == attack and record.settings["step_size"] == "2/255"
    assert evaluate(nearest, test_split, again).verdicts == record.verdicts


def test_at_radius_zero_robust_is_clean_and_more_radius_only_costs(nearest: Nearest, test_split: Split) -> None:
    found = [evaluate(nearest, test_split, eps=Radius(eps)) for eps in ("0", "4/255", "16/255", "0.2")]
    assert found[0].robust_accuracy == found[0].clean_accuracy
    robust = [record.robust_accuracy for record in found]
    assert robust == sorted(robust, reverse=True) and len(set(robust)) == 4
    assert len({record.clean_accuracy for record in found}) == 1


def test_a_part_of_the_test_set_gets_the_verdicts_it_has_in_the_whole(nearest: Nearest, test_split: Split) -> None:
    attack = PGDAttack(steps=5)
    whole, part = evaluate(nearest, test_split, attack), evaluate(nearest, test_split.head(20), attack)
    assert part.verdicts == whole.verdicts[:20] and part.n_examples == 20
    assert part.dataset_fingerprint != whole.dataset_fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (3, 32, 32)}, r"nearest takes images of 3 channels of 32x32.*digits has 1 channel of 8x8"),
        ({"num_classes": 4}, r"nearest knows 4 classes.*digits has labels up to 9"),
        ({"num_classes": 12}, r"logits of shape \[B,10\], expected 12 classes"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_before_the_attack(
    changes: dict[str, Any], message: str, nearest: Nearest, test_split: Split
) -> None:
    with pytest.raises(SamBenchError, match=message):
        evaluate(nearest, test_split, Unreached(), model=loaded(nearest, **changes))


class Few(Nearest):
    """The first three classes alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :3]


class Unseeing(Nearest):
    """Without a gradient, as behind a purification that is not differentiated."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


CUSTOM = {"version": "custom", "suite": ("apgd-ce", "square")}


@pytest.mark.parametrize(
    ("module", "attack", "changes", "message"),
    [
        (Few, AutoAttack(), {}, "needs at least 4 classes .* and the model has 3: use .* suite='apgd-ce,fab-t,square'"),
        (Few, AutoAttack(engine="reference"), {}, "needs at least 4 classes"),
        (Few, ATTACKS.get("autoattack-screen")(), {}, "needs at least 4 classes"),
        (Nearest, AutoAttack(**CUSTOM), {"norm": "L2", "size": 4}, "needs images of at least 5x5 pixels, not 4x4"),
        (Nearest, AutoAttack(**CUSTOM, engine="reference"), {"norm": "L2", "size": 14}, "use engine='fast'"),
        (Unseeing, PGDAttack(), {}, "has no gradient .* pgd follows .*: use attack='autoattack' version='custom'"),
        (Unseeing, AutoAttack(), {}, "has no gradient .* autoattack follows"),
        (Unseeing, AutoAttack(engine="reference"), {}, "has no gradient .* autoattack follows"),
    ],
)
def test_an_attack_that_cannot_be_run_on_the_model_is_refused_before_anything_is_begun(
    module: type[Nearest], attack: Attack, changes: dict[str, Any], message: str
) -> None:
    size, made = changes.pop("size", 8), module()
    images = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    if size != 8:
        made.means = nn.Parameter(torch.rand(10, size * size))
    model = loaded(made, num_classes=3 if module is Few else 10, input_shape=(1, size, size))
    evaluation = problem_of(made, Split(images, torch.tensor([0, 1])), attack, model=model, **changes)
    with pytest.raises(InputError, match=message):
        evaluation.check()


def test_what_is_recommended_instead_is_not_refused(test_split: Split) -> None:
    three = test_split.labels < 3
    split = Split(test_split.images[three], test_split.labels[three])
    instead = AutoAttack(version="custom", suite=("apgd-ce", "fab-t", "square"))
    few = Few()
    problem_of(few, split, instead, model=loaded(few, num_classes=3)).check()
    blind = evaluate(Unseeing(), split.head(2), AutoAttack(version="custom", suite=("square",)))
    assert set(blind.verdicts) <= {ROBUST, "square", MISCLASSIFIED}


class Unreached(PGDAttack):
    def seek(self, *_: Any, **__: Any) -> list[str]:
        raise AssertionError("the attack was started")


class Broken(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 10), self.value)


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_model_that_returns_no_numbers_is_named_before_the_attack(value: float, what: str, test_split: Split) -> None:
    with pytest.raises(SamBenchError, match=rf"nearest returns {what}"):
        evaluate(Broken(value), test_split, Unreached())


class Chain(Attack):
    """Two attacks in a row, each of which claims what it finds; not registered, so that it is nobody's option."""

    method = "chain"

    @property
    def attacks(self) -> list[str]:
        return ["first", "second"]

    def events(self, model: nn.Module, examples: Examples, verifier: Verifier, **how: Any) -> Iterator[Event]:
        half, count = len(examples) // 2, len(examples)
        for stage, total in (("first", count), ("second", count - half)):
            for done in range(1, total + 1):
                yield Progress(stage, done, total, count - done)
        rows = torch.arange(count)
        broken = rows[verifier.check(rows, how["ball"].project(1 - examples.x, examples.x))]
        yield from examples.verdicts(broken[broken < half], "first")
        yield from examples.verdicts(broken[broken >= half], "second")
        yield AttackWarning("chain", "a warning")


def test_each_attack_of_an_ensemble_is_counted_in_its_order(nearest: Nearest, test_split: Split) -> None:
    record = evaluate(nearest, test_split, Chain(), eps=Radius("0.6"))
    first, second = record.verdicts.count("first"), record.verdicts.count("second")
    right = 60 - record.verdicts.count(MISCLASSIFIED)
    assert first and second and record.warnings == ["chain: a warning"]
    assert list(record.accuracy_after.items()) == [
        ("first", pytest.approx((right - first) / 60)),
        ("second", pytest.approx((right - first - second) / 60)),
    ]


@pytest.mark.parametrize(
    ("attack", "changes", "differs"),
    [
        (PGDAttack(steps=2), {}, None),
        (PGDAttack(steps=2), {"batch_size": 16}, None),
        (PGDAttack(steps=2), {"seed": 4}, "seed = 3 and this command gives 4"),
        (PGDAttack(steps=2), {"eps": Radius("8/255")}, "eps = 16/255 and this command gives 8/255"),
        (PGDAttack(steps=2), {"dataset": "figures"}, "dataset = digits and this command gives figures"),
        (PGDAttack(steps=2), {"attack": PGDAttack(steps=3)}, r"settings = .*'steps': 2.* gives .*'steps': 3"),
        (Chain(), {}, None),
        (Chain(), {"batch_size": 16}, "batch_size = 25 and this command gives 16"),
    ],
)
def test_a_finished_record_is_given_back_for_its_own_evaluation_and_kept_from_any_other(
    attack: Attack, changes: dict[str, Any], differs: str | None, nearest: Nearest, test_split: Split, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    record = evaluate(nearest, test_split, attack)
    write_record(path, record)
    other = problem_of(nearest, test_split, **{"attack": attack, **changes})
    if differs is None:
        assert existing(path, other, resume=True) == record
        assert existing(path, other, resume=False) is None
        return
    before = path.read_bytes()
    for resume in (True, False):
        with pytest.raises(InputError, match=rf"record\.json is the finished record of another .*: it has {differs}"):
            existing(path, other, resume=resume)
    assert path.read_bytes() == before


def test_another_architecture_around_the_same_weights_is_another_model(
    nearest: Nearest, test_split: Split, tmp_path: Path
) -> None:
    """With another mean and standard deviation on the card, the weights are the same and the answers are not."""
    path = tmp_path / "record.json"
    model, other = (loaded(nearest, architecture_sha256=letter * 64) for letter in "bc")
    record = evaluate(nearest, test_split, model=model)
    assert record.architecture_sha256 == "b" * 64
    write_record(path, record)
    assert existing(path, problem_of(nearest, test_split, model=model), resume=True) == record
    for resume in (True, False):
        with pytest.raises(InputError, match=rf"it has architecture_sha256 = {'b' * 64} and this .* gives {'c' * 64}"):
            existing(path, problem_of(nearest, test_split, model=other), resume=resume)
    # One from before it was written down may be of either; that of a bare module never had one.
    write_record(path, record.model_copy(update={"architecture_sha256": None}))
    with pytest.raises(InputError, match=r"it has architecture_sha256 = None and this command gives b"):
        existing(path, problem_of(nearest, test_split, model=model), resume=True)
    assert existing(path, problem_of(nearest, test_split), resume=True) is not None


def test_an_evaluation_of_no_examples_is_refused(nearest: Nearest) -> None:
    with pytest.raises(InputError, match="data set digits has no test images: there is nothing to attack"):
        evaluate(nearest, Split(digits().images[:0], digits().labels[:0]), Unreached())


def test_a_record_made_alone_serves_a_curve_as_if_the_smaller_ball_had_been_searched_first(
    nearest: Nearest, test_split: Split, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    # Larger steps for the smaller ball: it breaks what the larger one does not.
    smaller = evaluate(nearest, test_split, PGDAttack(steps=5), eps=Radius("12/255"))
    attack = PGDAttack(steps=1)
    alone = evaluate(nearest, test_split, attack)
    write_record(path, alone)
    carried = smaller.broken
    in_curve = evaluate(nearest, test_split, attack, carried=carried)
    assert in_curve.verdicts != alone.verdicts
    asked = problem_of(nearest, test_split, attack, carried=carried)
    found = existing(path, asked, resume=True)
    assert found is not None and found.verdicts == in_curve.verdicts and found.carried == len(carried)
    assert found.robust_accuracy == in_curve.robust_accuracy < alone.robust_accuracy
    # Nobody said that what is there may be used or replaced.
    with pytest.raises(InputError, match=r"carried = 0 and this command gives \d+; add resume=True to build on it"):
        existing(path, asked, resume=False)
    # Before it is known what will be carried over, it can be built on, and fits only if it is nothing.
    before = problem_of(nearest, test_split, attack)
    assert existing(path, before, resume=True, carries=True) == alone
    with pytest.raises(InputError, match=r"what smaller balls break; add resume=True to build on it, or delete it$"):
        existing(path, before, resume=False, carries=True, curve=True)
    # The other way round it is too late.
    write_record(path, in_curve)
    with pytest.raises(InputError, match=r"has carried = \d+ and this command gives 0; delete it"):
        existing(path, problem_of(nearest, test_split, attack), resume=True)


def test_a_record_of_a_curve_serves_one_that_carries_the_same_and_more(
    nearest: Nearest, test_split: Split, tmp_path: Path
) -> None:
    path, attack = tmp_path / "record.json", PGDAttack(steps=1)
    more = evaluate(nearest, test_split, PGDAttack(steps=5)).broken
    small = dict(list(more.items())[:3])
    record = evaluate(nearest, test_split, attack, carried=small)
    write_record(path, record)
    found = existing(path, problem_of(nearest, test_split, attack, carried=more), resume=True)
    assert found is not None and found.carried == len(more) > len(small) and found.verdicts != record.verdicts
    assert found.verdicts == evaluate(nearest, test_split, attack, carried=more).verdicts
    # One that carried examples which are not carried now did not attack them.
    (other, *_) = small
    others = {place: verdict for place, verdict in small.items() if place != other}
    others |= {place: "pgd" for place, each in enumerate(record.verdicts) if each == ROBUST}
    assert len(others) > len(small)
    with pytest.raises(InputError, match=rf"has carried = {len(small)} and this command gives {len(others)}; delete"):
        existing(path, problem_of(nearest, test_split, attack, carried=others), resume=True)


def test_verdicts_that_depend_on_the_batch_serve_their_own_curve_only(
    nearest: Nearest, test_split: Split, tmp_path: Path
) -> None:
    path, asked = tmp_path / "record.json", problem_of(nearest, test_split, Chain())
    write_record(path, evaluate(nearest, test_split, Chain()))
    for resume in (True, False):
        with pytest.raises(InputError, match=r"has carried = 0 and this command gives what .* break; delete it, or"):
            existing(path, asked, resume=resume, carries=True)
    carried = {0: "first"}
    in_curve = evaluate(nearest, test_split, Chain(), carried=carried)
    write_record(path, in_curve)
    assert existing(path, asked, resume=True, carries=True) == in_curve
    with pytest.raises(InputError, match=r"has carried = 1 and this command gives 2; delete it"):
        existing(path, problem_of(nearest, test_split, Chain(), carried=carried | {1: "first"}), resume=True)


@pytest.mark.parametrize("attack", [PGDAttack(steps=3), AutoAttack(version="custom", suite=("apgd-ce", "fab"))])
def test_the_inputs_that_are_held_at_a_time_are_bounded(
    attack: Attack, nearest: Nearest, test_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(nearest, test_split, attack, batch_size=16)
    held: list[int] = []
    run = type(attack).run_events

    def watched(self: Attack, model: nn.Module, examples: Examples, **options: Any) -> Any:
        held.append(len(examples))
        return run(self, model, examples, **options)

    monkeypatch.setattr(type(attack), "run_events", watched)
    monkeypatch.setattr(local, "_PIECE", 17 * 4 * 64)
    parts = evaluate(nearest, test_split, attack, batch_size=16)
    assert held == [17, 17, 17, 9]
    assert parts.verdicts == whole.verdicts and parts.warnings == whole.warnings


class Recording(SilentReporter):
    """Which stages were opened and closed, and what they were told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Recording]:
        self.told.append(("open", name, total))
        yield self
        self.told.append(("close", name))

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        self.told.append((done, figures))


def test_progress_shows_one_stage_at_a_time_with_what_is_still_robust(nearest: Nearest, test_split: Split) -> None:
    reporter = Recording()
    record = evaluate(nearest, test_split, Chain(), reporter=reporter)
    right = 60 - record.verdicts.count(MISCLASSIFIED)
    second = right - right // 2
    shown = [each for each in reporter.told if isinstance(each[0], str)]
    assert shown == [("open", "first", right), ("close", "first"), ("open", "second", second), ("close", "second")]
    assert reporter.told[1] == (1, f"{right - 1}/60 robust") and reporter.told[-2][0] == second


def test_the_model_keeps_its_mode_and_its_gradients(nearest: Nearest, test_split: Split) -> None:
    nearest.train()
    nearest.means.grad = torch.ones_like(nearest.means)
    evaluate(nearest, test_split)
    assert nearest.training and nearest.means.requires_grad and bool((nearest.means.grad == 1).all())
    nearest.means.grad = None
