"""Other packages' attacks by name: they search as they do at home, and nothing of theirs is believed unchecked."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS, Attack
from sam_bench.attacks.external import TorchattacksAttack
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec
from sam_bench.seeds import generator


def build(name: str, **settings: Any) -> Attack:
    return ATTACKS.build(ComponentSpec(method=name, **settings))


class Small(nn.Module):
    """A small network with random weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, classes)
            )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 4 * self.net(x)
        return logits


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Small().eval()


@pytest.fixture(scope="module")
def examples(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Thirty images, one of them with a label that the model does not give it."""
    x = torch.rand(30, 1, 8, 8, generator=generator(3))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[7] = (y[7] + 1) % 10
    return x, y


@pytest.mark.parametrize(("norm", "name", "eps"), [("Linf", "PGD", 0.06), ("L2", "PGDL2", 0.4)])
def test_from_the_clean_input_torchattacks_pgd_breaks_what_ours_breaks(
    norm: Any, name: str, eps: float, model: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    theirs = build(f"torchattacks:{name}", alpha=eps / 4, steps=10, random_start=False)
    ours = PGDAttack(steps=10, random_start=False)
    found = theirs.run(model, *examples, norm=norm, eps=eps, batch_size=8)
    expected = ours.run(model, *examples, norm=norm, eps=eps)
    assert [verdict.replace(theirs.method, "pgd") for verdict in found.verdicts] == expected.verdicts
    assert 5 < found.verdicts.count(ROBUST) < 25 and found.verdicts[7] == MISCLASSIFIED
    assert found.engine == f"torchattacks {torchattacks.__version__}" and found.attacks == [f"torchattacks:{name}"]
    direct = getattr(torchattacks, name)(model, eps=eps, alpha=eps / 4, steps=10, random_start=False)(*examples)
    broken = torch.tensor([verdict == theirs.method for verdict in found.verdicts])
    torch.testing.assert_close(found.x_adv[broken], direct[broken], rtol=0, atol=1e-6)


class Linear(nn.Module):
    """Two classes whose logits differ by a linear function; no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.randn(16, generator=generator(5)))

    def forward(self, x: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1) @ self.slope
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize(("norm", "name"), [("Linf", "LinfPGD"), ("L2", "L2PGD")])
def test_on_a_linear_model_foolbox_breaks_exactly_those_within_reach_of_the_boundary(norm: Any, name: str) -> None:
    model, x = Linear(), 0.35 + 0.3 * torch.rand(40, 1, 4, 4, generator=generator(6))
    score = (x - 0.5).flatten(1) @ model.slope
    reach = score.abs() / model.slope.norm(p=1 if norm == "Linf" else 2)
    eps = float(reach.sort().values[19:21].mean())
    assert eps < 0.3 and float((reach - eps).abs().min()) > 1e-3 * eps
    attack = build(f"foolbox:{name}", steps=100, rel_stepsize=0.1)
    result = attack.run(model, x, (score < 0).long(), norm=norm, eps=eps, batch_size=16)
    assert result.verdicts == [attack.method if near else ROBUST for near in (reach <= eps).tolist()]
    assert result.engine == f"foolbox {foolbox.__version__}"


@pytest.mark.parametrize(
    ("norm", "eps", "name", "settings"),
    [
        ("Linf", 0.06, "torchattacks:MIFGSM", {}),
        ("Linf", 0.06, "torchattacks:Square", {"n_queries": 20}),
        ("L2", 0.4, "torchattacks:FAB", {"steps": 3}),
        ("L2", 0.4, "torchattacks:APGDT", {"steps": 5}),
        ("Linf", 0.06, "foolbox:LInfFMNAttack", {"steps": 10}),
        ("L2", 0.4, "foolbox:L2DeepFoolAttack", {}),
        ("L2", 3.0, "foolbox:LinearSearchBlendedUniformNoiseAttack", {"directions": 20, "steps": 20}),
        ("Linf", 0.3, "foolbox:LinfRepeatedAdditiveUniformNoiseAttack", {"repeats": 20}),
    ],
)
def test_each_kind_of_attack_runs_and_every_verdict_has_its_witness(
    norm: Any, eps: float, name: str, settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    model = Small(classes=6).eval()  # not the ten that torchattacks would take for granted
    x = torch.rand(12, 1, 8, 8, generator=generator(3))
    with torch.no_grad():
        y = model(x).argmax(1)
        result = build(name, **settings).run(model, x, y, norm=norm, eps=eps, batch_size=5)
        assert torch.equal(model(result.x_adv).argmax(1) == y, torch.tensor([v == ROBUST for v in result.verdicts]))
    assert name in result.verdicts
    moved = (result.x_adv - x).flatten(1).norm(p=float("inf") if norm == "Linf" else 2, dim=1)
    assert moved.max() <= eps + 1e-5 and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert capfd.readouterr().out == ""


def test_an_attack_that_leaves_the_ball_is_judged_where_the_ball_ends(
    model: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    x, y = examples
    raw = torchattacks.DeepFool(model, steps=50)(x, y)
    far = (raw - x).flatten(1).norm(dim=1)
    eps = float(far.median())
    with torch.no_grad():
        fooled = model(raw).argmax(1) != y
    assert bool((fooled & (far > 1.2 * eps)).any()), "it has to claim what lies outside"
    result = build("torchattacks:DeepFool").run(model, x, y, norm="L2", eps=eps)
    assert (result.x_adv - x).flatten(1).norm(dim=1).max() <= eps + 1e-5
    assert all(result.verdicts[place] == ROBUST for place in (far > 1.2 * eps).nonzero().flatten().tolist())
    assert "torchattacks:DeepFool" in result.verdicts


class Cheat:
    """White images for every ball.

    Distance Measure : Linf
    """

    def __init__(self, model: nn.Module, eps: float = 0.1) -> None:
        self.model = model

    def set_device(self, device: torch.device) -> None:
        """Nothing."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.full_like(images, 7.0)


class CheatingAttack(TorchattacksAttack):
    method = "torchattacks:Cheat"
    theirs = Cheat


def test_an_attack_that_hands_in_what_is_no_image_gains_nothing_by_it() -> None:
    bright = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        bright[1].weight[:], bright[1].bias[:] = torch.tensor([[0.0] * 4, [0.25] * 4]), torch.tensor([0.6, 0.0])
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    assert CheatingAttack().run(bright, x, y, norm="Linf", eps=0.09).verdicts == [ROBUST] * 3
    result = CheatingAttack().run(bright, x, y, norm="Linf", eps=0.11)
    assert result.verdicts == ["torchattacks:Cheat"] * 3
    assert result.x_adv.flatten().tolist() == pytest.approx([0.61] * 12)


@pytest.mark.parametrize("name", ["torchattacks:PGD", "foolbox:LinfPGD"])
def test_draws_follow_from_the_seed_and_leave_every_generator_as_it_was(
    name: str, model: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    attack = build(name, steps=1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again, other = (
        attack.run(model, *examples, norm="Linf", eps=0.06, seed=seed).x_adv for seed in (2**40, 2**40, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]


@pytest.mark.parametrize("name", torchattacks.__all__)
def test_every_attack_of_torchattacks_can_be_named_and_written_down_or_says_why_not(name: str) -> None:
    if name in ("MultiAttack", "LGV"):
        with pytest.raises(InputError, match=rf"attack='torchattacks:{name}' cannot be run from here: it has to be "):
            build(f"torchattacks:{name}")
        return
    attack = build(f"torchattacks:{name}")
    assert attack.method == f"torchattacks:{name}" and not attack.per_example
    assert build(attack.method, **attack.model_dump(mode="json")) == attack == ATTACKS.build(attack.spec())
    assert not {"model", "eps", "norm", "seed", "n_classes"} & set(type(attack).model_fields)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "torchattacks:PDG"}, r"unknown attack of torchattacks 'PDG'. Did you mean 'PGD'"),
        ({"method": "foolbox:linfpgd"}, r"unknown attack of foolbox 'linfpgd'. Did you mean 'LinfPGD'"),
        ({"method": "foolbox:Attack"}, r"unknown attack of foolbox 'Attack'"),
        ({"method": "torchattack:PGD"}, r"unknown attack 'torchattack:PGD'. Did you mean 'torchattacks:NAME'"),
        (
            {"method": "torchattacks:PGD", "stepz": 3},
            r"attack\.stepz: attack 'torchattacks:PGD' takes alpha, steps, ran",
        ),
        ({"method": "torchattacks:PGD", "eps": 0.1}, r"attack\.eps: attack 'torchattacks:PGD' takes alpha, steps, ra"),
        ({"method": "torchattacks:PGD", "steps": "x"}, r"attack\.steps: must be a valid number \(given: 'x'\)"),
        ({"method": "torchattacks:PGD", "alpha": "2/0"}, r"attack\.alpha: '2/0' is not a radius: it divides by zero"),
        ({"method": "foolbox:VirtualAdversarialAttack"}, r"attack\.steps: Field required"),
        ({"method": "foolbox:L2DeepFoolAttack", "loss": "l"}, r"attack\.loss.*'logits'"),
    ],
)
def test_a_wrong_name_or_setting_is_answered_with_what_would_be_right(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ATTACKS.build(ComponentSpec(**spec))


def test_numbers_are_read_as_they_are_written_on_a_command_line() -> None:
    attack = build("torchattacks:PGD", alpha="2/255", steps="7", random_start="false")
    assert attack.model_dump() == {"alpha": 2 / 255, "steps": 7, "random_start": False}
    assert isinstance(attack.model_dump()["steps"], int)
    assert build("torchattacks:CW", c="0.5").model_dump()["c"] == 0.5


@pytest.mark.parametrize(
    ("package", "remedy"),
    [
        ("foolbox", "pip install foolbox$"),
        ("torchattacks", "pip install torchattacks, then pip uninstall -y robustbench and pip install robustbench"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"^attack='{package}:PGD' needs the package {package}: {remedy}"):
        build(f"{package}:PGD")


def test_a_package_that_is_broken_is_named_with_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foolbox.py").write_text("raise ImportError('no git:\\nbad executable')")
    monkeypatch.delitem(sys.modules, "foolbox")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"^attack='foolbox:PGD': foolbox cannot be imported: no git: bad executable$"):
        build("foolbox:PGD")


@pytest.mark.parametrize(
    ("name", "norm", "message"),
    [
        (
            "torchattacks:PGDL2",
            "Linf",
            "norm='Linf': torchattacks:PGDL2 searches in L2; choose another of torchatta",
        ),
        (
            "torchattacks:PGD",
            "L2",
            "norm='L2': torchattacks:PGD searches in Linf; choose another",
        ),
        (
            "torchattacks:APGD",
            "L1",
            "norm='L1': torchattacks:APGD searches in L2 and Linf; choose another",
        ),
        (
            "foolbox:L2PGD",
            "Linf",
            "norm='Linf': foolbox:L2PGD searches in L2; choose another of foolbox's attacks",
        ),
        (
            "foolbox:HopSkipJumpAttack",
            "Linf",
            "norm='Linf': foolbox:HopSkipJumpAttack searches in L2; choose",
        ),
        (
            "foolbox:SpatialAttack",
            "L2",
            "norm='L2': foolbox:SpatialAttack is bounded by no norm; choose another",
        ),
    ],
)
def test_an_attack_of_another_norm_is_refused_before_the_model_is_asked_anything(
    name: str, norm: Any, message: str, examples: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match=message):
        build(name).run(nn.Identity(), *examples, norm=norm, eps=0.1)


def test_a_setting_may_choose_the_norm() -> None:
    build("foolbox:HopSkipJumpAttack", constraint="linf").check("Linf")


def test_what_goes_wrong_in_their_code_is_one_sentence(model: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(SamBenchError, match=r"^foolbox:GenAttack failed: ValueError: unsupported criterion$"):
        build("foolbox:GenAttack").run(model, *examples, norm="Linf", eps=0.1)


def test_a_package_that_one_attack_of_theirs_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(foolbox.attacks.L2BrendelBethgeAttack, "__init__", lacking)
    with pytest.raises(InputError, match="attack='foolbox:L2BrendelBethgeAttack' needs the package numba: pip install"):
        build("foolbox:L2BrendelBethgeAttack").check("L2")
