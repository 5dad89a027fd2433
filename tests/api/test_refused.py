"""What `train` and `evaluate` refuse, and that nothing is written before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_runs import Linear, train_on_digits

from sam_bench import evaluate
from sam_bench.errors import InputError
from sam_bench.models import registry

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "digts"}, "unknown data set 'digts'"),
        ({"arch": "preactresnet81"}, "unknown architecture 'preactresnet81'"),
        ({"settings": {"roh": 1}}, "unknown setting 'roh'. Did you mean 'rho'"),
        ({"settings": {"name": "mine"}}, "name is no setting of a recipe but a keyword of its own"),
        ({"settings": {"width": 8}}, "width is no setting of a recipe but an option of the network"),
        ({"settings": {"epochs": 0}}, "epochs: must be greater than or equal to 1"),
        ({"name": "../up"}, "name='../up' cannot name a model"),
        ({"seed": -1}, "seed=-1 must be between 0 and"),
        ({"arch_options": {"width": 1.5}}, "width: must be a valid integer"),
        ({"threat": "linf"}, "unknown threat 'linf'. Did you mean 'Linf'"),
        ({"robustbench_dataset": "mnist"}, "unknown robustbench_dataset 'mnist'"),
        ({"weights_dtype": "fp16"}, "unknown weights_dtype 'fp16'"),
        ({"select": "Best"}, "unknown select 'Best'. Did you mean 'best'"),
        ({"on_nan": "skip"}, "unknown on_nan 'skip'"),
        ({"compile": True}, "unknown compile 'True'"),
        ({"dataset": None}, "dataset must be a name, a FILE.npz or a FOLDER, not None"),
        ({"arch": None}, "arch must be an architecture's name, not None"),
        ({"seed": 0.0}, "seed must be a whole number, not 0.0"),
        ({"keep": 0}, "keep must be a whole number of at least 1, not 0"),
        ({"micro_batch": 0}, "micro_batch must be a whole number of at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    workplace: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_on_digits(**arguments)
    assert list(workplace.iterdir()) == []


def _must_not(*_: Any, **__: Any) -> None:
    raise AssertionError("too late")


def test_a_name_that_timm_knows_another_model_by_is_refused_before_the_data_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = r"b/Linf/Taken cannot be saved: .* both it and a/Linf/taken as 'taken_cifar10_linf'; .* name, .* zoo"
    shared: dict[str, Any] = {"dataset": "digits-8px", "settings": {"epochs": 1}, "robustbench_dataset": "cifar10"}
    train_on_digits(name="taken", dataset_name="a", **shared)
    monkeypatch.setattr("sam_bench.api.training.open_dataset", _must_not)
    with pytest.raises(InputError, match=message):
        train_on_digits(name="Taken", dataset_name="b", **shared)
    # Of a named data set the name is known, too; the model's own name is no other model's.
    with pytest.raises(InputError, match=r"digits-8px/Linf/taken cannot be saved"):
        train_on_digits(name="taken", **shared)
    with pytest.raises(AssertionError, match="too late"):
        train_on_digits(name="taken", dataset_name="a", **shared)
    assert not Path("runs/Taken").exists()


def test_names_that_only_a_file_tells_are_checked_before_the_training(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    for name in ("set-1", "set_1"):
        arrays = {"x_train": images, "y_train": np.arange(8) % 2, "x_test": images, "y_test": np.arange(8) % 2}
        np.savez(workplace / f"{name}.npz", **arrays)
    arguments: dict[str, Any] = {"name": "m", "image_size": None, "settings": {"epochs": 1, "batch_size": 4}}
    train_on_digits(dataset="set-1.npz", **arguments)
    monkeypatch.setattr("sam_bench.api.training.TrainingRun", _must_not)
    with pytest.raises(
        InputError, match=r"set_1/Linf/m cannot be saved: .* both it and set-1/Linf/m as 'm_set_1_linf'"
    ):
        train_on_digits(dataset="set_1.npz", run_dir=Path("runs/other"), **arguments)
    assert not Path("runs/other").exists()


@pytest.mark.parametrize("dataset", ["digits", "some.npz"])
def test_a_zoo_that_cannot_be_written_is_refused_before_the_data_are_loaded(
    dataset: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "file").write_text("")
    monkeypatch.setattr("sam_bench.api.training.open_dataset", _must_not)
    with pytest.raises(
        InputError, match=r"the zoo file/zoo cannot be written \(.*: Not a directory\); choose another zoo"
    ):
        train_on_digits(dataset=dataset, zoo=Path("file/zoo"))
    assert [path.name for path in workplace.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda classes: torch.nn.Linear(64, classes + 1), r"returns logits of shape \[B,11\], expected 10 classes"),
        (lambda classes: None, "fails on 1x8x8 images"),
    ],
)
def test_a_network_without_a_logit_for_each_class_is_refused_before_training(
    made: Callable[[int], torch.nn.Module | None], message: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @registry.register_architecture("hers")
    def hers(*, num_classes: int) -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.Flatten())
        net.append(made(num_classes))  # type: ignore[arg-type]
        return net

    with pytest.raises(InputError, match="the network hers " + message):
        train_on_digits(arch="hers", arch_options={})
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "linf"}, "unknown norm 'linf'. Did you mean 'Linf'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"output": "."}, "output=. is a folder; give the file to write, as in record.json"),
        ({"output": 3}, "output must be a path, not 3"),
        ({"model": Linear}, "not the class Linear: give an instance, as in Linear()"),
        ({"model": {"w": torch.ones(1)}}, "not a dict: load the state dict into its module, and give that"),
        ({"model": lambda x: x}, "not a function: call it in the forward method of a module, and give that"),
        ({"model": None}, "the model must be a name, a path or a torch.nn.Module, not None"),
        ({"attack": None}, "attack must be an attack's name, as in pgd, not None"),
        ({"norm": None}, "unknown norm 'None'. Available: L1, L2, Linf."),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"seed": np.int64(-1)}, "seed=-1 must be between 0 and"),
        ({"device": None}, "device must be auto, cpu or cuda, not None"),
        ({"n_examples": "10"}, "n_examples must be a whole number, not '10'"),
        ({"n_examples": 10.0}, "n_examples must be a whole number, not 10.0"),
        ({"workers": True}, "workers must be a whole number of at least 1, not True"),
        ({"dataset": (np.ones(1), np.ones(1))}, "not a tuple: write arrays into a file with numpy.savez('mine.npz'"),
        ({"eps": [0.1, 0.2]}, "evaluate takes one eps, not [0.1, 0.2]; evaluate_curve(model, radii) takes several"),
        ({"eps": torch.tensor(0.1)}, "evaluate takes one eps, not tensor(0.1000)"),
        ({"eps": 1j}, "eps must be a number or a text such as '8/255', not a complex"),
        ({"settings": ["steps"]}, "settings must be a dict, as in {'steps': 20}, not a list"),
    ],
)
def test_wrong_arguments_of_evaluate_are_refused_before_the_model_is_looked_for(
    workplace: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(**{"model": "nowhere", **arguments})
    assert not list(workplace.iterdir())
