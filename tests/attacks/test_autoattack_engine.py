"""The fast engine by itself: what its verdicts may depend on, and what it hands out."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from autoattack_samples import (
    Conv,
    Short,
    ShortBF16,
    ShortScreen,
    events_of,
    examples,
    make_search,
    run_part,
    run_whole,
    shortened,
)
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS, AttackResult, Progress, Verdict
from sam_bench.attacks.autoattack.attack import FastAttack
from sam_bench.attacks.autoattack.suite import build_suite
from sam_bench.attacks.rng import CounterRNG
from sam_bench.errors import InputError
from sam_bench.integrations import upstream
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec

EPS = {"Linf": 0.012, "L2": 0.12, "L1": 1.0}
SUITE = ("apgd-ce", "fab-t", "square")


@pytest.fixture(scope="module")
def model() -> Conv:
    return Conv(dtype=torch.float32)


@pytest.fixture(scope="module")
def some(model: Conv) -> tuple[Tensor, Tensor]:
    x, y = examples(model, 28)
    y[::9] = (y[::9] + 1) % 10
    return x, y


def fast(**fields: Any) -> Short:
    return Short(engine="fast", version="custom", suite=SUITE, **fields)


@pytest.fixture(scope="module", params=["Linf", "L2", "L1"])
def whole(request: Any, model: Conv, some: tuple[Tensor, Tensor]) -> tuple[str, AttackResult]:
    """A norm and what came of all examples in one batch."""
    return request.param, fast().run(model, *some, norm=request.param, eps=EPS[request.param], seed=1, batch_size=64)


@pytest.mark.parametrize("batch_size", [1, 16, 23])
def test_a_verdict_does_not_depend_on_the_batch_size(
    batch_size: int, model: Conv, some: tuple[Tensor, Tensor], whole: tuple[Any, AttackResult]
) -> None:
    norm, expected = whole
    result = fast().run(model, *some, norm=norm, eps=EPS[norm], seed=1, batch_size=batch_size)
    assert result.verdicts == expected.verdicts
    assert torch.allclose(result.x_adv, expected.x_adv, atol=1e-6)
    assert {ROBUST, MISCLASSIFIED} < set(result.verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["Linf"], indirect=True)
def test_compiled_too_a_verdict_does_not_depend_on_the_batch_size(
    model: Conv, some: tuple[Tensor, Tensor], whole: tuple[Any, AttackResult]
) -> None:
    norm, expected = whole
    how = {"norm": norm, "eps": EPS[norm], "seed": 1}
    one, other = (fast(compile="on").run(model, *some, **how, batch_size=size) for size in (17, 64))
    assert one.verdicts == other.verdicts and torch.equal(one.x_adv, other.x_adv)
    assert one.verdicts == expected.verdicts  # the model is small enough for rounding not to decide any


def test_compiling_is_refused_where_upstreams_verdicts_are_asked_for() -> None:
    for setting in ({"engine": "reference"}, {"rng": "upstream"}):
        with pytest.raises(InputError, match="compile: on goes with engine fast and rng counter only"):
            ATTACKS.build(ComponentSpec(method="autoattack", compile="on", **setting))


@pytest.mark.parametrize("method", ["autoattack", "autoattack-bf16", "autoattack-screen"])
def test_a_model_is_compiled_where_that_is_asked_for_and_only_there(method: str) -> None:
    for asked in ("on", "off"):
        attack = ATTACKS.build(ComponentSpec(method=method, compile=asked))
        assert isinstance(attack, FastAttack)
        assert attack.engine_to_run("Linf").compiled == (asked == "on")


def test_a_verdict_does_not_depend_on_the_order_or_on_which_others_are_there(
    model: Conv, some: tuple[Tensor, Tensor], whole: tuple[Any, AttackResult]
) -> None:
    norm, expected = whole
    x, y = some
    shard = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))[:13]
    result = run_part(fast(), model, x[shard], y[shard], index=shard, norm=norm, eps=EPS[norm], seed=1, batch_size=8)
    assert result.verdicts == [expected.verdicts[place] for place in shard.tolist()]
    assert torch.allclose(result.x_adv, expected.x_adv[shard], atol=1e-6)


def test_draws_depend_on_the_seed_and_on_the_place_in_the_data_set(model: Conv, some: tuple[Tensor, Tensor]) -> None:
    x, y = some[0][1:9], some[1][1:9]
    attack = Short(engine="fast", version="custom", suite=("square",))

    def found(seed: int, first: int = 0) -> Tensor:
        index = torch.arange(first, first + 8)
        return run_part(attack, model, x, y, index=index, norm="Linf", eps=0.03, batch_size=8, seed=seed).x_adv

    once = found(1)
    assert torch.equal(once, found(1)) and not torch.equal(once, x)
    assert not torch.equal(once, found(2))
    assert not torch.equal(once, found(1, first=1))


def test_witnesses_are_in_ball_and_box_and_misclassified(
    model: Conv, some: tuple[Tensor, Tensor], whole: tuple[str, AttackResult]
) -> None:
    norm, result = whole
    x, y = some
    delta = (result.x_adv - x).flatten(1)
    size = delta.norm(p={"Linf": float("inf"), "L2": 2, "L1": 1}[norm], dim=1)
    assert float(size.max()) <= EPS[norm] * (1 + 1e-5)
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    wrong = model(result.x_adv).argmax(1) != y
    assert [verdict != ROBUST for verdict in result.verdicts] == wrong.tolist()
    unmoved = torch.tensor([verdict in (ROBUST, MISCLASSIFIED) for verdict in result.verdicts])
    assert torch.equal(result.x_adv[unmoved], x[unmoved])


@pytest.mark.parametrize(("norm", "version"), [("Linf", "plus"), ("L2", "plus"), ("L1", "plus"), ("L1", "standard")])
def test_in_a_ball_of_radius_zero_nothing_that_is_right_is_broken(
    norm: Any, version: Any, model: Conv, some: tuple[Tensor, Tensor]
) -> None:
    result = Short(engine="fast", version=version).run(model, some[0][:6], some[1][:6], norm=norm, eps=0.0)
    assert set(result.verdicts) == {ROBUST, MISCLASSIFIED}
    assert torch.equal(result.x_adv, some[0][:6])


def test_every_verdict_is_told_once_with_its_witness_and_as_soon_as_it_is_known(
    model: Conv, some: tuple[Tensor, Tensor]
) -> None:
    x, y = some
    places = torch.arange(len(x)) * 3 + 100
    result = run_part(fast(), model, x, y, norm="Linf", eps=EPS["Linf"], batch_size=8, index=places)
    told = result.events
    final = [each for each in told if isinstance(each, Verdict) and each.outcome is not None]
    verdicts = {each.example: each for each in final}
    assert len(verdicts) == len(final) == len(x)
    assert [verdicts[place].outcome for place in places.tolist()] == result.verdicts
    for position, place in enumerate(places.tolist()):
        x_adv, verdict = verdicts[place].x_adv, result.verdicts[position]
        assert (x_adv is None) == (verdict in (ROBUST, MISCLASSIFIED))
        assert x_adv is None or torch.equal(x_adv, result.x_adv[position])
        survived = 3 if verdict == ROBUST else 0 if verdict == MISCLASSIFIED else SUITE.index(verdict)
        assert verdicts[place].attacks_survived == survived
        steps = [each.attacks_survived for each in told if isinstance(each, Verdict) and each.example == place]
        right = [] if verdict == MISCLASSIFIED else [0]  # told after the clean pass
        assert steps == right + ([1, 2, 3] if verdict == ROBUST else [*range(1, survived + 1), survived])
    # What the first attack breaks is told while it runs, before the second begins.
    second = next(i for i, each in enumerate(told) if isinstance(each, Progress) and each.stage == "fab-t")
    early = {each.outcome for each in told[:second] if isinstance(each, Verdict)}
    assert early == {None, MISCLASSIFIED, "apgd-ce"}


@pytest.mark.parametrize("events", [0, 9, 25, 40, 10**6])
def test_a_run_that_goes_on_from_what_was_told_ends_like_one_that_was_never_stopped(
    events: int, model: Conv, some: tuple[Tensor, Tensor], whole: tuple[Any, AttackResult]
) -> None:
    norm, expected = whole
    x, y = some
    how: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "seed": 1, "batch_size": 16}
    run = events_of(fast(), model, x, y, **how)
    log = list(islice((each for each in run if isinstance(each, Verdict)), events))
    run.close()  # type: ignore[attr-defined]
    assert not model._forward_pre_hooks, "given back"
    known = {each.example: each.outcome for each in log if each.outcome is not None}
    survived = torch.zeros(len(x), dtype=torch.int64)
    for each in log:
        survived[each.example] = each.attacks_survived
    rest = torch.tensor([n for n in range(len(x)) if n not in known], dtype=torch.int64)
    if len(rest):
        again = run_part(fast(), model, x[rest], y[rest], index=rest, attacks_survived=survived[rest], **how)
        known |= dict(zip(rest.tolist(), again.verdicts, strict=True))
    assert [known[n] for n in range(len(x))] == expected.verdicts


def test_a_resumed_run_spares_each_example_the_attacks_that_it_has_survived(
    model: Conv, some: tuple[Tensor, Tensor]
) -> None:
    x, y = examples(model, 12)
    survived = torch.arange(12) % 3
    result = run_whole(fast(), model, x, y, norm="Linf", eps=0.0, attacks_survived=survived)
    assert {each.stage: each.total for each in result.progress} == {"apgd-ce": 4, "fab-t": 8, "square": 12}


@pytest.mark.parametrize("rng", ["counter", "upstream"])
def test_progress_counts_the_examples_of_each_attack_up_and_the_robust_down(
    rng: Any, model: Conv, some: tuple[Tensor, Tensor]
) -> None:
    attack = fast(rng=rng)
    result = run_whole(attack, model, *some, norm="L2", eps=EPS["L2"], batch_size=16)
    left = len(some[0]) - result.verdicts.count(MISCLASSIFIED)
    for name in attack.attacks:
        stage = [each for each in result.progress if each.stage == name]
        counts, robust = [each.done for each in stage], [each.robust for each in stage]
        assert counts == sorted(counts) and (counts[0], counts[-1]) == (0, left)
        assert {each.total for each in stage} == {left}
        assert robust == sorted(robust, reverse=True) and robust[0] == left
        left -= result.verdicts.count(name)
        assert robust[-1] == left
        # Square's last examples end together and are told of together: nobody reckons with the first of them.
        assert name != "square" or not left or counts[-1] - counts[-2] in (0, left)
        # Long before anything is settled it is told that the attack is at work.
        assert counts.count(0) > 1
        shares = [each.share for each in stage if each.share is not None]
        assert len(shares) == len(stage) and shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)
        # As does what is left of the work, which does not wait for the first example that is settled.
        assert not left or shares[counts.count(0) - 1] > 0


def test_a_broken_example_makes_room_at_once_and_costs_nothing_more(model: Conv, some: tuple[Tensor, Tensor]) -> None:
    x, y = some[0][1:9], some[1][1:9]
    model.asked = []
    result = Short(engine="fast", version="custom", suite=("apgd-ce",)).run(model, x, y, norm="Linf", eps=0.2)
    passes, model.asked = len(model.asked), None
    assert set(result.verdicts) == {"apgd-ce"}
    assert passes < 16  # of 5 restarts of 16 steps


def test_targets_of_small_images_share_their_passes(model: Conv) -> None:
    x, y = examples(model, 20)
    model.asked = []
    result = Short(engine="fast", version="custom", suite=("fab-t",)).run(model, x, y, norm="Linf", eps=1e-4)
    passes, model.asked = len(model.asked), None
    assert set(result.verdicts) == {ROBUST}
    assert passes < 16 * 2 * 2  # steps, targets, passes a step


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_queries_made_ahead_end_where_queries_one_by_one_end(norm: Any, model: Conv) -> None:
    x, y = examples(model, 3, of=30)
    ball = Ball(norm=norm, eps=EPS[norm] * 1.6)
    ended = []
    for filled in (1, 16):
        rng = CounterRNG(0, "square", torch.arange(3))
        search = make_search("square", model, x, y, ball=ball, rng=rng, steps=150)
        assert search.rows_a_pass == 32768 // x[0].numel() > 16  # small images: more rows take hardly longer
        search.rows_a_pass = filled
        rows, passes = search.init(torch.arange(3), torch.zeros(3, dtype=torch.int64)), 0
        while bool(((rows.iteration < search.steps) & ~rows.found).any()):
            search.step(rows)
            passes += 1
        ended.append((rows, passes))
    assert torch.allclose(ended[0][0].best, ended[1][0].best, atol=1e-6)
    assert torch.equal(ended[0][0].found, ended[1][0].found)
    assert ended[0][1] == 151 > 2 * ended[1][1]


# Names, versions, settings


def test_the_screen_is_autoattacks_first_two_attacks_and_says_it_is_an_upper_bound(
    model: Conv, some: tuple[Tensor, Tensor]
) -> None:
    how: dict[str, Any] = {"norm": "Linf", "eps": EPS["Linf"], "seed": 1}
    screen = ShortScreen().run(model, *some, **how)
    full = Short(engine="fast").run(model, *some, **how)
    assert screen.attacks == ["apgd-ce", "apgd-t"] and str(screen.warnings[0]).startswith(
        "upper-bound: only apgd-ce and"
    )
    assert [a for a in full.verdicts if a in screen.attacks] == [a for a in screen.verdicts if a in screen.attacks]
    assert full.verdicts.count(ROBUST) <= screen.verdicts.count(ROBUST)


def test_what_is_found_in_bfloat16_counts_only_if_float32_agrees(model: Conv, some: tuple[Tensor, Tensor]) -> None:
    x, y = some
    coarse = 0
    asked: list[torch.dtype] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = model(x)
            asked.append(logits.dtype)
            return logits

    result = ShortBF16().run(Watched(), x, y, norm="Linf", eps=EPS["Linf"], seed=1)
    assert {torch.float32, torch.bfloat16} == set(asked)
    wrong = model(result.x_adv).argmax(1) != y
    assert [verdict != ROBUST for verdict in result.verdicts] == wrong.tolist()
    assert result.warnings[0].code == "bf16"
    exact = Short(engine="fast").run(model, x, y, norm="Linf", eps=EPS["Linf"], seed=1)
    coarse = sum(a != b for a, b in zip(result.verdicts, exact.verdicts, strict=True))
    assert coarse <= 4


def test_either_engine_says_which_it_is() -> None:
    assert ATTACKS.build(ComponentSpec(method="autoattack", engine="fast")).implementation.startswith("sam-bench ")
    assert "autoattack " in ATTACKS.build(ComponentSpec(method="autoattack", engine="reference")).implementation


@pytest.mark.parametrize("rng", ["counter", "upstream"])
def test_draws_of_ours_are_not_asked_for_where_the_authors_code_runs(rng: str) -> None:
    with pytest.raises(InputError, match=f"attack.rng: {rng} goes with engine fast only"):
        ATTACKS.build(ComponentSpec(method="autoattack", engine="reference", rng=rng))


def test_settings_name_draws_of_ours_only_where_they_are() -> None:
    reference, fast = (ATTACKS.build(ComponentSpec(method="autoattack", engine=each)) for each in ("reference", "fast"))
    assert reference.model_dump(mode="json", exclude={"version"}) == {
        "compile": "off",
        "suite": [],
        "engine": "reference",
    }
    assert fast.model_dump(mode="json")["rng"] == "counter"
    for attack in (reference, fast):
        assert ATTACKS.build(attack.spec()) == attack


def test_a_suite_may_be_given_as_text() -> None:
    attack = ATTACKS.build(ComponentSpec(method="autoattack", version="custom", suite="apgd-ce, square"))
    assert attack.attacks == ["apgd-ce", "square"]


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "custom"}, "attack.suite: version custom needs at least one of apgd-ce"),
        ({"version": "custom", "suite": ["apgd"]}, "attack.suite: unknown attack 'apgd'. Did you mean 'apgd-"),
        ({"version": "custom", "suite": ["fab", "fab"]}, "attack.suite: fab, fab names an attack twice"),
        ({"suite": ["fab"]}, "attack.suite: version standard has its own attacks; give fab with version custom"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused_when_the_attack_is_built(
    engine: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ATTACKS.build(ComponentSpec(method="autoattack", engine=engine, **fields))


def test_fab_after_fab_t_has_one_restart() -> None:
    """Upstream's is one object for both, in which `fab-t` sets the restarts to one and leaves them so."""

    def trials(*suite: str) -> dict[str, int]:
        return {config.attack: config.restarts_or_targets for config in build_suite("custom", suite)}

    assert trials("fab-t", "apgd-ce", "fab") == {"fab-t": 9, "apgd-ce": 5, "fab": 1}
    assert trials("fab", "apgd-ce", "fab-t") == {"fab": 5, "apgd-ce": 5, "fab-t": 9}
    model = Conv(dtype=torch.float32)
    suite = upstream.build(model, norm="Linf", eps=0.001, seed=0, version="custom", device=torch.device("cpu"))
    shortened(suite, steps=1, queries=1, targets=1)
    for attack in ("fab", "fab-t", "fab"):
        upstream.run_attack(suite, attack, *examples(model, 1))
    assert suite.fab.n_restarts == 1


def test_generators_flags_and_gradients_are_left_as_they_were(model: Conv, some: tuple[Tensor, Tensor]) -> None:
    net = Conv(dtype=torch.float32).requires_grad_(True).train()
    net.net[0].weight.grad = torch.ones_like(net.net[0].weight)
    state = torch.random.get_rng_state()
    Short(engine="fast", version="plus").run(net, some[0][:5], some[1][:5], norm="L2", eps=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert bool((net.net[0].weight.grad == 1).all()) and net.net[-1].weight.grad is None
