"""`load_model`: a name, a path, RobustBench's zoo, timm's; and what is no checkpoint is refused."""

from __future__ import annotations

import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hub_server import running_hub
from torch import Tensor, nn

import sam_bench
from sam_bench.errors import InputError, SamBenchError
from sam_bench.models import architecture_for, create_model, register_architecture, registry
from sam_bench.records import Architecture, sha256_file
from sam_bench.zoo import Zoo, load_model, read_state_dict, refuse_other_preprocessing, state_dict_sha256, zoo_dir

Fields = Callable[..., dict[str, Any]]
Networks = Callable[..., nn.Module]


def test_the_zoo_is_found_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAM_BENCH_ZOO", raising=False)
    assert zoo_dir() == Path("model_zoo")
    monkeypatch.setenv("SAM_BENCH_ZOO", str(tmp_path))
    assert zoo_dir() == tmp_path
    assert zoo_dir(Path("mine")) == Path("mine")


def test_a_name_a_full_name_a_card_and_a_weights_file_lead_to_the_same_model(
    zoo: Zoo, network: Networks, fields: Fields, images: Tensor
) -> None:
    module = network()
    card = zoo.save(module, fields(name="sam-rho0.2"))
    for model in ("sam-rho0.2", "cifar10-jpeg/Linf/sam-rho0.2", zoo.card_path(card), str(zoo.weights_path(card))):
        loaded = load_model(model, zoo=zoo.root)
        assert torch.equal(loaded.module(images), module(images))
        assert (loaded.card, loaded.sha256, loaded.name) == (card, card.weights.sha256, "sam-rho0.2")
        assert (loaded.num_classes, loaded.input_shape) == (10, (3, 32, 32))
        assert not loaded.module.training


def test_an_altered_checkpoint_is_refused_by_every_way_to_it(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields())
    path = zoo.weights_path(card)
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    for model in ("sam", zoo.card_path(card), path):
        with pytest.raises(SamBenchError, match=f"expected {card.weights.sha256}, found {sha256_file(path)}"):
            load_model(model, zoo=zoo.root)


def test_data_set_and_threat_decide_between_models_of_one_name(zoo: Zoo, network: Networks, fields: Fields) -> None:
    jpeg = zoo.save(network(), fields(name="a"))
    digits = zoo.save(network(), fields(name="a", dataset="digits", robustbench_dataset=None))
    l2 = zoo.save(network(), fields(name="a", threat="L2"))
    only_l2 = zoo.save(network(), fields(name="b", threat="L2"))

    def card(model: str, **hints: str) -> object:
        return load_model(model, zoo=zoo.root, **hints).card  # type: ignore[arg-type]

    assert card("a", dataset="cifar10-jpeg") == card("a", dataset="cifar10") == jpeg
    assert card("a", dataset="digits") == digits
    assert card("a", dataset="cifar10", threat="L2") == l2
    assert card("b", dataset="svhn") == only_l2
    with pytest.raises(InputError, match="names 2 models; say which: cifar10-jpeg/Linf/a, digits/Linf/a"):
        card("a")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "net.", "module.", "module.net."])
def test_an_external_state_dict_loads_with_its_architecture(
    tmp_path: Path, network: Networks, architecture: Architecture, images: Tensor, wrapper: str | None, prefix: str
) -> None:
    module = network()
    bare = {key.removeprefix("net."): value for key, value in module.state_dict().items()}
    state: dict[str, Any] = {prefix + key: value for key, value in bare.items()}
    path = tmp_path / "theirs.pt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    loaded = load_model(path, architecture=architecture)
    assert torch.equal(loaded.module(images), module(images))
    assert (loaded.card, loaded.sha256) == (None, sha256_file(path))


def test_bare_safetensors_load_with_their_architecture_whatever_the_suffix(
    tmp_path: Path, network: Networks, architecture: Architecture
) -> None:
    for name in ("weights.safetensors", "weights.bin"):
        safetensors.torch.save_file(network().state_dict(), tmp_path / name)
        loaded = load_model(str(tmp_path / name), architecture=architecture)
        assert state_dict_sha256(loaded.module) == state_dict_sha256(network())
        with pytest.raises(InputError, match=r"a card \(.json\), which both know it, or a checkpoint in the folder"):
            load_model(str(tmp_path / name))


def test_a_state_dict_of_another_network_is_refused_with_the_keys(
    tmp_path: Path, network: Networks, architecture: Architecture
) -> None:
    wider = architecture.model_copy(update={"options": {**architecture.options, "width": 8}})
    torch.save(network().state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(InputError, match=r"narrow\.pt does not fit preactresnet18: net\..* has shape"):
        load_model(tmp_path / "narrow.pt", architecture=wider)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"missing; (net\.)?fc\.weight not expected"):
        load_model(tmp_path / "other.pt", architecture=architecture)


@pytest.mark.filterwarnings("ignore:.*(quantize|TypedStorage|sparse)")
def test_quantised_and_sparse_weights_are_refused_and_other_floats_are_not(
    tmp_path: Path, network: Networks, architecture: Architecture
) -> None:
    path, state = tmp_path / "w.pt", network().state_dict()
    weight = state["net.conv1.weight"]
    quantised = torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8)
    for called, form in {
        "int8": weight.char(),
        "bool": weight > 0,
        "qint8": quantised,
        "sparse": weight.to_sparse(),
    }.items():
        torch.save({**state, "net.conv1.weight": form}, path)
        with pytest.raises(InputError, match=rf"net\.conv1\.weight is {called}, where a dense float tensor belongs"):
            load_model(path, architecture=architecture)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save(network().to(dtype).state_dict(), path)
        load_model(path, architecture=architecture)


class Payload:
    """Unpickled, this runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path, architecture: Architecture) -> None:
    marker = tmp_path / "it ran".replace(" ", "_")
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "optimizer": Payload(marker)}, path)
    for write in (lambda: None, lambda: path.write_bytes(pickle.dumps(Payload(marker)))):
        write()
        with pytest.raises(InputError, match="is refused: it is a pickle that holds more than tensors"):
            load_model(path, architecture=architecture)
        assert not marker.exists()
    # The payload is a live one: loaded as people load checkpoints, it runs.
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_what_is_no_checkpoint_is_named(tmp_path: Path, network: Networks) -> None:
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    safe = safetensors.torch.save(network().state_dict())
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    contents = {
        "drive.pt": (b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "HTML page saved as"),
        "page.safetensors": (b"<html><body>Sign in", "HTML page saved as"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        "empty.ckpt": (b"", "is empty"),
        "short.pt": (whole[: len(whole) // 2], "cut short"),
        "legacy.pt": (pickle.dumps([1.5] * 1000)[:100], "cut short|refused"),
        "noise.pt": (bytes(range(100, 200)), "cut short, damaged or not a checkpoint|refused"),
        "short.safetensors": (safe[: len(safe) // 2], "not a whole safetensors file"),
        "tiny.safetensors": (b"abc", "not a whole safetensors file"),
        "list.pt": ((tmp_path / "list.pt").read_bytes(), "holds no state dict but a list"),
        "epoch.pt": ((tmp_path / "epoch.pt").read_bytes(), r"a dict with the keys \['epoch'\]"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_state_dict(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    # Bytes that are text up to the last, which is cut: only whole characters count.
    for name, text in (("notes.pt", "a list of words"), ("long.pt", "a" + 512 * "ö")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=rf"{name} is a text file, not a model; .* or a checkpoint$"):
            load_model(tmp_path / name)
    for name in ("drive.pt", "lfs.pth", "empty.ckpt", "noise.pt"):  # these have messages of their own
        with pytest.raises(InputError, match=contents[name][1]):
            load_model(tmp_path / name)
    for absent in ("absent.pt", "."):
        with pytest.raises(InputError, match="no such checkpoint file"):
            load_model(tmp_path / absent)


def test_an_unknown_name_gives_the_nearest_and_the_folder(zoo: Zoo, network: Networks, fields: Fields) -> None:
    zoo.save(network(), fields())
    with pytest.raises(InputError, match=f"zoo {zoo.root}: 'smam'. Did you mean 'sam'.*Available: sam"):
        load_model("smam", zoo=zoo.root)
    with pytest.raises(InputError, match="There is none yet"):
        load_model("sam", zoo=zoo.root / "nowhere")
    with pytest.raises(InputError, match="device 'warp' cannot be used"):
        load_model("sam", zoo=zoo.root, device="warp")


# RobustBench


@pytest.fixture
def robustbench_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to the network."""
    monkeypatch.setenv("SAM_BENCH_CACHE", str(tmp_path))
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "robustbench" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    return folder


def test_a_robustbench_model_is_what_robustbench_loads(robustbench_cache: Path, images: Tensor) -> None:
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.utils import load_model as their_load

    reference = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]["Wong2020Fast"]["model"]()
    torch.save({"state_dict": reference.state_dict()}, robustbench_cache / "Wong2020Fast.pt")
    theirs = their_load("Wong2020Fast", model_dir=robustbench_cache.parents[1])
    loaded = load_model("robustbench:Wong2020Fast")
    assert torch.equal(loaded.module(images), theirs(images))
    assert loaded.sha256 == state_dict_sha256(theirs)
    assert (loaded.name, loaded.card, loaded.num_classes) == ("robustbench:Wong2020Fast", None, 10)


def test_a_failed_download_says_what_robustbench_said(robustbench_cache: Path) -> None:
    with pytest.raises(SamBenchError, match="RobustBench could not load 'Wong2020Fast'"):
        load_model("robustbench:Wong2020Fast")


def test_a_web_page_in_the_place_of_a_download_is_named(
    robustbench_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = robustbench_cache / "Wong2020Fast.pt"
    path.write_text("<!DOCTYPE html><html>Virus scan warning</html>")
    with pytest.raises(SamBenchError, match=r"Wong2020Fast\.pt is an HTML page saved as a checkpoint"):
        load_model("robustbench:Wong2020Fast")
    assert path.exists()  # the user's file: it is theirs to delete
    path.unlink()

    import robustbench.utils

    # What gdown does when Drive answers with its quota page.
    monkeypatch.setattr(robustbench.utils, "download_gdrive_new", lambda _, to: to.write_text("<html>Quota"))
    with pytest.raises(SamBenchError, match=r"download of Wong2020Fast\.pt failed.*deleted"):
        load_model("robustbench:Wong2020Fast")
    assert not path.exists()  # the next try downloads again


def _checkpoint(path: Path) -> bytes:
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    torch.manual_seed(0)
    reference = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]["Wong2020Fast"]["model"]()
    torch.save(reference.state_dict(), path)
    return path.read_bytes()


def test_a_download_that_breaks_off_is_not_taken_for_whole_and_a_changed_file_is_named(
    robustbench_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import robustbench.utils

    content = _checkpoint(tmp_path / "whole.pt")
    path = robustbench_cache / "Wong2020Fast.pt"
    for sent in (content[: len(content) // 2], content):
        monkeypatch.setattr(
            robustbench.utils, "download_gdrive_new", lambda _, to, sent=sent: Path(to).write_bytes(sent)
        )
        if sent is content:
            load_model("robustbench:Wong2020Fast")
        else:
            with pytest.raises(SamBenchError, match="RobustBench could not load 'Wong2020Fast'"):
                load_model("robustbench:Wong2020Fast")
            assert [*robustbench_cache.iterdir()] == []
    assert path.read_bytes() == content
    assert path.with_name("Wong2020Fast.pt.sha256").read_text() == f"{sha256_file(path)}  Wong2020Fast.pt\n"
    assert [each.name for each in robustbench_cache.parents[1].iterdir()] == ["cifar10"]

    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(SamBenchError, match=r"is not the file that was loaded before: SHA-256 expected .* delete it"):
        load_model("robustbench:Wong2020Fast")


def test_a_mirror_is_asked_first_and_a_cut_download_goes_on(
    robustbench_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _checkpoint(tmp_path / "whole.pt")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_hub() as server:
        monkeypatch.setenv("SAM_BENCH_MIRROR", f"{server.url}/the/mirror/resolve/main/")
        name = "cifar10/Linf/Wong2020Fast.pt"
        server.repos["the/mirror"] = {name: b"<html>Please log in</html>"}
        with pytest.raises(SamBenchError, match=rf"{name} is an HTML page saved as a checkpoint"):
            load_model("robustbench:Wong2020Fast")
        server.repos["the/mirror"] = {name: content}
        server.cut[name] = len(content) // 2
        with pytest.raises(SamBenchError, match="asked again, it goes on where it was"):
            load_model("robustbench:Wong2020Fast")
        load_model("robustbench:Wong2020Fast")
        (begun,) = (int(each.removeprefix("bytes=").rstrip("-")) for each in server.ranges)
        assert 0 < begun <= len(content) // 2
    assert (robustbench_cache / "Wong2020Fast.pt").read_bytes() == content


def test_unknown_robustbench_names_are_met_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'Wong2020Fast'"):
        load_model("robustbench:Wong2020Fats")
    with pytest.raises(InputError, match=r"unknown RobustBench data set 'digits'.*cifar10, cifar100, imagenet"):
        load_model("robustbench:Wong2020Fast", dataset="digits")
    with pytest.raises(InputError, match="unknown RobustBench threat model 'L1'"):
        load_model("robustbench:Wong2020Fast", threat="L1")


def test_a_model_that_robustbench_gives_other_images_is_refused() -> None:
    refuse_other_preprocessing("Standard_R50")
    refuse_other_preprocessing("no such model")
    with pytest.raises(InputError, match=r"Wong2020Fast on images made by Compose\( CenterCrop\(size=\(288, 288\)\)"):
        refuse_other_preprocessing("Wong2020Fast")
    with pytest.raises(InputError, match="interpolation=bicubic"):
        refuse_other_preprocessing("Liu2023Comprehensive_Swin-L")


# timm


@pytest.fixture
def timm_source(tmp_path: Path) -> Iterator[nn.Module]:
    """A pretrained timm model `zoo_test_source`, whose weights are a local file."""
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models.resnet import BasicBlock, ResNet

    def zoo_test_source(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        settings = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4)}
        module: nn.Module = build_model_with_cfg(ResNet, "zoo_test_source", pretrained, **settings, **kwargs)
        return module

    path = tmp_path / "source.safetensors"
    torch.manual_seed(0)
    module = types.ModuleType("zoo_test_timm_module")
    sys.modules[module.__name__] = zoo_test_source.__globals__["sys"].modules[module.__name__] = module
    zoo_test_source.__module__ = module.__name__
    settings = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 40, 40),
        "num_classes": 7,
        "file": str(path),
        "first_conv": "conv1",
        "classifier": "fc",
        "pool_size": (2, 2),
    }
    module.default_cfgs = generate_default_cfgs({"zoo_test_source": settings})  # type: ignore[attr-defined]
    register_model(zoo_test_source)
    plain = zoo_test_source(num_classes=7)
    safetensors.torch.save_file(plain.state_dict(), path)
    yield plain.eval()
    del sys.modules[module.__name__]


@pytest.mark.filterwarnings("ignore:Overwriting zoo_test_source")
def test_a_timm_model_takes_images_in_the_unit_interval(timm_source: nn.Module) -> None:
    loaded = load_model("timm:zoo_test_source")
    images = torch.rand(2, 3, 40, 40)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert torch.equal(loaded.module(images), timm_source((images - mean) / std))
    assert (loaded.num_classes, loaded.input_shape, loaded.card) == (7, (3, 40, 40), None)
    assert not loaded.module.training


def test_timm_models_that_do_not_exist_have_no_weights_or_cannot_be_had_are_named(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import huggingface_hub.constants
    from huggingface_hub.utils import reset_sessions

    request.addfinalizer(reset_sessions)  # one that was opened offline stays so
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SamBenchError, match=r"timm could not load 'resnet10t\.c3_in1k'"):
        load_model("timm:resnet10t.c3_in1k")
    with pytest.raises(InputError, match=r"unknown timm model 'resnte18'\. Did you mean 'resnet18'") as caught:
        load_model("timm:resnte18")
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="timm has no pretrained weights for 'vit_giant_patch14_224'"):
        load_model("timm:vit_giant_patch14_224")


def test_the_package_knows_its_version() -> None:
    assert sam_bench.__version__


def test_a_card_whose_architecture_is_of_a_missing_package_names_the_package(zoo: Zoo, fields: Fields) -> None:
    @register_architecture("hers")
    def hers(*, num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16 * in_channels, num_classes))

    of = architecture_for("hers", num_classes=2, in_channels=1, image_size=4, mean=(0.5,), std=(0.5,), options={})
    versions = {"python": "3.10.0", "torch": "2.0", "her-pack": "0.3"}
    try:
        card = zoo.save(create_model(of), fields(architecture=of, robustbench_dataset=None, packages=versions))
    finally:
        del registry._ENTRIES["hers"]
    said = r"unknown architecture 'hers'.* The card names packages that are not installed here: her-pack 0.3"
    with pytest.raises(InputError, match=said + "$"):
        load_model("sam", zoo=zoo.root)
    (problem,) = zoo.verify(card)
    assert re.search(said, problem.message)
