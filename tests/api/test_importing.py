"""Weights of others come into the zoo whole, strictly and with their normalisation checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sam_bench import api
from sam_bench.api import importing
from sam_bench.data import load_dataset
from sam_bench.errors import InputError
from sam_bench.models import architecture_for, create_model
from sam_bench.models.own_code import CODE_VARIABLE
from sam_bench.records import sha256_file
from sam_bench.zoo import Zoo, load_model

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
NUMBERS = "0.5,0.4,0.3/0.25,0.2,0.1"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random images of 8 pixels with four classes."""
    path = tmp_path_factory.mktemp("data") / "toys.npz"
    x = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    y = np.arange(200) % 4
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, classes=["ant", "bee", "cat", "dog"])
    return path


def _network() -> nn.Module:
    torch.manual_seed(0)
    architecture = architecture_for(
        "preactresnet10", num_classes=4, in_channels=3, image_size=8, mean=MEAN, std=STD, options={"width": 4}
    )
    module = create_model(architecture)
    module.train()(torch.rand(64, 3, 8, 8))
    return module.eval()


def _bare() -> dict[str, Tensor]:
    return {key.removeprefix("net."): value for key, value in _network().state_dict().items()}


def _import(file: Path, images: Path, zoo: Path, **changes: Any) -> api.ImportResult:
    given: dict[str, Any] = {
        "name": "theirs",
        "arch": "preactresnet10",
        "arch_options": {"width": 4},
        "dataset": images,
        "normalize": NUMBERS,
        "zoo": zoo,
        "device": "cpu",
    }
    return api.import_model(file, **given | changes)


def test_of_two_imports_of_one_name_at_once_the_second_is_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(_bare(), tmp_path / "theirs.pt")
    torch.save({key: value * 2 for key, value in _bare().items()}, tmp_path / "late.pt")
    measure = importing.correct

    def overtaken(*given: Any, **more: Any) -> Tensor:
        monkeypatch.setattr(importing, "correct", measure)
        _import(tmp_path / "theirs.pt", images, tmp_path / "zoo")
        return measure(*given, **more)

    monkeypatch.setattr(importing, "correct", overtaken)  # the name was free when this one began
    with pytest.raises(InputError, match=r"theirs is in the zoo .* already: choose another name"):
        _import(tmp_path / "late.pt", images, tmp_path / "zoo")
    imported = Zoo(tmp_path / "zoo").find("theirs").imported
    assert imported is not None and imported.file == "theirs.pt"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.module."])
def test_every_usual_form_of_a_state_dict_is_taken(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state: Any = {prefix + key: value for key, value in _bare().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "theirs.pt")
    architecture = architecture_for(
        "preactresnet10", num_classes=4, in_channels=3, image_size=8, mean=MEAN, std=STD, options={"width": 4}
    )
    loaded = load_model(tmp_path / "theirs.pt", architecture=architecture)
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(loaded.module(x), _network()(x))


def test_the_card_says_what_is_known_and_the_model_is_the_one_in_the_file(tmp_path: Path, images: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(_bare(), file)
    done = _import(file, images, tmp_path / "zoo", authors="A. Nyone", additional_data=True)
    card = Zoo(tmp_path / "zoo").find("theirs")
    assert card == done.card and card.clean_accuracy == done.normalized > 0 and done.note == ""
    assert card.imported is not None and card.imported.sha256 == sha256_file(file)
    assert (card.classes, card.additional_data, card.passes) == (("ant", "bee", "cat", "dog"), True, None)
    assert card.test_fingerprint == load_dataset(str(images)).test.fingerprint
    assert Zoo(tmp_path / "zoo").verify(card) == []
    with pytest.raises(InputError, match=r"is in the zoo .* already"):
        _import(file, images, tmp_path / "zoo")


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_weights_trained_by_timms_own_code_keep_its_stem(tmp_path: Path, images: Path, stem: str) -> None:
    """A RegNet's first convolution has the same shape with stride 2 and with stride 1."""
    shape: dict[str, Any] = {"num_classes": 4, "in_channels": 3, "image_size": 8}
    net = create_model(architecture_for("timm:regnetx_002", **shape, options={"stem": stem})).net.eval()
    torch.save(net.state_dict(), tmp_path / "theirs.pt")
    given = {
        "arch": "timm:regnetx_002",
        "arch_options": None if stem == "imagenet" else {"stem": stem},
        "normalize": "none",
    }
    _import(tmp_path / "theirs.pt", images, tmp_path / "zoo", **given)
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(api.load_model("theirs", zoo=tmp_path / "zoo")(x), net(x))


def _bright_or_dark(folder: Path, threshold: float) -> tuple[Path, Path]:
    """Images that are bright or dark, and the weights of a linear network that tells them apart at the threshold."""
    dark, bright = (np.random.default_rng(0).integers(low, low + 100, (100, 8, 8, 3)) for low in (20, 130))
    x, y = np.concatenate([dark, bright]).astype(np.uint8), np.repeat([0, 1], 100)
    np.savez(folder / "light.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    weight = torch.ones(2, 192) / 192 * torch.tensor([[-1.0], [1.0]])
    state = {"1.weight": weight, "1.bias": torch.tensor([threshold, -threshold])}
    torch.save(state, folder / "linear.pt")
    return folder / "light.npz", folder / "linear.pt"


@pytest.mark.parametrize(
    ("threshold", "right", "wrong", "instead"),
    [(0.5, "none", "0.9/0.1", "without normalisation"), (0.0, "0.5/0.25", "none", "with the data's own mean and std")],
)
def test_a_wrong_normalisation_is_said_in_a_sentence(
    tmp_path: Path, own_module: str, threshold: float, right: str, wrong: str, instead: str
) -> None:
    data, weights = _bright_or_dark(tmp_path, threshold)

    def add(normalize: str) -> api.ImportResult:
        name = "wrong" if normalize == wrong else "right"
        fields: dict[str, Any] = {"dataset": data, "zoo": tmp_path / "zoo", "device": "cpu"}
        return api.add_model(
            f"{own_module}:linear", weights, name=name, normalize=normalize, arch_options={"classes": 2}, **fields
        )

    done = add(right)
    assert done.normalized == done.card.clean_accuracy == 1.0 and done.note == ""
    done = add(wrong)
    assert done.normalized == done.card.clean_accuracy < done.otherwise
    assert f"{instead}: `normalize` is probably wrong" in done.note


@pytest.mark.parametrize("text", ["", "cifar", "0.5", "0.5,0.5/0.2/0.1", "a/b", "0.5,0.4/0.2,0.2"])
def test_a_normalisation_that_is_none_is_refused(tmp_path: Path, images: Path, text: str) -> None:
    torch.save(_bare(), tmp_path / "theirs.pt")
    with pytest.raises(InputError, match=r"must be none, cifar10|mean and std have 2 numbers"):
        _import(tmp_path / "theirs.pt", images, tmp_path / "zoo", normalize=text)
    assert not (tmp_path / "zoo").exists()


def test_loading_is_strict(tmp_path: Path, images: Path) -> None:
    state = _bare()
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match=r"extra\.weight not expected"):
        _import(tmp_path / "theirs.pt", images, tmp_path / "zoo")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module of networks, importable, and a mark that it leaves when it is run."""
    (tmp_path / "my_own_nets.py").write_text(
        "import torch\n"
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'was-run')!r}).touch()\n"
        "def linear(bias=True, classes=4):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes, bias=bias))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_own_nets", raising=False)
    monkeypatch.setattr("sam_bench.models.own_code._allowed", set())
    return "my_own_nets"


def test_code_that_a_card_names_is_run_only_if_the_user_names_it(
    tmp_path: Path, images: Path, own_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False))
    torch.save(own.state_dict(), tmp_path / "own.pt")
    done = api.add_model(
        f"{own_module}:linear",
        tmp_path / "own.pt",
        name="own",
        dataset=images,
        normalize="none",
        arch_options={"bias": False},
        zoo=tmp_path / "zoo",
        device="cpu",
    )
    assert done.card.architecture.name == "python:my_own_nets:linear"
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_model("own", zoo=tmp_path / "zoo").module(x), own(x))

    # Another process, as far as this rule goes.
    monkeypatch.setattr("sam_bench.models.own_code._allowed", set())
    monkeypatch.delitem(sys.modules, own_module)
    (tmp_path / "was-run").unlink()
    with pytest.raises(InputError, match=f"if you trust that module, set the environment variable {CODE_VARIABLE}="):
        load_model("own", zoo=tmp_path / "zoo")
    assert not (tmp_path / "was-run").exists()
    monkeypatch.setenv(CODE_VARIABLE, f"other,{own_module}")
    assert torch.equal(load_model("own", zoo=tmp_path / "zoo").module(x), own(x))


def test_data_whose_classes_have_other_numbers_are_refused(tmp_path: Path, images: Path) -> None:
    torch.save(_bare(), tmp_path / "theirs.pt")
    _import(tmp_path / "theirs.pt", images, tmp_path / "zoo")
    with np.load(images) as content:
        arrays = dict(content)
    look = {"attack": "fgsm", "eps": "1/255", "n_examples": 2, "zoo": tmp_path / "zoo", "device": "cpu"}
    for name, classes in (("order", ["bee", "ant", "cat", "dog"]), ("part", ["ant", "dog", "elk", "fox"])):
        other = tmp_path / f"{name}.npz"
        np.savez(other, **arrays | {"classes": np.array(classes)})
        with pytest.raises(InputError, match=r"knows 'ant'|knows 'bee'|knows 'dog'") as refused:
            api.evaluate("theirs", dataset=str(other), output=tmp_path / "no.json", **look)
        assert str(refused.value).count(". ") == 0
    np.savez(tmp_path / "plain.npz", **{key: value for key, value in arrays.items() if key != "classes"})
    record = api.evaluate("theirs", dataset=str(tmp_path / "plain.npz"), output=tmp_path / "yes.json", **look)
    assert record.n_examples == 2


@pytest.mark.parametrize("factory", ["nets", "nets:", ":make", "os:system('x')", "a b:c", "nets:make:more"])
def test_what_is_no_factory_is_refused(tmp_path: Path, images: Path, factory: str) -> None:
    with pytest.raises(InputError, match="is not MODULE:FACTORY"):
        api.add_model(factory, tmp_path / "w.pt", name="n", dataset=images, normalize="none", zoo=tmp_path / "zoo")
