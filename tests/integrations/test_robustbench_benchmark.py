"""`robustbench.benchmark` itself, on files in CIFAR-10's format, with a small trained model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import robustbench
import torch
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
from torch import Tensor, nn

from sam_bench.integrations.robustbench import autoattack_seed
from sam_bench.integrations.state import EvaluationState


@pytest.fixture
def short(shorten: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """RobustBench's AutoAttack with its iterations cut."""
    original = robustbench.eval.AutoAttack
    monkeypatch.setattr(robustbench.eval, "AutoAttack", lambda *args, **kwargs: shorten(original(*args, **kwargs)))


@pytest.mark.usefixtures("short")
def test_benchmark_runs_with_a_device_by_name_and_counts_right(
    model: nn.Module, data_dir: Path, batch: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    with autoattack_seed(0):
        clean, robust = robustbench.benchmark(model, n_examples=24, data_dir=str(data_dir), device="cpu", eps=0.08)
        same = robustbench.eval.benchmark(
            model, n_examples=24, data_dir=str(data_dir), device=torch.device("cpu"), eps=0.08
        )
    with torch.no_grad():
        assert clean == pytest.approx(float((model(batch[0]).argmax(1) == batch[1]).float().mean()))
    assert 0 < robust < clean
    assert same == (clean, robust)
    assert f"Adversarial accuracy: {robust:.2%}" in capfd.readouterr().out


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", [str, Path])
def test_benchmark_with_a_state_path_gives_the_same_number_and_resumes(
    model: nn.Module, data_dir: Path, tmp_path: Path, kind: Callable[[Path], Any]
) -> None:
    path = tmp_path / "state.json"
    settings: dict[str, Any] = {"n_examples": 16, "data_dir": str(data_dir), "eps": 0.08, "batch_size": 12}
    with autoattack_seed(0):
        without = robustbench.benchmark(model, **settings)
        stored = robustbench.benchmark(model, aa_state_path=kind(path), **settings)
        assert stored == pytest.approx(without)
        # Take the last attack back, as if the run had been killed before it.
        content = json.loads(path.read_text())
        content["_run_attacks"].remove("square")
        path.write_text(json.dumps(content))
        assert robustbench.benchmark(model, aa_state_path=kind(path), **settings) == pytest.approx(without)
    assert "square" in EvaluationState.from_disk(path).run_attacks


@pytest.mark.usefixtures("short")
def test_the_seed_decides_benchmarks_result_and_only_inside_its_block(
    model: nn.Module, data_dir: Path, tmp_path: Path
) -> None:
    def found(seed: int, name: str) -> list[Any]:
        seen: list[Any] = []
        handle = model.register_forward_hook(
            lambda module, inputs, output: seen.append(inputs[0].double().sum().item())
        )
        try:
            with autoattack_seed(seed):
                robustbench.benchmark(model, n_examples=8, data_dir=str(data_dir), eps=0.08)
        finally:
            handle.remove()
        return seen

    first, again, other = found(1, "a"), found(1, "b"), found(2, "c")
    assert first == again
    assert first != other
    with autoattack_seed(7):
        assert robustbench.eval.AutoAttack(model, device="cpu").seed == 7
        with autoattack_seed(8):
            assert robustbench.eval.AutoAttack(model, device="cpu").seed == 8
        assert robustbench.eval.AutoAttack(model, device="cpu", seed=3).seed == 3
    assert robustbench.eval.AutoAttack(model, device="cpu").seed is None


def test_benchmark_still_complains_about_wrong_arguments_itself(model: nn.Module, data_dir: Path) -> None:
    with pytest.raises(TypeError, match="n_exmples"):
        robustbench.benchmark(model, n_exmples=3)
    with pytest.raises(NotImplementedError):
        robustbench.benchmark([model], n_examples=3)
    with pytest.raises(RuntimeError, match="nosuchdevice"):
        robustbench.benchmark(model, n_examples=3, device="nosuchdevice")
    with pytest.raises(ValueError, match="eps"):
        robustbench.benchmark(model, n_examples=3, data_dir=str(data_dir))


def test_the_corruptions_of_cifar_are_measured_at_every_severity(
    model: nn.Module,
    data_dir: Path,
    images: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files in the published layout: 10,000 images a severity, of which the first eight are not black."""
    monkeypatch.chdir(tmp_path)
    chosen = {ThreatModel.corruptions: ("fog",)}
    monkeypatch.setitem(robustbench.eval.CORRUPTIONS_DICT, BenchmarkDataset.cifar_10, chosen)
    folder, expected = data_dir / "CIFAR-10-C", []
    folder.mkdir()
    file = np.lib.format.open_memmap(folder / "fog.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3))
    labels = np.zeros(10_000, np.int64)
    labels[:8] = images[1][1300:1308]
    for severity in range(5):
        dimmed = (images[0][1300:1308].float() / 2**severity).to(torch.uint8)
        file[10_000 * severity : 10_000 * severity + 8] = dimmed.permute(0, 2, 3, 1).numpy()
        with torch.no_grad():
            hits = model(dimmed.float() / 255).argmax(1) == images[1][1300:1308]
        expected.append(float(hits.float().mean()))
    file.flush()
    np.save(folder / "labels.npy", labels)
    settings = {"n_examples": 8, "data_dir": str(data_dir), "threat_model": "corruptions", "device": "cpu"}
    _, robust = robustbench.benchmark(model, model_name="tiny", to_disk=False, **settings)
    assert robust == pytest.approx(sum(expected) / 5) and len(set(expected)) > 1
