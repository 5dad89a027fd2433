"""AutoAttack with a sample: the verdicts inside it, what is left outside, and the record."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from autoattack_samples import Conv
from torch import Tensor, nn

import sam_bench
from sam_bench.attacks import ATTACKS
from sam_bench.attacks.autoattack.sampled import SAMPLED, AutoAttackSampled, Sample
from sam_bench.attacks.warnings import square_warnings
from sam_bench.data import load_dataset
from sam_bench.errors import InputError
from sam_bench.evaluation import Problem
from sam_bench.evaluation.executors.processes import travelling
from sam_bench.records import ComponentSpec, EvaluationRecord, Radius, read_record, sampling_of
from sam_bench.zoo import LoadedModel


@pytest.fixture(scope="module")
def examples() -> tuple[Tensor, Tensor]:
    x = torch.rand(8, 3, 11, 11, generator=torch.Generator().manual_seed(0))
    return x, Conv(dtype=torch.float32)(x).argmax(1)


@pytest.mark.slow
def test_inside_the_sample_verdicts_are_autoattacks_and_outside_apgd_alone_decides(
    examples: tuple[Tensor, Tensor],
) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples
    eps = 0.012

    def verdicts(method: str, **settings: Any) -> list[str]:
        attack = ATTACKS.build(ComponentSpec(method=method, **settings)).keyed("key")
        return attack.run(model, x, y, norm="Linf", eps=eps).verdicts

    whole, half, cheap = (
        verdicts("autoattack"),
        verdicts("autoattack-sampled", sample=0.5),
        verdicts("autoattack-screen"),
    )
    inside = Sample("key", 0.5).contains(torch.arange(8)).tolist()
    assert {True, False} == set(inside)
    assert half == [a if within else b for a, b, within in zip(whole, cheap, inside, strict=True)]
    assert 0 < half.count("robust") < 8


def test_the_sample_depends_on_the_key_alone_and_has_the_share_asked_for() -> None:
    index = torch.arange(20_000)
    first, other = Sample("a", 0.1).contains(index), Sample("b", 0.1).contains(index)
    assert torch.equal(first[5:], Sample("a", 0.1).contains(index[5:]))
    assert abs(float(first.float().mean()) - 0.1) < 0.01
    assert abs(float((first & other).float().mean()) - 0.01) < 0.005
    assert bool((Sample("a", 0.2).contains(index) | ~first).all())  # a larger share adds examples


def test_the_record_says_what_was_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    asked: dict[str, Any] = {"dataset": "digits", "image_size": 8, "n_examples": 40, "settings": {"sample": 0.5}}
    records = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.json"
        records.append(sam_bench.evaluate(net, attack="autoattack-sampled", eps=0.001, seed=seed, output=path, **asked))
        assert read_record(path, EvaluationRecord) == records[-1]
    first, second = (record.sampled for record in records)
    assert first is not None and first == second  # no seed chooses the sample
    assert 0 < len(first.examples) < first.of
    assert first.at_least <= first.estimate <= records[0].robust_accuracy
    assert records[0].warnings[0].startswith("sampled: ")
    content = json.loads((tmp_path / "0.json").read_text())
    content["sampled"]["may_break"] -= 1
    (tmp_path / "0.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="sampled does not follow from the verdicts"):
        read_record(tmp_path / "0.json", EvaluationRecord)


def problem_of(eps: str) -> Problem:
    model = LoadedModel(nn.Flatten(), "flat", "a" * 64, None, 10, None)
    test = load_dataset("digits", image_size=8, test_only=True).test.head(40)
    return Problem(model, test, "digits", AutoAttackSampled(sample=0.5), "Linf", Radius(eps), seed=0, batch_size=8)


def chosen(problem: Problem) -> list[bool]:
    """What a process that is given the problem attacks."""
    attack = problem.attack.keyed(problem.key)
    assert isinstance(attack, AutoAttackSampled)
    return attack.chosen.contains(torch.arange(40)).tolist()


def test_other_processes_attack_the_sample_that_the_record_names() -> None:
    problem = problem_of("8/255")
    assert chosen(pickle.loads(pickle.dumps(travelling(problem)))) == chosen(problem)
    assert set(chosen(problem)) == {True, False}


def test_the_sample_is_the_balls_however_its_radius_is_written() -> None:
    samples = [chosen(problem_of(eps)) for eps in ("8/255", "8.0/255", "08/255", "16/510", "9/255")]
    assert samples[:4] == [samples[0]] * 4 and samples[4] != samples[0]


def test_what_square_breaks_in_the_sample_stands_for_all_that_apgd_left() -> None:
    verdicts = ["apgd-ce"] * 500 + ["square"] * 1 + ["robust"] * 499
    attacks = AutoAttackSampled().attacks
    half, tenth = (sampling_of(verdicts, SAMPLED, [place < 500 + n for place in range(1000)]) for n in (400, 50))
    assert square_warnings(verdicts, attacks) == [] == square_warnings(verdicts, attacks, half)
    (doubt,) = square_warnings(verdicts, attacks, tenth)
    assert "1.00% of all examples" in doubt.text


def test_several_radii_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="eps takes one radius with attack 'autoattack-sampled'"):
        sam_bench.evaluate_curve(net, [0.01, 0.02], attack="autoattack-sampled", dataset="digits", image_size=8)


def test_what_runs_on_the_sample_is_autoattacks_end() -> None:
    assert tuple(AutoAttackSampled().attacks[2:]) == SAMPLED
