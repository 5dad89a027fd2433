"""timm's networks on small images: built to fit, recorded, trained, and brought back."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sam_bench.errors import InputError
from sam_bench.models import architecture_for, create_model
from sam_bench.models.timm_stems import fitting_patch
from sam_bench.records import Architecture

DATA: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": 32}

# A family each: its name, what makes it quick, and what must have been chosen for 32 pixels.
FAMILIES = [
    ("resnet18", {"layers": [1, 1, 1, 1], "base_width": 64}, {"stem": "small"}),
    ("resnet26d", {"layers": [1, 1, 1, 1]}, {"stem": "small"}),
    ("vit_tiny_patch16_224", {"depth": 2}, {"stem": "small", "img_size": 32, "patch_size": 4}),
    ("mixer_s16_224", {"num_blocks": 2, "embed_dim": 64}, {"stem": "small", "img_size": 32, "patch_size": 4}),
    ("convnext_atto", {"depths": [1, 1, 1, 1]}, {"stem": "small", "patch_size": 2}),
    ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 24}, {"img_size": 32, "patch_size": 2}),
    ("mobilenetv3_small_050", {}, {"stem": "small"}),
    ("efficientnet_b0", {"channel_multiplier": 0.25}, {"stem": "small"}),
    ("regnetx_002", {}, {"stem": "small"}),
]


def _refusal(name: str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        architecture_for(name, **{**DATA, **changes})
    return str(caught.value)


@pytest.mark.parametrize(("name", "quick", "chosen"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_a_network_of_each_family_trains_on_32_pixels_and_comes_back_from_its_card(
    name: str, quick: dict[str, Any], chosen: dict[str, Any]
) -> None:
    architecture = architecture_for(f"timm:{name}", **DATA, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), options=quick)
    assert {**quick, **chosen}.items() <= architecture.options.items()

    torch.manual_seed(0)
    model = create_model(architecture).train()
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):  # some heads start at zero and let no gradient through before the first step
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)
    assert all(key.startswith("net.") and "model." not in key and "module." not in key for key in model.state_dict())

    again = create_model(Architecture.model_validate_json(architecture.model_dump_json()))
    again.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        logits = model.eval()(x)
        assert logits.shape == (4, 10)
        assert torch.equal(again.eval()(x), logits)


def test_the_small_stem_keeps_the_resolution_that_timms_own_gives_away() -> None:
    sizes = {}
    for stem in ("small", "imagenet"):
        architecture = architecture_for("timm:resnet18", **DATA, options={"stem": stem})
        assert architecture.options == {"stem": stem}
        net = create_model(architecture).get_submodule("net").eval()
        with torch.no_grad():
            sizes[stem] = net.forward_features(torch.rand(1, 3, 32, 32)).shape[-1]  # type: ignore[operator]
    assert sizes == {"small": 4, "imagenet": 1}


def test_a_softened_stem_keeps_the_class_and_width_of_its_convolution() -> None:
    short = {"layers": [1, 1, 1, 1]}
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=10).stem.conv
    architecture = architecture_for("timm:resnetv2_50x1_bit", **DATA, options=short)
    ours = create_model(architecture).get_submodule("net.stem.conv")
    assert type(ours) is type(theirs)
    assert theirs.weight.shape == (64, 3, 7, 7) and tuple(ours.weight.shape) == (64, 3, 3, 3)  # type: ignore[union-attr]
    assert ours(torch.rand(1, 3, 32, 32)).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_at_imagenets_size_the_network_is_timms_own(name: str) -> None:
    architecture = architecture_for(f"timm:{name}", **{**DATA, "image_size": 224})
    assert architecture.options == {"stem": "imagenet"}
    torch.manual_seed(0)
    ours = create_model(architecture).get_submodule("net").state_dict()
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_clashing_keyword_changes_only_what_it_names() -> None:
    # The Mixer's function refuses a patch size of its own; with timm's size through the detour it is timm's network.
    architecture = Architecture(name="timm:mixer_s16_224", num_classes=10, options={"patch_size": 16, "num_blocks": 2})
    torch.manual_seed(0)
    ours = create_model(architecture).get_submodule("net").state_dict()
    from timm.models.mlp_mixer import MlpMixer

    torch.manual_seed(0)
    theirs = MlpMixer(num_classes=10, patch_size=16, num_blocks=2, embed_dim=512).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_the_user_gives_is_kept() -> None:
    options = {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 2, "drop_path_rate": 0.1}
    architecture = architecture_for("timm:vit_tiny_patch16_224", **DATA, options=options)
    assert architecture.options == {**options, "img_size": 32, "stem": "small"}
    assert create_model(architecture).get_submodule("net.patch_embed.proj").kernel_size == (8, 8)


@pytest.mark.parametrize(
    ("name", "quick", "channels", "size"),
    [
        ("resnet18", {"layers": [1, 1, 1, 1]}, 1, 8),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 2}, 1, 28),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 2}, 3, 64),
        ("mixer_s16_224", {"num_blocks": 1, "embed_dim": 32}, 1, 8),
    ],
)
def test_grey_and_other_sizes_get_a_fitting_network(name: str, quick: dict[str, Any], channels: int, size: int) -> None:
    architecture = architecture_for(f"timm:{name}", num_classes=3, in_channels=channels, image_size=size, options=quick)
    assert architecture.options["stem"] == "small"
    assert create_model(architecture)(torch.rand(2, channels, size, size)).shape == (2, 3)


def test_choosing_draws_nothing_from_the_callers_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    architecture_for("timm:nest_tiny", **DATA)  # one of the few that need real weights for the trial
    assert torch.equal(torch.rand(3), expected)


def test_a_misspelt_timm_name_is_answered_with_a_few_near_ones_not_all() -> None:
    message = _refusal("timm:vit_tiny_patch61_224")
    assert "'timm:vit_tiny_patch16_224'" in message
    assert message.count("timm:") < 10 and len(message) < 600


@pytest.mark.parametrize("name", ["timm:hf-hub:timm/resnet18", "timm:hf_hub:a/b", "timm:", "timm:../resnet18"])
def test_names_that_would_reach_elsewhere_are_unknown(name: str) -> None:
    assert "unknown architecture" in _refusal(name)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18.a1_in1k", {}, ["'a1_in1k'", "pretrained", "'timm:resnet18'"]),
        ("resnet18", {"pretrained": True}, ["'pretrained'", "never fetched"]),
        ("resnet18", {"checkpoint_path": "x.pt"}, ["'checkpoint_path'", "never fetched"]),
        ("resnet18", {"num_classes": 5}, ["'num_classes'", "follows the data set"]),
        ("resnet18", {"nonsense": 1}, ["no option 'nonsense'"]),
        ("resnet18", {"stem": "tiny"}, ["stem must be 'small' or 'imagenet'", "'tiny'"]),
        ("vgg11", {"stem": "small"}, ["small stem", "stem=imagenet"]),
        ("vit_tiny_patch16_224", {"img_size": 64}, ["img_size=64", "32 pixels"]),
        ("vit_tiny_patch16_224", {"patch_size": 5}, ["patch_size=5", "1, 2, 4, 8, 16, 32"]),
        ("vit_tiny_patch16_224", {"patch_size": 0}, ["patch_size=0", "1, 2, 4, 8, 16, 32"]),
        ("vit_tiny_patch16_224", {"embed_dim": 65}, ["embed_dim=65", "divisible"]),
        ("vit_tiny_patch16_224", {"act_layer": nn.ReLU}, ["'act_layer'", "stored in the model's card"]),
        ("vit_tiny_patch16_224", {"drop_rate": float("nan")}, ["'drop_rate'"]),
        ("inception_v3", {}, ["does not work on 3x32x32", "another model"]),
        ("legacy_seresnet18", {}, ["se_module", "another timm model"]),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(name: str, options: dict[str, Any], words: list[str]) -> None:
    message = _refusal(f"timm:{name}", options=options)
    assert all(word in message for word in words), message


def test_a_card_cannot_make_timm_read_files() -> None:
    card = Architecture(name="timm:resnet18", num_classes=2, options={"checkpoint_path": "x.pt"})
    with pytest.raises(InputError, match="checkpoint_path"):
        create_model(card)


@given(size=st.integers(1, 512), cells=st.sampled_from([8, 16]))
def test_a_chosen_patch_divides_the_image_and_no_divisor_is_nearer(size: int, cells: int) -> None:
    patch = fitting_patch(size, cells)
    assert size % patch == 0
    distances = [abs(divisor - size / cells) for divisor in range(1, size + 1) if size % divisor == 0]
    assert abs(patch - size / cells) == min(distances)


def test_the_usual_sizes_get_the_usual_patches() -> None:
    assert [fitting_patch(size, 8) for size in (8, 16, 28, 32, 64)] == [1, 2, 4, 4, 8]
