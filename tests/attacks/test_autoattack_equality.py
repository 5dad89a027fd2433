"""The fast engine against upstream's own attacks: the same iterates, the same verdicts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from autoattack_samples import CPU, Conv, Short, asked_by, examples, make_search, upstreams
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from torch import Tensor
from torch.nn import functional as F

from sam_bench.attacks.autoattack.fab_projection import project
from sam_bench.attacks.autoattack.square import sides
from sam_bench.attacks.autoattack.square_init import tile_table
from sam_bench.attacks.autoattack.suite import KNOWN, build_suite
from sam_bench.attacks.rng import UpstreamRNG
from sam_bench.integrations import upstream
from sam_bench.perturb.ball import Ball

# 20 iterations end with checkpoints one after the other, 40 do not.
STEPS = {"apgd-ce": 20, "apgd-dlr": 40, "apgd-t": 40, "fab": 12, "fab-t": 25, "square": 260}
# Large enough for the search to meet ball and box, small enough that no example is broken.
TINY = {"Linf": 0.004, "L2": 0.03, "L1": 0.3}


@pytest.mark.parametrize(
    ("attack", "norm", "widened"),
    [
        *((attack, norm, False) for attack in sorted(STEPS) for norm in ("Linf", "L2", "L1")),
        ("apgd-ce", "L1", True),
        ("apgd-t", "L1", True),
    ],
)
def test_asks_the_model_about_the_points_that_upstream_asks_about(attack: str, norm: Any, widened: bool) -> None:
    model, steps, ball = Conv(rounds=attack.startswith("fab")), STEPS[attack], Ball(norm=norm, eps=TINY[norm])
    x, y = examples(model, 18, of=90)
    search = make_search(attack, model, x, y, ball=ball, rng=UpstreamRNG(5), steps=steps, widened=widened)

    # Upstream draws more in a widened trial than it uses, which the next one shows.
    trials = 2 if widened else 1

    def ours() -> None:
        for trial in range(trials):
            rows = search.init(torch.arange(len(x)), torch.full((len(x),), trial))
            for _ in range(search.steps):
                search.step(rows)
            assert attack != "square" or not rows.found.any()  # whose rows upstream lets go

    # In L1 it is version standard that begins in larger balls.
    version = "custom" if norm == "L1" and not widened else "standard"
    suite = upstreams(model, ball, seed=5, steps=steps, queries=steps, targets=trials, version=version)
    mine = asked_by(model, ours, x)
    theirs = asked_by(model, lambda: upstream.run_attack(suite, attack, x, y), x)
    assert len(mine) >= steps * trials and len(theirs) >= len(mine)
    farthest = [float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=False)]
    assert max(farthest) < 1e-5
    assert float((mine[-1] - x).abs().max()) > 1e-4


class Pooling(Conv):
    """Average pooling comes first, so that in L1 every weight of a hyperplane is there four times."""

    def forward(self, x: Tensor) -> Tensor:
        if self.asked is not None:
            self.asked.append(x.detach().clone())
        pooled = F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-1], mode="nearest")
        return self.net(pooled.to(self.dtype) - 0.5).float()


@pytest.mark.parametrize(("attack", "steps"), [("fab", 12), ("fab-t", 25)])
def test_where_weights_are_equal_fab_in_l1_asks_about_the_points_that_upstream_asks_about(
    attack: str, steps: int
) -> None:
    model, ball = Pooling(), Ball(norm="L1", eps=TINY["L1"])
    x, y = examples(model, 18, of=90)
    search = make_search(attack, model, x, y, ball=ball, rng=UpstreamRNG(5), steps=steps)

    def ours() -> None:
        rows = search.init(torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
        for _ in range(search.steps):
            search.step(rows)

    suite = upstreams(model, ball, seed=5, steps=steps, version="custom")
    mine = asked_by(model, ours, x)
    theirs = asked_by(model, lambda: upstream.run_attack(suite, attack, x, y), x)
    assert len(theirs) >= len(mine) >= steps
    assert max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=False)) < 1e-5


@pytest.mark.parametrize(
    ("norm", "eps", "version", "suite", "batch_size"),
    [
        ("Linf", 0.012, "standard", (), 9),
        ("L2", 0.12, "standard", (), 16),
        ("Linf", 0.012, "custom", ("apgd-dlr",), 8),
        ("L2", 0.12, "custom", ("apgd-t",), 8),
        ("Linf", 0.012, "custom", ("fab",), 8),
        ("L2", 0.12, "custom", ("fab-t",), 8),
        ("Linf", 0.012, "custom", ("square",), 7),
        ("L2", 0.16, "custom", ("square",), 7),
        ("L2", 0.12, "custom", ("square", "apgd-ce", "fab-t"), 7),
        ("L2", 0.12, "custom", ("apgd-ce", "fab-t", "fab"), 8),
        ("L1", 1.0, "standard", (), 9),
        ("L1", 1.0, "rand", (), 7),
        ("L1", 1.0, "custom", ("apgd-t",), 8),
        ("L1", 1.0, "custom", ("fab",), 8),
        ("L1", 1.0, "custom", ("fab-t",), 8),
        ("L1", 1.6, "custom", ("square",), 7),
        ("L1", 1.0, "custom", ("square", "apgd-dlr", "fab-t"), 7),
    ],
)
def test_with_upstreams_draws_every_verdict_is_upstreams(
    norm: Any, eps: float, version: Any, suite: tuple[str, ...], batch_size: int
) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 16)
    y[::9] = (y[::9] + 1) % 10  # misclassified from the start
    how: dict[str, Any] = {"norm": norm, "eps": eps, "seed": 3, "batch_size": batch_size}
    fast = Short(engine="fast", rng="upstream", version=version, suite=suite).run(model, x, y, **how)
    reference = Short(engine="reference", version=version, suite=suite).run(model, x, y, **how)
    assert fast.verdicts == reference.verdicts
    assert fast.warnings == reference.warnings == []
    assert fast.attacks == reference.attacks
    assert len(set(fast.verdicts)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("L2", 0.12), ("L1", 1.0)])
def test_with_upstreams_draws_and_its_five_restarts_every_verdict_of_version_plus_is_upstreams(
    norm: Any, eps: float
) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 16)
    how: dict[str, Any] = {"norm": norm, "eps": eps, "seed": 3, "batch_size": 6}
    fast = Short(engine="fast", rng="upstream", version="plus").run(model, x, y, **how)
    assert fast.verdicts == Short(engine="reference", version="plus").run(model, x, y, **how).verdicts
    assert {"robust"} < set(fast.verdicts)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand", "custom"])
def test_the_settings_of_every_version_are_upstreams(version: Any, norm: Any) -> None:
    suite = KNOWN if version == "custom" else ()
    configs = {config.attack: config for config in build_suite(version, suite, norm=norm)}
    theirs = upstream.build(Conv(), norm=norm, eps=0.1, seed=0, version=version, device=CPU)
    assert list(configs) == list(suite or theirs.attacks_to_run)
    for name, attacker, restarts in (
        ("apgd-ce", theirs.apgd, theirs.apgd.n_restarts),
        ("apgd-dlr", theirs.apgd, theirs.apgd.n_restarts),
        ("apgd-t", theirs.apgd_targeted, theirs.apgd_targeted.n_target_classes),
        ("fab", theirs.fab, theirs.fab.n_restarts),
        ("fab-t", theirs.fab, theirs.fab.n_target_classes),
    ):
        if name in configs:
            assert (configs[name].iterations, configs[name].restarts_or_targets) == (attacker.n_iter, restarts)
            assert configs[name].eot == getattr(attacker, "eot_iter", 1)
            assert configs[name].widened == getattr(attacker, "use_largereps", False)
    if "square" in configs:
        assert (configs["square"].iterations, configs["square"].restarts_or_targets) == (theirs.square.n_queries, 1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (8, 8)])
def test_the_squares_shrink_as_upstreams_do(norm: Any, height: int, width: int) -> None:
    square = upstream.build(Conv(), norm=norm, eps=0.1, seed=0, version="standard", device=CPU).square
    for query, side in enumerate(sides(9000, height, width, norm=norm)):
        expected = max(round(math.sqrt(square.p_selection(query) * height * width)), 1 if norm == "Linf" else 3)
        expected += norm != "Linf" and expected % 2 == 0
        assert side == min(expected, height, width)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("side", [1, 2, 3, 6, 9, 27])
def test_the_tiles_of_square_are_upstreams(side: int, norm: Any) -> None:
    square = upstream.build(Conv(), norm=norm, eps=0.1, seed=0, version="standard", device=CPU).square
    table = tile_table([side], norm=norm, device=CPU)
    for _ in range(4):
        with torch.random.fork_rng(devices=[]):
            state = torch.random.get_rng_state()
            turned = int(torch.rand([1]) > 0.5)
            torch.random.set_rng_state(state)
            expected = square.eta(side)
        assert torch.equal(table[0, turned, :side, :side], expected)
        torch.rand(1)


@given(data=st.data(), norm=st.sampled_from(["Linf", "L2", "L1"]), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_projection_is_upstreams_and_lands_on_the_plane_inside_the_box(
    data: st.DataObject, norm: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, size = 6, data.draw(st.integers(1, 40))
    t = torch.rand(rows, size, generator=generator, dtype=torch.float64)
    t = torch.where(torch.rand(t.shape, generator=generator) < 0.3, t.round(), t)  # some on the box's faces
    w = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    w = torch.where(torch.rand(w.shape, generator=generator) < 0.2, torch.zeros_like(w), w)
    w[:, 0] = w[:, 0].clamp(0.1, 2.0)
    offset = torch.randn(rows, generator=generator, dtype=torch.float64) * data.draw(st.sampled_from([0.01, 0.3, 3.0]))
    b = (w * t).sum(1) + offset
    change = project(t, w, b, norm=norm)
    theirs = {"Linf": projection_linf, "L2": projection_l2, "L1": projection_l1}[norm]
    # Upstream bisects in float32 indices; its answers in float64 agree where the plane can be reached.
    assert torch.allclose(change, theirs(t, w, b), atol=1e-9)
    moved = t + change
    assert moved.min() >= -1e-12 and moved.max() <= 1 + 1e-12
    lowest = torch.where(w < 0, w, 0.0).sum(1)
    highest = torch.where(w > 0, w, 0.0).sum(1)
    reached = ((w * moved).sum(1) - b).abs() < 1e-9
    assert bool((reached | (b <= lowest + 1e-9) | (b >= highest - 1e-9)).all())
