"""The bridge: makes the zoo's models known to timm and RobustBench under names of theirs.

timm gets one entry point for each name. RobustBench asks timm first, so it finds the same entry points.
Its own tables get a row for each model, so that its listings show them.

An entry point knows where the card lies. The weights are read and checked when a model is made.
Registration lives in the process: a spawned worker has it after `import sam_bench`.

The bridge imports the store; the store calls it back through `store.on_saved`.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import ModelCard
from sam_bench.zoo import timm_models
from sam_bench.zoo.index import Listed, listed
from sam_bench.zoo.names import Named, dotted_names, full_name, robustbench_dataset, timm_names
from sam_bench.zoo.paths import zoo_dir
from sam_bench.zoo.store import Zoo, on_saved
from sam_bench.zoo.weights_check import build


@dataclass(frozen=True)
class _CardLocation:
    """Where a registered card lies, and what the zoo's index says of it."""

    root: Path
    listed: Listed

    @property
    def full_name(self) -> str:
        return full_name(self.listed)

    def exists(self) -> bool:
        return (self.root / f"{self.full_name}.json").exists()

    def read(self) -> tuple[Zoo, ModelCard]:
        zoo = Zoo(self.root)
        return zoo, zoo.find(self.full_name)


_locations: dict[str, _CardLocation] = {}  # timm name -> card
_variants: dict[str, dict[str, str]] = {}  # stem of names with a dot -> timm's tag -> timm name
_roots: set[Path] = set()
_listed: set[tuple[str, str, str]] = set()  # rows of RobustBench's tables that are ours
_warned: set[str] = set()


def register_zoo(root: Path | str | None = None) -> list[str]:
    """Make every model of a zoo known to timm, and to RobustBench where that is imported.

    Each is registered as `<name>_<dataset>_<threat>`, and as `<name>_<robustbench dataset>_<threat>`
    where the card names one. Doing it again takes in what has changed. A card that cannot be used is
    warned of once, by its file, and passed over.

    Args:
        root: The zoo's folder; `$SAM_BENCH_ZOO` or `./model_zoo` when not given.

    Returns:
        The names registered, sorted.
    """
    try:
        zoo = Zoo(zoo_dir(root).absolute())
    except SamBenchError as error:
        _warn_once(str(error))
        return []
    _roots.add(zoo.root.resolve())
    with _no_collection():
        names = [name for card in listed(zoo.root, partial(_read, zoo)) for name in _register(zoo, card)]
    return sorted(names)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: nothing of what is made here is garbage, and looking for it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(zoo: Zoo, path: Path) -> ModelCard | None:
    """A card that the index does not know yet; None, after a warning, for one that cannot be used."""
    try:
        return zoo.read(path)
    except InputError as error:
        _warn_once(f"{path} is not registered with timm: {error}")
        return None


def register_saved(zoo: Zoo, card: ModelCard) -> None:
    """Register a card just saved, when its zoo is registered or the default and timm is in use."""
    root = zoo.root.resolve()
    if "timm" in sys.modules and (root in _roots or root == zoo_dir().resolve()):
        _register(Zoo(zoo.root.absolute()), Listed.of(card))


on_saved.append(register_saved)


def list_with_robustbench() -> None:
    """Give every registered model its row in RobustBench's tables, once those are imported."""
    for location in dict.fromkeys(_locations.values()):
        if location.exists():  # asking for one deleted since it was registered says so
            _add_to_robustbench(location.listed)


def registered_card(name: str) -> ModelCard | None:
    """The card behind a timm name of ours, dots or not; None when the name is not ours."""
    stem, _, tag = name.partition(".")
    location = _locations.get(_variants.get(stem, {}).get(tag, name))
    return location.read()[1] if location is not None else None


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)


def _register(zoo: Zoo, card: Listed) -> list[str]:
    location = _CardLocation(zoo.root, card)
    names = [name for name in timm_names(card) if _may_take(name, location)]
    cfg = _cfg(zoo, card)
    for name in names:
        _locations[name] = location
        _add_to_timm(name, cfg)
    for (stem, tag), name in zip(dotted_names(card), timm_names(card), strict=True) if "." in card.name else ():
        if name in names and _free(stem, _variants):
            _variants.setdefault(stem, {})[tag] = name
            _add_to_timm(stem, None)
    if names and "robustbench.model_zoo" in sys.modules:
        _add_to_robustbench(card)
    return names


def _free(name: str, ours: Container[str]) -> bool:
    import timm

    return name in ours or not timm.is_model(name)


def _may_take(name: str, location: _CardLocation) -> bool:
    if not _free(name, _locations):
        _warn_once(f"{location.full_name} is not registered as {name!r}: timm has a model of its own by that name")
        return False
    present = _locations.get(name, location)
    if present.full_name != location.full_name and present.exists():
        _warn_once(f"{location.full_name} is not registered as {name!r}: {present.full_name} already is")
        return False
    return True


def _add_to_timm(name: str, cfg: dict[str, Any] | None) -> None:
    from timm.models import register_model

    known = hasattr(timm_models, name)
    if known and timm_models.default_cfgs.get(name) == cfg:
        return
    if cfg is not None:
        timm_models.default_cfgs[name] = cfg
    entry_point = _entry_point(name)
    setattr(timm_models, name, entry_point)
    # Taking in a changed card overwrites our own entry, which timm would warn of.
    with _silent() if known else nullcontext():
        register_model(entry_point)


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _cfg(zoo: Zoo, card: Listed) -> dict[str, Any]:
    return {
        "file": os.path.join(zoo.root, card.dataset, card.threat, card.weights),  # noqa: PTH118  # 10,000 times
        "input_size": (card.in_channels, card.image_size, card.image_size),
        "num_classes": card.num_classes,
        # The model normalises by itself: whoever builds a transform from these feeds it [0, 1].
        "mean": (0.0,) * card.in_channels,
        "std": (1.0,) * card.in_channels,
        # RobustBench makes a timm model's preprocessing of this. Our ImageNet is the middle 224 of 256 pixels.
        "crop_pct": 0.875 if card.robustbench_dataset == "imagenet" and card.image_size == 224 else 1.0,
        "interpolation": "bilinear",
        "fixed_input_size": True,
        "license": card.license,
    }


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def entry_point(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        **kwargs: Any,
    ) -> nn.Module:
        target = name
        if name in _variants:
            target, pretrained_cfg = _variant(name, pretrained_cfg), None
        if pretrained_cfg is not None or pretrained_cfg_overlay is not None:
            raise InputError(
                f"{name}: a zoo model takes no tag and no pretrained_cfg, because its card decides both; "
                "give other weights as checkpoint_path"
            )
        return _build(target, pretrained, kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__module__ = timm_models.__name__
    entry_point.__doc__ = "A model of the sam-bench zoo: in eval mode, inputs in [0, 1]."
    return entry_point


def _variant(stem: str, tag: object) -> str:
    known = _variants[stem]
    if isinstance(tag, str) and tag in known:
        return known[tag]
    listing = ", ".join(f"{stem}.{each}" for each in sorted(known))
    given = stem if tag is None else f"{stem}.{tag}"
    raise InputError(f"unknown zoo model {given!r}. Available: {listing}.")


def _build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    zoo, card = _locations[name].read()
    fixed = {"num_classes": card.architecture.num_classes, "in_chans": card.architecture.in_channels}
    for option, value in kwargs.items():
        if option not in fixed:
            raise InputError(f"{name}: a zoo model takes no {option}; its card fixes the architecture")
        if value != fixed[option]:
            raise InputError(f"{name}: {option} is {fixed[option]}, as its weights are; {value} was asked for")
    if pretrained:
        _warn_if_hiding(card)
    module = zoo.load(card) if pretrained else build(card.architecture).eval()
    module.num_classes = card.architecture.num_classes  # type: ignore[assignment]
    module.pretrained_cfg = module.default_cfg = {**_cfg(zoo, Listed.of(card)), "architecture": name}  # type: ignore[assignment]
    return module


# RobustBench


def _table(card: Named) -> OrderedDict[str, Any] | None:
    dataset = robustbench_dataset(card)
    if dataset is None:
        return None
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    # The tables are imported by name in three of its modules: they are added to, never replaced.
    table: OrderedDict[str, Any] = model_dicts[BenchmarkDataset(dataset)].setdefault(
        ThreatModel(card.threat), OrderedDict()
    )
    return table


def _add_to_robustbench(card: Named) -> None:
    table = _table(card)
    if table is None:
        return
    row = (str(robustbench_dataset(card)), card.threat, card.name)
    if card.name in table and row not in _listed:
        return  # RobustBench's own row stays; `_warn_if_hiding` tells of it when it matters
    import timm

    # As RobustBench marks its own models that come from timm: nothing to download.
    table[card.name] = {"model": partial(timm.create_model, timm_names(card)[0]), "gdrive_id": None}
    _listed.add(row)


def hidden_robustbench_model(card: ModelCard) -> str | None:
    """RobustBench's own model that can no longer be loaded because the card has its name; None if there is none.

    RobustBench lower-cases names and asks timm first, so a zoo model "standard" on cifar10 stands
    before its "Standard". Only known once RobustBench is imported.
    """
    if "robustbench.model_zoo" not in sys.modules:
        return None
    table = _table(card)
    dataset = str(robustbench_dataset(card))
    wanted = card.name.lower().replace("-", "_")
    for own in table or ():
        if own.lower().replace("-", "_") == wanted and (dataset, card.threat, own) not in _listed:
            return own
    return None


def _warn_if_hiding(card: ModelCard) -> None:
    own = hidden_robustbench_model(card)
    if own is not None:
        warnings.warn(
            f"this is {full_name(card)} of the sam-bench zoo; it hides RobustBench's own model {own!r} of "
            f"{robustbench_dataset(card)}, {card.threat}. To load that one, save yours under another name",
            stacklevel=4,
        )
