"""A compiled run stays compiled, however many shapes it has and whatever was compiled before it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from team import run_as_team
from torch import Tensor, nn
from torch._dynamo.utils import counters
from training_samples import Steps, digits, method_of, run

from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.data import Batches
from sam_bench.distributed import Team
from sam_bench.graphs import room_for_graphs


def limit() -> int:
    return torch._dynamo.config.recompile_limit


def test_the_limit_of_graphs_is_raised_for_the_time_of_a_compiled_run_and_restored() -> None:
    before = limit()
    with room_for_graphs(False):
        assert limit() == before
    with pytest.raises(ZeroDivisionError), room_for_graphs(True):
        assert limit() >= 64
        raise ZeroDivisionError
    assert limit() == before
    with torch._dynamo.config.patch(recompile_limit=1000), room_for_graphs(True):
        assert limit() == 1000  # somebody wanted more


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, 10)
    return nn.Sequential(*layers)


@pytest.mark.slow
def test_a_third_network_in_one_process_is_compiled_as_the_first_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing is what is limited; kernels would only take longer.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    method = method_of("sam", {"epochs": 1})
    made = []
    for width in (2, 3, 4):
        counters.clear()
        # 20 = 2 x 8 + 4: the whole batches' shape, with and without BatchNorm's statistics.
        run(tmp_path / str(width), method, train=digits().head(20), model=network(width), compiled=True)
        made.append(counters["stats"]["unique_graphs"])
    assert made == [made[0]] * 3 and made[0] >= 2


class Shapes(nn.Module):
    """Stands in for what is compiled, a network or a step, and remembers how many examples it was given."""

    def __init__(self, inner: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.given = inner, list[int]()

    def forward(self, *given: Any) -> Tensor:
        counters["stats"]["unique_graphs"] += not self.given
        self.given.append(len(next(each for each in given if isinstance(each, Tensor))))
        return self.inner(*given)


@pytest.mark.parametrize(("examples", "expected"), [(20, {8}), (5, {5})])
def test_only_whole_batches_run_compiled_since_each_shape_takes_a_minute(
    examples: int, expected: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Shapes] = []

    def compile_it(inner: Callable[..., Tensor], **_: object) -> Shapes:
        graphs.append(Shapes(inner))
        return graphs[-1]

    plain = run(tmp_path / "plain", method_of("at", {"steps": 1}), train=digits().head(examples), model=network(2))
    monkeypatch.setattr(torch, "compile", compile_it)
    method = method_of("at", {"steps": 1})
    made = run(tmp_path / "compiled", method, train=digits().head(examples), model=network(2), compiled=True)
    # The network that learns, the network that is searched, and the step of the search, which has taken its place.
    assert [set(graph.given) for graph in graphs] == [expected, set(), expected]
    assert all(torch.equal(*pair) for pair in zip(plain.model.parameters(), made.model.parameters(), strict=True))


def test_a_network_that_cannot_be_compiled_runs_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: partial(model))
    step = Steps(network(2), method_of(), seed=0, precision="fp32", compiled=True)
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    with room_for_graphs(True):
        with pytest.warns(UserWarning, match="torch.compile made no graph of Sequential, which runs uncompiled"):
            step.at(x, y, step=0, progress=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step.at(x, y, step=1, progress=0.0)


def test_an_attack_has_room_for_its_graphs_whatever_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: Shapes(model))
    model, seen, before = network(2).eval(), set[int](), limit()
    model.register_forward_pre_hook(lambda *_: seen.add(limit()))
    attack = AutoAttack(version="custom", suite=("apgd-dlr",), compile="on")
    labels = model(torch.zeros(1, 1, 8, 8)).argmax(1)
    attack.run(model, torch.zeros(1, 1, 8, 8), labels, norm="Linf", eps=0.01)
    assert max(seen) >= 64 and limit() == before


TEAM = """
import sys
import warnings
from functools import partial
import torch
sys.path.insert(0, sys.argv[1])
from test_graphs import network, three_steps
from test_devices import Net
from sam_bench.distributed import joined

torch.compile = partial(torch.compile, backend="aot_eager")
found = {}
with joined() as team:
    for name, recipe in (("Net", "standard"), ("Net", "sam"), ("Net", "at"), ("Sequential", "sam")):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            model = Net() if name == "Net" else network(4)
            found[name, recipe] = three_steps(recipe, model, team)
        found[name, recipe] += (any("made no graph of Sequential" in str(each.message) for each in told),)
    torch.save(found, f"{sys.argv[2]}/{team.rank}.pt")
"""


def three_steps(recipe: str, model: nn.Module, team: Team) -> tuple[bool, int]:
    """Whether three compiled steps end where uncompiled ones do, and the graphs that were made."""
    ends = []
    for compiled in (False, True):
        counters.clear()
        learned = copy.deepcopy(model).train()
        method = method_of(recipe, {"steps": 2} if recipe == "at" else None)
        step = Steps(learned, method, seed=0, precision="fp32", compiled=compiled, team=team)
        batches = Batches(digits().head(45), batch_size=15, seed=0, augmentation=None, shard=(team.rank, team.size))
        with room_for_graphs(compiled):
            for number, (x, y) in enumerate(batches.epoch(0)):
                first, _, total = batches.share_of(number)
                step.at(x, y, step=number, progress=number / 3, first=first, total=total)
        ends.append(learned.state_dict())
    same = all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    return same, counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_processes_learn_what_uncompiled_ones_do_or_say_that_they_are_not_compiled(tmp_path: Path) -> None:
    script = tmp_path / "team.py"
    script.write_text(TEAM)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # SAM's second pass leaves BatchNorm's statistics alone, and the search of AT has frozen parameters.
    expected = {("Net", recipe): (True, graphs, False) for recipe, graphs in (("standard", 1), ("sam", 2), ("at", 2))}
    expected["Sequential", "sam"] = (True, 0, True)
    assert [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)] == [expected] * 2
