"""Trainings that start from given weights: which tensors are taken, what is new, and what is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _registry
from torch import Tensor

from sam_bench import train
from sam_bench.api import TrainResult
from sam_bench.api.specs.train import TrainSpec
from sam_bench.api.training import prepare
from sam_bench.data import load_dataset
from sam_bench.distributed import ALONE
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.zoo import Zoo


class Listening(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        self.said.append(text)


TINY: dict[str, Any] = {
    "dataset": "digits",
    "image_size": 8,
    "arch": "preactresnet10",
    "arch_options": {"width": 2},
    "limit_train": 64,
    "precision": "fp32",
    "validation": 0,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_BENCH_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("SAM_BENCH_CACHE", str(tmp_path / "cache"))


def trained(recipe: str = "standard", *, epochs: int = 1, **changes: Any) -> TrainResult:
    settings = {"epochs": epochs, "batch_size": 32, "crop_padding": 0, "flip": False, **changes.pop("settings", {})}
    return train(recipe, settings=settings, **(TINY | changes))


def at_the_start(**changes: Any) -> tuple[dict[str, Tensor], Any, list[str]]:
    """Weights and config of a run about to begin, and what it says."""
    spec, reporter = TrainSpec(**(TINY | changes)), Listening()
    ready = prepare(spec, Zoo(Path("zoo")), team=ALONE, reporter=reporter)
    return dict(ready.run.model.state_dict()), ready.run.config, reporter.said


def test_a_model_of_the_zoo_is_the_start_tensor_by_tensor_and_named_on_the_card() -> None:
    first = trained(name="first")
    weights, config, said = at_the_start(init="first", seed=3)
    assert all(torch.equal(value, weights[key]) for key, value in first.model.state_dict().items())
    assert "starts from the weights of first" in said and config.name.endswith(
        "-from-first-seed3".removesuffix("-seed3")
    )
    second = trained("sam", init="first", name="second", settings={"lr": 1e-9, "weight_decay": 0})
    assert second.card.init == "first" and len(second.card.init_sha256 or "") == 64
    assert first.card.init is None and first.card.init_sha256 is None
    # At a rate of nothing it is still the first model.
    for key, value in second.model.state_dict().items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, first.model.state_dict()[key], rtol=0, atol=1e-6)


def test_a_network_that_computes_something_else_with_the_weights_says_so() -> None:
    smooth = {"width": 2, "activation": "silu"}
    trained(name="smooth", arch_options=smooth)
    (said,) = [each for each in at_the_start(init="smooth")[2] if each.startswith("starts from")]
    assert "it computes something else than that model" in said
    assert "starts from the weights of smooth" in at_the_start(init="smooth", arch_options=smooth)[2]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_file_is_a_start_and_its_bytes_are_part_of_the_run(suffix: str) -> None:
    state = {key: value + 0.5 for key, value in trained(name="first").model.state_dict().items()}
    path = Path(f"own{suffix}")
    torch.save({"state_dict": state}, path) if suffix == ".pt" else save_file(state, path)
    weights, config, said = at_the_start(init=path)
    assert all(torch.equal(value.to(weights[key].dtype), weights[key]) for key, value in state.items())
    assert config.init == f"own{suffix}" and "-from-own" in config.name and f"own{suffix}" in " ".join(said)
    before = config.init_sha256
    state["net.linear.bias"] += 1
    torch.save({"state_dict": state}, path) if suffix == ".pt" else save_file(state, path)
    assert at_the_start(init=path)[1].init_sha256 != before


def test_another_number_of_classes_gets_a_new_last_layer_and_keeps_the_rest() -> None:
    first = trained(name="first")
    data = load_dataset("digits", image_size=8)
    assert data.train is not None
    few = data.train.labels < 4
    x, y = data.train.images[few].permute(0, 2, 3, 1).numpy(), data.train.labels[few].numpy()
    np.savez("four.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    weights, _, said = at_the_start(dataset="four.npz", image_size=None, init="first")
    plain, _, _ = at_the_start(dataset="four.npz", image_size=None, name="plain")
    for key, value in first.model.state_dict().items():
        assert torch.equal(weights[key], plain[key] if key.startswith("net.linear") else value)
    assert "starts from the weights of first, with a new last layer for 4 classes" in said


def test_a_start_from_robustbench_has_its_weights_and_its_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    theirs = WideResNet(depth=10, widen_factor=1, sub_block1=True)
    made = {"model": lambda: WideResNet(depth=10, widen_factor=1, sub_block1=True), "gdrive_id": "none"}
    monkeypatch.setitem(model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf], "Tiny2019", made)
    path = Path("cache/robustbench/cifar10/Linf/Tiny2019.pt")
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": theirs.state_dict()}, path)
    x, y = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10
    np.savez("own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    wide = {"arch": "wideresnet", "arch_options": {"depth": 10, "width": 1}, "image_size": None, "limit_train": None}
    weights, config, _ = at_the_start(dataset="own.npz", init="robustbench:Tiny2019", **wide)
    assert all(torch.equal(value, theirs.state_dict()[key.removeprefix("net.")]) for key, value in weights.items())
    assert config.architecture.mean == () == config.architecture.std


def test_timms_pretrained_weights_are_a_start_that_timm_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Position embeddings for another grid, patches of another size, and a head for other classes are timm's work."""
    name, small = "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 3}
    torch.manual_seed(1)
    source = timm.create_model(name, pretrained=False, **small)
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, "vit.safetensors")
    tag = f"{name}.augreg_in21k_ft_in1k"
    found = _registry._model_pretrained_cfgs
    for known in (name, tag):
        fake = dataclasses.replace(found[known], file="vit.safetensors", hf_hub_id=None, url="", custom_load=False)
        monkeypatch.setitem(found, known, fake)
    chosen = {"arch": f"timm:{name}", "arch_options": small, "image_size": 32}
    weights, config, said = at_the_start(init=f"timm:{tag}", **chosen)
    expected = timm.create_model(
        tag, pretrained=True, num_classes=10, in_chans=1, img_size=32, patch_size=4, **small
    ).state_dict()
    taken = [key for key in expected if not key.startswith("head.")]
    assert all(torch.equal(weights[f"net.{key}"], expected[key]) for key in taken)
    assert torch.equal(weights["net.blocks.0.mlp.fc1.weight"], source.state_dict()["blocks.0.mlp.fc1.weight"])
    assert (
        any(each.startswith(f"starts from the weights of timm:{tag}") for each in said) and config.init == f"timm:{tag}"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "nobody"}, "nobody"),
        ({"init": "first", "arch_options": {"width": 4}}, r"does not fit preactresnet10: .*shape"),
        ({"init": "first", "arch": "preactresnet18"}, r"does not fit preactresnet18: .*missing"),
        ({"init": "timm:resnet18"}, r"another architecture.*arch='timm:resnet18'"),
        ({"init": "timm:resnet18", "arch": "timm:resnet34", "arch_options": {}}, "another architecture"),
        ({"init": "timm:resnet18.nope", "arch": "timm:resnet18", "arch_options": {}}, "no pretrained weights"),
        ({"init": 3}, "a model's name or a file"),
    ],
)
def test_what_cannot_be_a_start_is_refused(changes: dict[str, Any], message: str) -> None:
    trained(name="first")
    with pytest.raises(InputError, match=message):
        at_the_start(**changes)
