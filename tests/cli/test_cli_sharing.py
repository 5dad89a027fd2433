"""Models in and out by the command line, over a local Hub."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from cli_runner import CommandLine
from hub_server import Hub, point_at, running_hub

from sam_bench.zoo import Zoo

_LOOK = ["--attack", "fgsm", "--eps", "1/255", "--n-examples", "4", "--device", "cpu"]
TINY = "test_efficientnet"


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub, and a cache of downloads that is empty."""
    with running_hub() as server:
        point_at(server.url, tmp_path_factory.mktemp("cache"), monkeypatch)
        yield server


def test_weights_come_in_by_import_and_are_evaluated(with_tiny: CommandLine) -> None:
    zoo = Zoo(with_tiny.folder / "model_zoo")
    card = zoo.find("tiny")
    bare = {key.removeprefix("net."): value for key, value in zoo.load(card).state_dict().items()}
    torch.save({"state_dict": {f"module.{key}": value for key, value in bare.items()}}, with_tiny.folder / "theirs.pt")
    numbers = "/".join(",".join(map(str, part)) for part in (card.architecture.mean, card.architecture.std))
    given = ["--arch", "preactresnet10", "--arch-option", "width=4", "--dataset", "digits-8px", "--device", "cpu"]
    done = with_tiny.done("zoo", "import", "theirs.pt", *given, "--normalize", numbers, "--name", "theirs", "--json")
    assert done.json["clean_accuracy"] == card.clean_accuracy and done.json["note"] == ""
    assert "?" in next(line for line in with_tiny.done("zoo", "list").out.splitlines() if "theirs" in line)
    assert "imported from   theirs.pt" in with_tiny.done("zoo", "show", "theirs").out
    with_tiny.done("evaluate", "theirs", *_LOOK)
    message = with_tiny.refused("zoo", "import", "theirs.pt", *given, "--normalize", "cifar10", "--name", "x", code=2)
    assert message == "sam-bench: --normalize cifar10 has 3 channels, but the images have 1"


def test_a_model_goes_to_the_hub_and_comes_back(with_tiny: CommandLine, hub: Hub) -> None:
    with_tiny.done("evaluate", "tiny", *_LOOK)
    pushed = with_tiny.done("zoo", "push", "tiny", "--repo", "me/tiny", "--json")
    assert pushed.json["commit"].startswith(f"{hub.url}/me/tiny/commit/")
    assert len([name for name in hub.repos["me/tiny"] if name.startswith("records/")]) == 1
    pulled = with_tiny.done("zoo", "pull", "me/tiny", "--zoo", "other", "--evaluations", "theirs")
    assert pulled.out == "digits-8px/Linf/tiny: card other/digits-8px/Linf/tiny.json, 1 record\n"
    assert with_tiny.done("zoo", "verify", "--zoo", "other").out.endswith("1 of 1 models in other are whole\n")
    message = with_tiny.refused("zoo", "pull", "me/nothing", code=1)
    assert message.startswith("sam-bench: cannot fetch me/nothing: the Hub says ")


def _timm_repository(hub: Hub, repo: str, weights: dict[str, bytes], **more: str) -> None:
    config = {
        "architecture": TINY,
        "num_classes": 10,
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, **more},
        "model_args": {"in_chans": 3},
    }
    hub.repos[repo] = {"config.json": json.dumps(config).encode(), **weights}


def test_a_timm_model_of_the_hub_is_one_command_from_its_record(cli: CommandLine, hub: Hub) -> None:
    torch.manual_seed(0)
    state = timm.create_model(TINY, num_classes=10).state_dict()
    _timm_repository(hub, "org/net", {"model.safetensors": safetensors.torch.save(state)})
    x = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8).numpy()
    _save_images(cli.folder / "toys.npz", x)
    done = cli.done("evaluate", "timm:hf-hub:org/net", "--dataset", "toys.npz", *_LOOK, "--json")
    (path,) = (cli.folder / "evaluations").rglob("*.json")
    record = json.loads(path.read_text())
    assert record["model"] == "timm:hf-hub:org/net" and record["n_examples"] == 4 and done.json
    missing = cli.refused("evaluate", "timm:hf-hub:org/none", "--dataset", "toys.npz", *_LOOK, code=1)
    assert "timm could not load 'hf-hub:org/none'" in missing


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_code_in_a_repository_of_the_hub_is_not_run(cli: CommandLine, hub: Hub) -> None:
    mark = cli.folder / "was-run"
    content = io.BytesIO()
    torch.save(_Bomb(mark), content)
    _timm_repository(hub, "org/evil", {"evil.bin": content.getvalue()}, hf_hub_filename="evil.bin")
    cli.refused("evaluate", "timm:hf-hub:org/evil", "--dataset", "digits", *_LOOK, code=1)
    assert not mark.exists()


def _save_images(path: Path, x: object) -> None:
    y = np.arange(8) % 10
    y[0] = 9
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, classes=list("abcdefghij"))
