"""Checkpoints that are damaged, that are pickles, and models no attack should be run against."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import crafted_timm
import pytest
import torch
from cli_runner import DIGITS, CommandLine

from sam_bench.records import sha256_file
from sam_bench.zoo import Zoo

_EVALUATE = ["--attack", "pgd", "--n-examples", "4"]


def _weights(cli: CommandLine) -> Path:
    (path,) = (cli.folder / "model_zoo").rglob("tiny.*.safetensors")
    return path


def _altered(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


class _Bomb:
    """Unpickled, it makes a file: a test sees whether that happened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(("damage", "how"), [(_altered, "altered"), (_cut, "cut short")])
def test_damaged_weights_are_told_by_their_checksum(
    with_tiny: CommandLine, damage: Callable[[bytes], bytes], how: str
) -> None:
    path = _weights(with_tiny)
    content, expected = path.read_bytes(), sha256_file(path)
    path.write_bytes(damage(content))
    message = with_tiny.refused("evaluate", "tiny", *_EVALUATE, code=1)
    shown = path.relative_to(with_tiny.folder)
    assert message == (
        f"sam-bench: {shown} is {how}: SHA-256 expected {expected}, found {sha256_file(path)} "
        f"({len(content)} bytes expected, {len(damage(content))} found)"
    )

    verified = with_tiny("zoo", "verify", "tiny")
    assert verified.code == 1
    assert verified.out.splitlines() == ["DAMAGED  digits-8px/Linf/tiny", "0 of 1 models in model_zoo are whole"]
    assert f"SHA-256 expected {expected}, found {sha256_file(path)}" in verified.err
    as_json = with_tiny("zoo", "verify", "--json")
    assert as_json.code == 1
    assert expected in " ".join(as_json.json["models"][0]["problems"])


def test_weights_that_are_gone_are_named(with_tiny: CommandLine) -> None:
    path = _weights(with_tiny)
    path.unlink()
    message = with_tiny.refused("evaluate", "tiny", *_EVALUATE, code=1)
    shown = path.relative_to(with_tiny.folder)
    assert message == f"sam-bench: cannot read the weights of digits-8px/Linf/tiny, {shown}: No such file or directory"
    assert with_tiny("zoo", "verify").code == 1


def test_a_card_that_is_cut_short_is_named_and_the_other_models_stay_in_use(with_tiny: CommandLine) -> None:
    card = with_tiny.folder / "model_zoo/digits-8px/Linf/broken.json"
    card.write_text('{"name": "broken"')
    listed = with_tiny.done("zoo", "list")
    assert "digits-8px/Linf/tiny" in listed.out
    assert listed.err.startswith(
        f"warning: passed over in the zoo: {card.relative_to(with_tiny.folder)} is not a valid"
    )
    assert len(listed.err.splitlines()) == 1
    verified = with_tiny("zoo", "verify")
    assert verified.code == 1 and "1 of 2 models in model_zoo are whole" in verified.out
    assert "broken.json is not a valid ModelCard: Invalid JSON" in with_tiny.refused("evaluate", "broken", *_EVALUATE)


def test_a_pickle_in_the_place_of_weights_is_refused(with_tiny: CommandLine) -> None:
    path = _weights(with_tiny)
    path.write_bytes(pickle.dumps(_Bomb(with_tiny.folder / "ran")))
    message = with_tiny.refused("evaluate", "tiny", *_EVALUATE, code=1)
    assert "SHA-256 expected" in message
    assert not (with_tiny.folder / "ran").exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil.pkl", "evil.safetensors"])
def test_a_pickle_as_the_model_is_refused_and_not_run(cli: CommandLine, name: str) -> None:
    (cli.folder / name).write_bytes(pickle.dumps(_Bomb(cli.folder / "ran")))
    message = cli.refused("evaluate", name, *_EVALUATE)
    assert message.startswith(f"sam-bench: {name} is ")
    if not name.endswith("safetensors"):
        assert "is refused: it is a pickle that holds more than tensors" in message
        assert "nothing of it was run" in message
    assert not (cli.folder / "ran").exists()


@pytest.mark.parametrize("content", ["summary: x\nepochs: 3\n", "weights: {method: sam}\n", "größer: [1, 2]\n"])
def test_a_text_file_as_the_model_is_called_that(cli: CommandLine, content: str) -> None:
    (cli.folder / "my.yaml").write_text(content, encoding="utf-8")
    assert cli.refused("evaluate", "my.yaml", *_EVALUATE) == (
        "sam-bench: my.yaml is a text file, not a model; give a model's name, its card (.json) or a checkpoint; a "
        "training takes such a file as its recipe"
    )


def test_a_record_as_the_model_is_called_that(with_tiny: CommandLine) -> None:
    with_tiny.done("evaluate", "tiny", "--attack", "fgsm", "--n-examples", "4", "--output", "x.json")
    assert with_tiny.refused("evaluate", "x.json", *_EVALUATE) == (
        "sam-bench: x.json is an evaluation record, not a model's card; give the model's name: tiny"
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "(it is a pickle, which is never loaded: nothing of it was run)"),
        (_cut, "(it is cut short or foreign)"),
        (_altered, "is not the one stored with it"),
    ],
)
def test_a_runs_checkpoint_that_is_not_what_was_written_is_refused(
    cli: CommandLine, bad: Callable[[bytes], bytes] | None, message: str
) -> None:
    cli.done(*DIGITS, "--name", "run")
    path = cli.folder / "runs/run/checkpoint.pt"
    path.write_bytes(bad(path.read_bytes()) if bad else pickle.dumps(_Bomb(cli.folder / "ran")))
    said = cli.refused(*DIGITS, "--name", "run", "--resume", code=1)
    assert said.startswith("sam-bench: runs/run/checkpoint.pt ") and message in said
    assert said.endswith("; delete it to start this run over")
    assert not (cli.folder / "ran").exists()

    path.unlink()
    assert cli.done(*DIGITS, "--name", "run", "--resume").code == 0


@pytest.mark.parametrize("content", [torch.zeros(3), {"state": {}}, {"state": 3}, {"model": {}}, [1, 2]])
def test_a_file_of_tensors_that_is_no_checkpoint_of_ours_is_refused(cli: CommandLine, content: object) -> None:
    cli.done(*DIGITS, "--name", "run")
    torch.save(content, cli.folder / "runs/run/checkpoint.pt")
    said = cli.refused(*DIGITS, "--name", "run", "--resume", code=1)
    assert said.startswith("sam-bench: runs/run/checkpoint.pt is not a checkpoint of this program or is damaged (")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (crafted_timm.crafted_nan, "returns NaN among its logits for images in [0, 1]: its weights have diverged?"),
        (
            crafted_timm.crafted_infinite,
            "returns infinite values among its logits for images in [0, 1]: its weights have diverged?",
        ),
        (crafted_timm.crafted_narrow, "returns logits of shape [B,7], expected 10 classes"),
        (crafted_timm.crafted_labels, "returns shape [4] for 4 images, expected [4, 10]"),
        (crafted_timm.crafted_failing, "fails on 1x8x8 images in [0, 1]: this network fails"),
    ],
)
@pytest.mark.parametrize("attack", ["autoattack", "fgsm"])
def test_a_model_that_cannot_be_attacked_is_named_before_the_attack_starts(
    cli: CommandLine, name: Callable[..., object], message: str, attack: str
) -> None:
    model = f"timm:{name.__name__}"
    said = cli.refused("evaluate", model, "--attack", attack, "--dataset", "digits-8px")
    assert said == f"sam-bench: model {model} {message}"


def test_it_is_named_before_a_gpus_memory_is_measured_with_it(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("the model was run to measure its memory")

    monkeypatch.setattr("sam_bench.api.evaluation.choose_batch_size", measured)
    model = f"timm:{crafted_timm.crafted_narrow.__name__}"
    said = cli.refused("evaluate", model, "--attack", "autoattack", "--dataset", "digits-8px")
    assert said == f"sam-bench: model {model} returns logits of shape [B,7], expected 10 classes"


def test_a_zoo_model_whose_finite_weights_give_nan_is_named(with_tiny: CommandLine) -> None:
    zoo = Zoo(with_tiny.folder / "model_zoo")
    card = zoo.find("tiny")
    state = zoo.load(card).state_dict()
    variance = next(key for key in state if key.endswith("running_var"))
    state[variance] = -torch.ones_like(state[variance])
    zoo.save(state, card.model_copy(update={"name": "broken"}))
    assert with_tiny.done("zoo", "verify", "broken").out.startswith("ok ")
    assert with_tiny.refused("evaluate", "broken", *_EVALUATE) == (
        "sam-bench: model broken returns NaN among its logits for images in [0, 1]: its weights have diverged?"
    )
