"""Models of other zoos, RobustBench's and timm's, behind one contract: inputs in [0, 1], logits out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sam_bench.errors import InputError, SamBenchError, unknown_name
from sam_bench.zoo.downloads import downloading
from sam_bench.zoo.names import timm_form

_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's
CACHE_VARIABLE = "SAM_BENCH_CACHE"
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}


@dataclass(frozen=True)
class External:
    """An external model with what is known of it; `module` takes inputs in [0, 1] and is in eval mode."""

    module: nn.Module
    num_classes: int
    input_shape: tuple[int, int, int]


def from_robustbench(name: str, dataset: str | None, threat: str) -> External:
    """A model of RobustBench's zoo, downloaded by RobustBench on first use.

    Args:
        name: RobustBench's model ID, for example "Carmon2019Unlabeled".
        dataset: "cifar10" (the default), "cifar100" or "imagenet".
        threat: "Linf" or "L2" (or "corruptions").

    Raises:
        InputError: RobustBench has no such data set, threat model or model.
        SamBenchError: RobustBench could not download or load it; says what it said.
    """
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
        from robustbench.utils import load_model
    except ImportError as error:
        raise SamBenchError(
            f"RobustBench cannot be imported ({error}); `sam-bench doctor` says how to fix it"
        ) from error
    dataset = dataset or "cifar10"
    if dataset not in _CLASSES:
        raise unknown_name("RobustBench data set", dataset, _CLASSES)
    threats = [member.value for member in ThreatModel]
    if threat not in threats:
        raise unknown_name("RobustBench threat model", threat, threats)
    own = model_dicts[BenchmarkDataset(dataset)].get(ThreatModel(threat), {})
    _check_robustbench_name(name, dataset, threat, own)

    folder = robustbench_cache()
    files = _files(name, own.get(name, {}).get("gdrive_id"))
    with downloading(folder, dataset, threat, files) as where:
        try:
            module = load_model(name, model_dir=where, dataset=dataset, threat_model=threat)
        # The download, the unpickler and 200 model definitions raise errors of every type; all become one message.
        except Exception as error:
            if isinstance(error, SamBenchError):
                raise
            raise SamBenchError(
                f"RobustBench could not load {name!r} ({dataset}, {threat}): {_said(error)}; "
                f"its files are kept under {folder / dataset / threat}"
            ) from error
    return External(module.eval(), _CLASSES[dataset], _SHAPES[dataset])


def refuse_other_preprocessing(name: str) -> None:
    """Refuse a model of RobustBench's that is evaluated there on images of ImageNet that are cut out otherwise.

    Raises:
        InputError: It is; says how.
    """
    from robustbench.data import PREPROCESSINGS, get_preprocessing
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    try:
        own = get_preprocessing(BenchmarkDataset.imagenet, ThreatModel.Linf, name, None)
    except KeyError:
        return  # loading it says what is wrong
    if repr(own) != repr(PREPROCESSINGS["Res256Crop224"]):
        raise InputError(
            f"RobustBench evaluates {name} on images made by {' '.join(repr(own).split())}, and imagenet here is "
            "resized to 256 and cut to 224 pixels, bilinear: give images made so as a FILE.npz"
        )


def robustbench_cache() -> Path:
    """Where RobustBench's checkpoints are kept: `$SAM_BENCH_CACHE/robustbench`, else its own default `./models`."""
    cache = os.environ.get(CACHE_VARIABLE)
    return Path(cache).expanduser() / "robustbench" if cache else Path("models")


def _files(name: str, places: Any) -> list[str]:
    """The files of a model: one, one for each part of an ensemble, or none if timm has it."""
    if places is None:
        return []
    return [f"{name}.pt_m{index}.pt" for index in range(len(places))] if isinstance(places, list) else [f"{name}.pt"]


def _check_robustbench_name(name: str, dataset: str, threat: str, own: dict[str, Any]) -> None:
    import timm

    if "/" in name or "\\" in name:
        raise unknown_name(f"RobustBench model ({dataset}, {threat}):", name, own)
    if name not in own and not timm.is_model(f"{name.lower().replace('-', '_')}_{dataset}_{threat.lower()}"):
        raise unknown_name(f"RobustBench model ({dataset}, {threat}):", name, own)


def from_timm(name: str) -> External:
    """A pretrained model of timm, its own normalisation put in front.

    Args:
        name: A timm model with weights ("resnet18.a1_in1k"), or "hf-hub:ORGANISATION/NAME".

    Raises:
        InputError: timm has no such model, or no weights for it.
        SamBenchError: The weights cannot be had, for example without a network; says what timm said.
    """
    import timm
    from timm.models import is_model_pretrained

    from sam_bench.models import NormalizedModel

    if not name.startswith(("hf-hub:", "hf_hub:")):
        if not timm.is_model(name):
            raise _unknown_timm(name)
        if "." not in name and not is_model_pretrained(name):
            tagged = timm.list_pretrained(f"{name}.*")
            hint = f"; with weights: {', '.join(tagged[:5])}" if tagged else ""
            raise InputError(f"timm has no pretrained weights for {name!r}{hint}")
    try:
        with _tensors_only():
            module = timm.create_model(name, pretrained=True)
    # The hub's client, the file system and the model's constructor each have errors of their own.
    except Exception as error:
        raise SamBenchError(
            f"timm could not load {name!r}: {_said(error)}; without a network only cached models load"
        ) from error
    settings = module.pretrained_cfg
    channels, height, width = settings["input_size"]
    return External(
        NormalizedModel(module, tuple(settings["mean"]), tuple(settings["std"])).eval(),
        int(module.num_classes),
        (int(channels), int(height), int(width)),
    )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """No pickle with code is loaded in this block: timm would run one that a repository of the Hub holds."""
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before


def _unknown_timm(name: str) -> InputError:
    import timm

    error = unknown_name("timm model", name, timm.list_models())
    # timm has more than a thousand: the nearest are of use, the list is not.
    message = str(error).partition(" Available:")[0]
    return InputError(f"{message} timm.list_models('*{timm_form(name)[:6]}*') lists what is near")


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = " ".join(line.strip() for line in lines[:3] if line.strip()) if lines else "no reason given"
    return f"{type(error).__name__}: {text[:400]}"
