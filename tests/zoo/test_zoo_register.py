"""timm and RobustBench find the zoo's models by their own functions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import sam_bench.integrations
from sam_bench.errors import InputError, SamBenchError
from sam_bench.models import architecture_for, create_model
from sam_bench.records import ModelCard
from sam_bench.zoo import Zoo, hidden_robustbench_model, hooks, load_model, register_zoo, robustbench_name, timm_name
from sam_bench.zoo.names import dotted_names, timm_names

Fields = Callable[..., dict[str, Any]]
Networks = Callable[..., nn.Module]


@pytest.fixture
def robustbench_load() -> Callable[..., nn.Module]:
    sam_bench.integrations.install()
    from robustbench.utils import load_model as their_load

    return their_load  # type: ignore[no-any-return]


@pytest.fixture
def default_zoo(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    monkeypatch.setenv("SAM_BENCH_ZOO", str(zoo.root))
    return zoo


def test_timm_and_robustbench_return_the_model_bitwise(
    zoo: Zoo, network: Networks, fields: Fields, images: Tensor, robustbench_load: Callable[..., nn.Module]
) -> None:
    module = network()
    card = zoo.save(module, fields(name="Reg-one"))
    assert register_zoo(zoo.root) == ["reg_one_cifar10_jpeg_linf", "reg_one_cifar10_linf"]
    expected = module(images)
    for made in (
        timm.create_model("reg_one_cifar10_jpeg_linf", pretrained=True),
        timm.create_model(timm_name(card), pretrained=True, num_classes=10, in_chans=3),
        robustbench_load("Reg-one", dataset="cifar10", threat_model="Linf"),
        load_model("timm:reg_one_cifar10_linf").module,
        load_model("robustbench:Reg-one").module,
    ):
        assert not made.training
        assert torch.equal(made(images), expected)
    assert load_model("timm:reg_one_cifar10_linf").card == load_model("robustbench:Reg-one").card == card
    assert "reg_one_cifar10_linf" in timm.list_models("reg_one*") == timm.list_pretrained("reg_one*")
    untrained = timm.create_model("reg_one_cifar10_linf")
    assert not torch.equal(untrained(images), expected)


def test_a_transform_built_by_timm_feeds_the_unit_interval(zoo: Zoo, network: Networks, fields: Fields) -> None:
    zoo.save(network(), fields(name="reg-cfg"))
    register_zoo(zoo.root)
    settings = timm.data.resolve_model_data_config(timm.create_model("reg_cfg_cifar10_linf", pretrained=True))
    assert (settings["mean"], settings["std"], settings["input_size"]) == ((0, 0, 0), (1, 1, 1), (3, 32, 32))


def test_robustbench_gives_an_imagenet_model_the_images_that_our_imagenet_has(zoo: Zoo, fields: Fields) -> None:
    from robustbench.data import PREPROCESSINGS, get_preprocessing
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    architecture = architecture_for(
        "preactresnet10", num_classes=1000, in_channels=3, image_size=224, options={"width": 1}
    )
    imagenet = {"dataset": "imagenet", "robustbench_dataset": "imagenet", "architecture": architecture}
    zoo.save(create_model(architecture), fields(name="reg-large", **imagenet))
    register_zoo(zoo.root)
    found = get_preprocessing(BenchmarkDataset.imagenet, ThreatModel.Linf, "reg-large", None)
    expected = PREPROCESSINGS["Res256Crop224"]
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (300, 400, 3), dtype=np.uint8))
    assert torch.equal(found(image), expected(image))


def test_registering_again_is_silent_and_takes_in_what_changed(
    zoo: Zoo, network: Networks, fields: Fields, images: Tensor
) -> None:
    zoo.save(network(0), fields(name="reg-again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = register_zoo(zoo.root)
        assert register_zoo(zoo.root) == first
        second = zoo.save(network(1), fields(name="reg-again"))  # registered at once, its zoo being registered
        made = timm.create_model("reg_again_cifar10_linf", pretrained=True)
        assert register_zoo(zoo.root) == first
    assert torch.equal(made(images), network(1)(images))
    assert timm.models.get_pretrained_cfg("reg_again_cifar10_linf").file == str(zoo.weights_path(second))


def test_a_model_saved_into_the_default_zoo_is_there_at_once(
    default_zoo: Zoo, tmp_path: Path, network: Networks, fields: Fields, robustbench_load: Callable[..., nn.Module]
) -> None:
    default_zoo.save(network(), fields(name="reg-now"))
    Zoo(tmp_path / "elsewhere").save(network(), fields(name="reg-elsewhere"))
    assert timm.is_model("reg_now_cifar10_linf")
    assert not timm.is_model("reg_elsewhere_cifar10_linf")
    assert robustbench_load("reg-now", dataset="cifar10") is not None


def test_names_with_a_dot_work_with_the_dot_and_without(
    zoo: Zoo, network: Networks, fields: Fields, images: Tensor, robustbench_load: Callable[..., nn.Module]
) -> None:
    cards = {rho: zoo.save(network(seed), fields(name=f"reg-rho{rho}")) for seed, rho in enumerate(("0.1", "0.25"))}
    register_zoo(zoo.root)
    for seed, (rho, card) in enumerate(cards.items()):
        short = robustbench_name(card)
        assert short == f"reg-rho{rho}".replace(".", "")
        for made in (
            robustbench_load(f"reg-rho{rho}", dataset="cifar10"),
            robustbench_load(short, dataset="cifar10"),
            timm.create_model(f"reg_rho{rho}_cifar10_jpeg_linf", pretrained=True),
        ):
            assert torch.equal(made(images), network(seed)(images))
        assert load_model(f"robustbench:reg-rho{rho}").card == card
    with pytest.raises(InputError, match=r"'reg_rho0.3_cifar10_linf'. Available: reg_rho0.1_cifar10_jpeg_linf"):
        robustbench_load("reg-rho0.3", dataset="cifar10")


def test_a_custom_checkpoint_replaces_the_weights(
    zoo: Zoo,
    tmp_path: Path,
    network: Networks,
    fields: Fields,
    images: Tensor,
    robustbench_load: Callable[..., nn.Module],
) -> None:
    zoo.save(network(0), fields(name="reg-custom"))
    register_zoo(zoo.root)
    path = tmp_path / "custom.pt"
    torch.save({"state_dict": network(1).state_dict()}, path)
    made = robustbench_load("reg-custom", dataset="cifar10", custom_checkpoint=str(path))
    assert torch.equal(made(images), network(1)(images))


def test_what_the_card_fixes_cannot_be_changed(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields(name="reg-fixed"))
    register_zoo(zoo.root)
    for option, message in (
        ({"num_classes": 100}, "reg_fixed_cifar10_linf: num_classes is 10, as its weights are; 100 was asked for"),
        ({"in_chans": 1}, "in_chans is 3"),
        ({"drop_rate": 0.5}, "a zoo model takes no drop_rate"),
        ({"pretrained_cfg": {"file": "x"}}, "no pretrained_cfg"),
    ):
        with pytest.raises(InputError, match=message):
            timm.create_model("reg_fixed_cifar10_linf", pretrained=True, **option)
    path = zoo.weights_path(card)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SamBenchError, match=f"cut short: SHA-256 expected {card.weights.sha256}"):
        timm.create_model("reg_fixed_cifar10_linf", pretrained=True)


def test_timms_own_models_are_never_replaced(zoo: Zoo, network: Networks, fields: Fields) -> None:
    def reg_theirs_cifar10_linf(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return nn.Identity()

    timm.models.register_model(reg_theirs_cifar10_linf)
    zoo.save(network(), fields(name="resnet18.mine"))
    zoo.save(network(), fields(name="reg-theirs"))
    own = timm.models.model_entrypoint("resnet18")
    with pytest.warns(UserWarning, match="reg_theirs_cifar10_linf': timm has a model of its own"):
        register_zoo(zoo.root)
    assert timm.models.model_entrypoint("resnet18") is own
    assert timm.is_model("resnet18mine_cifar10_linf")
    assert timm.models.model_entrypoint("reg_theirs_cifar10_linf") is reg_theirs_cifar10_linf
    assert timm.is_model("reg_theirs_cifar10_jpeg_linf")


def test_a_broken_card_is_warned_of_once_and_the_others_registered(zoo: Zoo, network: Networks, fields: Fields) -> None:
    zoo.save(network(), fields(name="reg-sound"))
    broken = zoo.root / "cifar10-jpeg" / "Linf" / "broken.json"
    broken.write_text('{"name": "broken"}')
    with pytest.warns(UserWarning, match=r"broken\.json is not registered with timm") as caught:
        register_zoo(zoo.root)
        assert "reg_sound_cifar10_linf" in register_zoo(zoo.root)
    assert len(caught) == 1


def test_robustbench_lists_the_models_and_keeps_its_own(
    zoo: Zoo,
    network: Networks,
    fields: Fields,
    tmp_path: Path,
    robustbench_load: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.utils import list_available_models

    zoo.save(network(), fields(name="reg-listed"))
    zoo.save(network(), fields(name="reg-l2", robustbench_dataset="cifar100", threat="L2"))
    own = dict(model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf])
    zoo.save(network(), fields(name="Rade2021Helper_extra"))
    hiding = zoo.save(network(), fields(name="rade2021helper-ddpm"))
    register_zoo(zoo.root)
    assert "reg-l2" in model_dicts[BenchmarkDataset.cifar_100][ThreatModel.L2]
    table = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    assert all(table[name] is row for name, row in own.items())
    assert hidden_robustbench_model(hiding) == "Rade2021Helper_ddpm"

    folder = tmp_path / "model_info" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "reg-listed.json").write_text(
        '{"link": "", "name": "t", "venue": "", "architecture": "a", "clean_acc": "90", "autoattack_acc": "50"}'
    )
    monkeypatch.chdir(tmp_path)
    list_available_models("cifar10", "Linf")
    assert "reg-listed" in capsys.readouterr().out

    with pytest.warns(UserWarning, match="hides RobustBench's own model 'Rade2021Helper_ddpm'"):
        robustbench_load("Rade2021Helper_ddpm", dataset="cifar10")
    with pytest.raises(InputError, match="'Rade2021Helper_ddpm' cannot be loaded: cifar10-jpeg/Linf/rade"):
        load_model("robustbench:Rade2021Helper_ddpm")


FRESH = """
import hashlib, sys, warnings
warnings.simplefilter("error")
import sam_bench
heavy = [name for name in ("torch", "timm", "robustbench", "pydantic") if name in sys.modules]
assert not heavy, heavy
warnings.simplefilter("default")
import timm
names = timm.list_models("fresh*")
assert names == ["fresh_cifar10_jpeg_linf", "fresh_cifar10_linf"], names
import torch
from robustbench.utils import load_model
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
assert "fresh" in model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
by_timm = timm.create_model("fresh_cifar10_linf", pretrained=True)
by_robustbench = load_model("fresh", dataset="cifar10", threat_model="Linf")
for model in (by_timm, by_robustbench):
    print(hashlib.sha256(model(x).detach().numpy().tobytes()).hexdigest())
"""


def run_fresh(code: str, zoo: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAM_BENCH_ZOO": str(zoo)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_a_fresh_process_finds_the_zoo_although_a_card_is_broken(
    zoo: Zoo, network: Networks, fields: Fields, images: Tensor
) -> None:
    zoo.save(network(), fields(name="fresh"))
    (zoo.root / "cifar10-jpeg" / "Linf" / "broken.json").write_text("{")
    run = run_fresh(FRESH, zoo.root)
    assert run.returncode == 0, run.stderr
    digest = hashlib.sha256(network()(images).detach().numpy().tobytes()).hexdigest()
    assert run.stdout.split()[-2:] == [digest, digest]
    assert run.stderr.count("broken.json is not registered with timm") == 1


def test_nothing_that_is_wrong_with_a_zoo_reaches_the_import_of_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    monkeypatch.setenv("SAM_BENCH_ZOO", str(path))
    with pytest.warns(UserWarning, match="file is a file; it must be a folder"):
        hooks._on_timm(timm)
    # A path no system call takes: an error that nobody foresaw.
    monkeypatch.setattr("sam_bench.zoo.register.zoo_dir", lambda explicit=None: Path("a\0b"))
    with pytest.warns(UserWarning, match="the sam-bench zoo is not registered: ValueError"):
        hooks._on_timm(timm)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_timm_and_robustbench_split_a_name_as_ours_does(name: str) -> None:
    card = ModelCard.model_construct(name=name, dataset="cifar10-jpeg", threat="Linf", robustbench_dataset="cifar10")
    asked_by_robustbench = f"{name.lower().replace('-', '_')}_cifar10_linf"
    stem, tag = timm.models.split_model_name_tag(asked_by_robustbench)
    if "." in name:
        assert dotted_names(card)[-1] == (stem, tag)
    else:
        assert timm_names(card)[-1] == asked_by_robustbench and dotted_names(card) == []
    assert all("." not in each and "-" not in each and each == each.lower() for each in timm_names(card))
    assert timm_name(card) == timm_names(card)[0]
