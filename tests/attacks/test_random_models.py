"""Models that are random: what upstream asks of them, how often, and about which point."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch
from autoattack_samples import Conv, Short, examples
from torch import Tensor, nn

from sam_bench.api.autoattack import TunedAutoAttack
from sam_bench.attacks import ATTACKS
from sam_bench.attacks.autoattack import AutoAttack, Engine
from sam_bench.attacks.autoattack.suite import AttackConfig
from sam_bench.attacks.reference import ReferenceAutoAttack
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec, Norm

EPS = {"Linf": 0.001, "L2": 0.01, "L1": 0.1}  # nothing but chance breaks anything
STEPS, EOT = 12, 2


class Erring(nn.Module):
    """Errs where a table says so: at the n-th time that it is asked about an example.

    Args:
        clean: The examples; each is far from the others.
        quiet: It is asked so often about each before the first attack, and then does not err.
        share: Of the answers that are wrong.
    """

    def __init__(self, net: nn.Module, clean: Tensor, *, quiet: int, share: float) -> None:
        super().__init__()
        self.net, self.clean, self.quiet = net, clean.flatten(1), quiet
        self.asked = torch.zeros(len(clean), dtype=torch.int64)
        self.errs = torch.rand(len(clean), 2000, generator=torch.Generator().manual_seed(0)) < share
        self.errs[:, :quiet] = False

    def forward(self, x: Tensor) -> Tensor:
        example = torch.cdist(x.detach().flatten(1), self.clean).argmin(1)
        wrong = self.errs[example, self.asked[example]]
        self.asked[example.unique()] += 1  # a batch may be padded with copies
        logits = self.net(x)
        return torch.where(wrong[:, None], logits.roll(1, 1), logits)


def shortened(suite: Any, restarts: int) -> Any:
    apgd = suite.apgd
    apgd.n_restarts, apgd.eot_iter, apgd.n_iter = restarts, EOT, STEPS
    apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = (max(int(share * STEPS), 1) for share in (0.22, 0.06, 0.03))
    return suite


class Random(AutoAttack):
    """Version rand with other restarts, fewer iterations and fewer passes."""

    method = "autoattack"
    restarts: int

    @property
    def _reference(self) -> ReferenceAutoAttack:
        restarts = self.restarts

        class Driver(ReferenceAutoAttack):
            def suite(self, *args: Any, **kwargs: Any) -> Any:
                return shortened(super().suite(*args, **kwargs), restarts)

        return Driver(self.version)

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(
            engine,
            suite=[
                replace(config, iterations=STEPS, restarts_or_targets=self.restarts, eot=EOT) for config in engine.suite
            ],
        )


@pytest.mark.parametrize(("norm", "restarts", "share"), [("Linf", 1, 0.1), ("L2", 3, 0.04), ("L1", 3, 0.04)])
def test_a_random_model_is_asked_what_upstream_asks_it_and_no_more(norm: Norm, restarts: int, share: float) -> None:
    net = Conv(dtype=torch.float32)
    x, y = examples(net, 40, of=80)
    how: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "seed": 3, "batch_size": 40}

    theirs = Erring(net, x, quiet=3, share=share)
    suite = pyautoattack.AutoAttack(theirs, norm=norm, eps=EPS[norm], seed=3, version="rand")
    x_adv, y_adv = shortened(suite, restarts).run_standard_evaluation(x, y, batch_size=40)
    for quiet, setting in ((4, {"engine": "fast", "rng": "upstream"}), (3, {"engine": "reference"})):
        ours = Erring(net, x, quiet=quiet, share=share)
        ours.errs[:, quiet:] = theirs.errs[:, 3 : 2003 - quiet]
        result = Random(version="rand", restarts=restarts, **setting).run(ours, x, y, **how)
        assert [verdict != ROBUST for verdict in result.verdicts] == (y_adv != y).tolist()
        assert torch.allclose(result.x_adv, x_adv, atol=1e-6)
        assert torch.equal(ours.asked - quiet, theirs.asked - 3)
        assert len(set(result.verdicts)) == 3
    unmoved = (x_adv == x).flatten(1).all(1)
    assert bool((unmoved & (y_adv != y)).any()), "some are broken where they are"
    assert restarts == 1 or len(theirs.asked.unique()) > 4, "some need more than one restart"


class Coin(nn.Module):
    """Far from every boundary, and wrong with a probability that no input changes."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)) * 1e-3
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1) @ self.weight.t() + torch.tensor([10.0, 0.0, 0.0, 0.0])
        return torch.where(torch.rand(len(x), 1) < self.chance, logits.roll(1, 1), logits)


@pytest.mark.parametrize(
    "setting",
    [{"engine": "fast"}, {"engine": "fast", "rng": "upstream"}, {"engine": "reference"}],
    ids=lambda each: " ".join(each.values()),
)
def test_every_attack_has_one_chance_with_a_model_that_errs_whatever_its_input(setting: dict[str, Any]) -> None:
    count, chance = 1000, 0.15
    x = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    attack = Short(version="rand", **setting)
    verdicts = attack.run(Coin(chance), x, torch.zeros(count, dtype=torch.int64), norm="Linf", eps=0.01, batch_size=500)
    left = count
    for name in (MISCLASSIFIED, "apgd-ce", "apgd-dlr"):
        lost, spread = verdicts.verdicts.count(name), (left * chance * (1 - chance)) ** 0.5
        assert abs(lost - left * chance) < 3.5 * spread, name
        left -= lost
    assert left == verdicts.verdicts.count(ROBUST)


def test_trials_side_by_side_give_a_random_model_no_further_chance() -> None:
    count, chance = 1000, 0.5
    x = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    attack = Short(version="custom", suite=("apgd-ce",))
    assert attack.engine_to_run("Linf").suite[0].restarts_or_targets == 5
    result = attack.run(Coin(chance), x, torch.zeros(count, dtype=torch.int64), norm="Linf", eps=0.01, batch_size=500)
    left = count - result.verdicts.count(MISCLASSIFIED)
    spread = (left * chance * (1 - chance)) ** 0.5
    assert abs(result.verdicts.count("apgd-ce") - left * chance) < 3.5 * spread


def test_one_attack_that_averages_gives_the_others_no_further_chance() -> None:
    count, chance = 600, 0.15
    x = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    attack = TunedAutoAttack(
        suite=(
            AttackConfig("apgd-ce", 1, 10, eot=2),
            AttackConfig("apgd-t", 3, 10),
            AttackConfig("fab-t", 3, 10),
            AttackConfig("square", 1, 50),
        )
    )
    result = attack.run(Coin(chance), x, torch.zeros(count, dtype=torch.int64), norm="Linf", eps=0.01, batch_size=300)
    assert [each.code for each in result.warnings if each.code == "randomized"]
    left = count - result.verdicts.count(MISCLASSIFIED)
    for name in attack.attacks:
        lost, spread = result.verdicts.count(name), (left * chance * (1 - chance)) ** 0.5
        assert lost < left * chance + 3.5 * spread, name
        left -= lost


class NoisyOnTheWay(nn.Module):
    """Right at the grey image and wrong in the ball's corner; between them it errs now and then."""

    def forward(self, x: Tensor) -> Tensor:
        moved = x.flatten(1) - 0.5
        way = moved.detach().abs().mean(1) / 0.1  # 0 at the grey image, 1 in a corner
        first = 0.3 + moved.sum(1) + 2 * way * (1 - way) * torch.randn(len(x))
        return torch.stack([first, *(1e-3 * torch.randn(3, len(x)))], 1)


@pytest.mark.parametrize("rng", ["counter", "upstream"])
def test_of_a_random_model_the_last_error_is_judged_in_any_version(rng: str) -> None:
    x, y = torch.full((300, 3, 2, 2), 0.5), torch.zeros(300, dtype=torch.int64)
    attack = Short(version="custom", suite=("apgd-ce",), rng=rng)
    result = attack.run(NoisyOnTheWay(), x, y, norm="Linf", eps=0.1, batch_size=100)
    assert "randomized" in [each.code for each in result.warnings]
    assert result.verdicts.count("apgd-ce") > 295  # of the first errors, a fifth are not there at a second look


@pytest.mark.parametrize("method", ["autoattack", "fgsm", "pgd"])
def test_the_seed_decides_what_a_random_model_draws_and_the_callers_generators_are_given_back(method: str) -> None:
    x = torch.rand(60, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(60, dtype=torch.int64)
    attack: Any = Short(version="rand") if method == "autoattack" else ATTACKS.build(ComponentSpec(method=method))

    def run(seed: int) -> list[str]:
        verdicts: list[str] = attack.run(Coin(0.3), x, y, norm="Linf", eps=0.01, seed=seed, batch_size=32).verdicts
        return verdicts

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first = run(0)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]
    torch.rand(5)
    assert run(0) == first == run(0)
    clean = {tuple(verdict == MISCLASSIFIED for verdict in run(seed)) for seed in range(3)}
    assert len(clean) == 3, "another seed, other draws"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_model_that_is_not_random_gets_upstreams_verdicts_from_version_rand_too(norm: Any) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 9)
    how: dict[str, Any] = {"norm": norm, "eps": {"Linf": 0.012, "L2": 0.12}[norm], "seed": 3, "batch_size": 5}
    fast = Short(engine="fast", rng="upstream", version="rand").run(model, x, y, **how)
    reference = Short(engine="reference", version="rand").run(model, x, y, **how)
    assert fast.verdicts == reference.verdicts and {ROBUST, "apgd-ce"} <= set(fast.verdicts)
    assert torch.allclose(fast.x_adv, reference.x_adv, atol=1e-5)  # its last error is the witness
