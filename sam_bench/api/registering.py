"""A run's result goes into the zoo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sam_bench import zoo as zoos
from sam_bench.attacks.verify import classes_of
from sam_bench.data import Split, StreamedSplit, make_batches
from sam_bench.device import device_name, true_float32
from sam_bench.models import architecture_module
from sam_bench.modes import attacking
from sam_bench.plugins import packages_of
from sam_bench.records import Cost, ModelCard
from sam_bench.training import Ready, RunConfig, Trained
from sam_bench.training.build import PARTS
from sam_bench.training.validate import examples_at_a_time
from sam_bench.versions import package_versions, timestamp

if TYPE_CHECKING:
    from sam_bench.api.training import Prepared


def store_as(model: nn.Module, dtype: Literal["float32", "float16"]) -> None:
    """Round a model's weights to what is stored of them, in place: that is what is measured and used."""
    rounded = {
        key: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(rounded)


def of_run(config: RunConfig) -> dict[str, Any]:
    """The fields of a card that are its run's: they tell it from another run's card."""
    return {field: getattr(config, field) for field in RunConfig.model_fields if field in ModelCard.model_fields}


def register(trained: Trained, ready: Prepared, store: zoos.Zoo, *, command: str) -> tuple[ModelCard, Path]:
    """Put the run's result into the zoo; its weights are those that `store_as` has made of them."""
    spec, config, data, place = ready.spec, ready.run.config, ready.data, ready.place
    at_a_time = examples_at_a_time(config, trained.state.devices)
    hits = int(correct(trained.model, data.test.to(ready.device), at_a_time=at_a_time).sum())
    card = store.save(
        trained.model,
        {
            **of_run(config),
            "threat": place.threat,
            "robustbench_dataset": place.robustbench_dataset,
            "epochs": trained.state.epoch,
            "devices": trained.state.devices,
            "test_fingerprint": data.test.fingerprint,
            "clean_accuracy": hits / len(data.test),
            "cost": Cost(
                **{kind: count / config.train_examples for kind, count in asdict(trained.state.passes).items()},
                seconds=trained.state.seconds,
                energy_joules=trained.state.joules,
                device=device_name(ready.device),
            ),
            "packages": package_versions() | packages_of(*_modules(ready.run)),
            "classes": data.classes,
            "created": timestamp(),
            "command": command,
            "authors": spec.authors,
        },
        dtype="fp16" if spec.weights_dtype == "float16" else "fp32",
        same_run=True,
    )
    return card, store.card_path(card)


def _modules(run: Ready) -> list[str]:
    """The modules whose code decides what is learned: of the network, and of each part of the recipe."""
    parts = [type(getattr(run.recipe, part)).__module__ for part in PARTS]
    return [architecture_module(run.config.architecture.name), *parts]


@torch.no_grad()
def correct(model: nn.Module, test: Split | StreamedSplit, *, at_a_time: int) -> Tensor:
    """Which of the test images the model gets right, in float32: bool [N]."""
    batches = make_batches(test, batch_size=256, seed=0, augmentation=None, shuffle=False)
    with attacking(model), true_float32():
        return torch.cat(
            [
                (classes_of(model(x)) == y).cpu()
                for batch in batches.epoch(0)
                for x, y in zip(*(part.split(at_a_time) for part in batch), strict=True)
            ]
        )
