"""Names, options and normalisation: what is built, what is refused and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.models import (
    NormalizedModel,
    architecture_for,
    architecture_options,
    architectures,
    check_input_gradient,
    check_model,
    count_parameters,
    create_model,
    register_architecture,
)
from sam_bench.models import registry as registry_module
from sam_bench.models.check import some_images
from sam_bench.records import Architecture

DATA: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": 32}


def _message(name: str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        architecture_for(name, **{**DATA, **changes})
    return str(caught.value)


def test_the_promised_architectures_are_listed() -> None:
    assert {f"preactresnet{depth}" for depth in (10, 18, 34, 50)} <= set(architectures())


@pytest.mark.parametrize("name", architectures())
def test_every_registered_architecture_trains_a_step_and_comes_back_from_its_files(name: str, tmp_path: Path) -> None:
    small = {"width": 1 if name == "wideresnet" else 4} if "width" in architecture_options(name).model_fields else {}
    architecture = architecture_for(name, **DATA, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), options=small)
    model = create_model(architecture)
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {key: value.clone() for key, value in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())

    keys = list(model.state_dict())
    assert all(key.startswith("net.") and "model." not in key and "module." not in key for key in keys)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "architecture.json").write_text(architecture.model_dump_json())

    read = Architecture.model_validate_json((tmp_path / "architecture.json").read_text())
    assert read == architecture
    again = create_model(read)
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_equal_seeds_give_equal_weights() -> None:
    architecture = architecture_for("preactresnet10", **DATA, options={"width": 4})
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(create_model(architecture).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_an_option_left_out_of_a_card_has_its_default_and_a_chosen_one_is_recorded() -> None:
    assert architecture_for("preactresnet18", **DATA).options == {"width": 64}
    bare = Architecture(name="preactresnet10", num_classes=2)
    assert create_model(bare).get_submodule("net.conv1").out_channels == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, ["preactresnet18", "width", "greater than or equal to 1", "0"]),
        ({"width": -3}, ["width", "-3"]),
        ({"width": 16.5}, ["width", "valid integer", "16.5"]),
        ({"width": True}, ["width", "valid integer"]),
        ({"width": "wide"}, ["width", "valid integer", "wide"]),
        ({"widht": 16}, ["no option 'widht'", "it takes width"]),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], words: list[str]) -> None:
    message = _message("preactresnet18", options=options)
    assert all(word in message for word in words), message
    with pytest.raises(InputError):
        create_model(Architecture(name="preactresnet18", num_classes=2, options=options))


def test_a_misspelt_name_is_answered_with_the_nearest_and_all() -> None:
    message = _message("preactresnet81")
    assert "Did you mean 'preactresnet18'" in message
    assert all(name in message for name in architectures())
    assert "timm:NAME" in message


def test_a_timm_name_without_its_prefix_is_answered_with_the_prefix() -> None:
    assert "write 'timm:resnet18'" in _message("resnet18")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.5,), "std": (0.5,)}, ["1 numbers", "3 channels"]),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 2}, ["mean has 3", "std 2"]),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, ["std must be above 0"]),
        ({"mean": (0.5, float("nan"), 0.5), "std": (0.5,) * 3}, ["mean must be finite"]),
        ({"num_classes": 1}, ["num_classes", "greater than or equal to 2"]),
        ({"image_size": 2}, ["image_size", "greater than or equal to 4"]),
    ],
)
def test_impossible_data_is_refused_before_anything_is_built(changes: dict[str, Any], words: list[str]) -> None:
    message = _message("preactresnet18", **changes)
    assert all(word in message for word in words), message


def test_one_decorated_function_is_all_a_new_architecture_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_ENTRIES", dict(registry_module._ENTRIES))

    @register_architecture("testlinear")
    def testlinear(
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        bias: bool = True,
        copies: Annotated[int, Field(ge=1)] = 1,
    ) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes, bias=bias))

    assert "testlinear" in architectures()
    architecture = architecture_for("testlinear", **DATA, options={"bias": False})
    assert architecture.options == {"bias": False, "copies": 1}
    assert count_parameters(create_model(architecture)) == 10 * 3 * 32 * 32
    with pytest.raises(ValueError, match="registered twice"):
        register_architecture("testlinear")(testlinear)


def _positional(num_classes: int) -> nn.Module:
    return nn.Identity()


def _no_default(*, num_classes: int, width: int) -> nn.Module:
    return nn.Identity()


def _no_hint(*, num_classes: int, width=1) -> nn.Module:  # type: ignore[no-untyped-def]
    return nn.Identity()


@pytest.mark.parametrize(
    ("name", "function", "why"),
    [
        ("x", _positional, "keyword-only"),
        ("x", _no_default, "needs a default"),
        ("x", _no_hint, "type hint"),
        ("a:b", _positional, "prefixes"),
    ],
)
def test_a_function_that_cannot_be_an_architecture_is_refused_when_it_registers(
    name: str, function: Any, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        register_architecture(name)(function)
    assert name not in architectures()


@settings(max_examples=50, deadline=None)
@given(
    statistics=st.lists(st.tuples(st.floats(-1, 2, width=32), st.floats(0.125, 2, width=32)), min_size=0, max_size=4),
    seed=st.integers(0, 1000),
)
def test_the_network_sees_each_channel_shifted_and_scaled(statistics: list[tuple[float, float]], seed: int) -> None:
    channels = len(statistics) or 3
    x = torch.rand(2, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    model = NormalizedModel(nn.Identity(), [mean for mean, _ in statistics], [std for _, std in statistics])
    expected = x.clone()
    for channel, (mean, std) in enumerate(statistics):
        expected[:, channel] = (x[:, channel] - torch.tensor(mean)) / torch.tensor(std)
    assert torch.equal(model(x), expected)


def test_mean_and_std_move_with_the_model_but_are_not_saved() -> None:
    model = NormalizedModel(nn.Linear(2, 2), (0.5,), (0.25,))
    assert model.mean.shape == model.std.shape == (1, 1, 1, 1)
    assert model.mean.dtype == torch.float32
    assert set(model.state_dict()) == {"net.weight", "net.bias"}
    assert model.to("meta").mean.is_meta


class _Returns(nn.Module):
    """A model that answers with whatever the test wants."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.training_seen: list[bool] = []

    def forward(self, x: torch.Tensor) -> Any:
        self.training_seen.append(self.training)
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x.new_zeros(len(x), 7), ["[B,7]", "expected 10 classes"]),
        (lambda x: x.new_zeros(len(x), 10) * float("nan"), ["NaN"]),
        (lambda x: x.new_zeros(len(x), 10) / x.amax((1, 2, 3))[:, None], ["NaN"]),  # only on the black image
        (lambda x: x.new_zeros(len(x), 10) + float("inf"), ["infinite"]),
        (lambda x: x.new_zeros(len(x), 10, 1, 1), ["[4, 10, 1, 1]", "expected [4, 10]"]),
        (lambda x: x.new_zeros(10), ["[10]", "expected [4, 10]"]),
        (lambda x: x.new_zeros(1, 10), ["[1, 10]", "expected [4, 10]"]),
        (lambda x: (x.new_zeros(len(x), 10), None), ["tuple", "not a tensor"]),
        (lambda x: torch.zeros(len(x), 10, dtype=torch.int64), ["torch.int64", "floating-point"]),
        (lambda x: x @ x.new_zeros(5, 5), ["fails on 3x32x32 images"]),
    ],
)
def test_a_model_that_cannot_be_attacked_is_named_with_what_it_returned(answer: Any, words: list[str]) -> None:
    model = _Returns(answer).train()
    with pytest.raises(InputError) as caught:
        check_model(model, 10, (3, 32, 32), name="zoo model 'x'")
    assert all(word in str(caught.value) for word in ["zoo model 'x'", *words]), str(caught.value)
    assert model.training and model.training_seen == [False]


@pytest.mark.parametrize(
    "answer",
    [
        torch.no_grad()(lambda x: x.flatten(1)[:, :10] * 1.0),
        torch.inference_mode()(lambda x: x.flatten(1)[:, :10] * 1.0),
        lambda x: torch.ones(len(x), 10, requires_grad=True) * 2,
    ],
    ids=["no_grad", "inference_mode", "of something else"],
)
def test_a_model_without_a_gradient_is_refused_to_what_follows_it(answer: Any) -> None:
    model = _Returns(answer).train()
    check_model(model, 10, (3, 32, 32))
    with pytest.raises(InputError, match=r"the model has no gradient .* pgd follows .* suite='square'"):
        check_input_gradient(model, (3, 32, 32), attack="pgd")
    assert model.training


def test_a_model_is_looked_at_where_its_buffers_are_if_it_has_nothing_else() -> None:
    model = nn.Module()
    assert some_images(model, (1, 2, 2)).device.type == "cpu"
    model.register_buffer("weight", torch.empty(2, device="meta"))
    assert some_images(model, (1, 2, 2)).device.type == "meta"


def test_a_gradient_of_zero_is_one() -> None:
    check_input_gradient(_Returns(lambda x: x.flatten(1)[:, :10].round()), (3, 32, 32), attack="pgd")


def test_a_sound_model_passes_the_check_unchanged() -> None:
    model = create_model(architecture_for("preactresnet10", **DATA, options={"width": 4})).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_model(model, 10, (3, 32, 32))
    check_input_gradient(model, (3, 32, 32), attack="pgd")
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(2, 1, 16, 16), r"float32 \[2, 1, 16, 16\]"),
        (torch.zeros(3, 16, 16), r"float32 \[3, 16, 16\]"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"uint8 \[2, 3, 16, 16\]"),
    ],
    ids=["channels", "rank", "bytes"],
)
def test_images_that_would_be_broadcast_or_cast_in_silence_are_refused(images: Tensor, found: str) -> None:
    model = NormalizedModel(nn.Flatten(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 768)
    with pytest.raises(InputError, match=rf"takes images float \[batch, 3, H, W\] in \[0, 1\], not {found}"):
        model(images)
