"""The store: what is saved comes back, and a failed save leaves what was there."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import ModelCard, WeightsFile, read_record, sha256_file
from sam_bench.zoo import Place, Zoo, state_dict_sha256
from sam_bench.zoo.weights import pack, unpack
from sam_bench.zoo.weights_check import weights_file

Fields = Callable[..., dict[str, Any]]
Networks = Callable[..., nn.Module]


def test_a_saved_model_comes_back_bitwise(zoo: Zoo, network: Networks, fields: Fields, images: Tensor) -> None:
    module = network()
    card = zoo.save(module, fields())
    loaded = zoo.load(zoo.find("sam"))
    assert not loaded.training
    assert torch.equal(loaded(images), module(images))
    assert state_dict_sha256(loaded) == state_dict_sha256(module)
    assert zoo.verify(card) == []
    assert zoo.cards() == [card]
    assert read_record(zoo.root / "cifar10-jpeg" / "Linf" / "sam.json", ModelCard) == card
    assert card.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert sha256_file(zoo.weights_path(card)) == card.weights.sha256


def test_a_card_or_its_fields_can_be_saved_again(zoo: Zoo, network: Networks, fields: Fields, tmp_path: Path) -> None:
    card = zoo.save(network(), fields())
    assert Zoo(tmp_path / "other").save(zoo.load(card).state_dict(), card) == card


def test_float16_files_are_half_as_large_and_load_as_the_rounded_float32(
    zoo: Zoo, network: Networks, fields: Fields
) -> None:
    module = network()
    whole = zoo.save(module, fields(name="whole"))
    half = zoo.save(module, fields(name="half"), dtype="fp16")
    assert half.weights.size < 0.6 * whole.weights.size
    loaded = zoo.load(half)
    for (key, stored), original in zip(loaded.state_dict().items(), module.state_dict().values(), strict=True):
        assert stored.dtype == original.dtype, key
        assert torch.equal(stored, original.half().to(original.dtype) if original.is_floating_point() else original)
    assert zoo.verify(half) == []


def test_saving_over_a_model_replaces_it_and_removes_its_weights(zoo: Zoo, network: Networks, fields: Fields) -> None:
    first = zoo.save(network(0), fields())
    second = zoo.save(network(1), fields())
    assert zoo.find("sam") == second != first
    assert not zoo.weights_path(first).exists()
    assert zoo.verify(second) == [] and zoo.strays() == []


def test_a_removed_model_leaves_nothing_and_the_others_stay(zoo: Zoo, network: Networks, fields: Fields) -> None:
    first, second = zoo.save(network(0), fields()), zoo.save(network(1), fields(name="at"))
    zoo.remove(first)
    assert zoo.cards() == [second] and zoo.strays() == [] and zoo.verify(second) == []
    with pytest.raises(SamBenchError, match=r"cannot delete .*sam\.json: No such file"):
        zoo.remove(first)


def test_another_runs_model_is_not_replaced(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields())
    own = {"recipe": card.recipe, "seed": card.seed}
    zoo.check_run(card, own)
    zoo.check_run(Place("other", card.dataset, card.threat), own | {"seed": 7})
    with pytest.raises(InputError, match=r"/sam is in the zoo .* already, from a run with another seed: .*zoo remove"):
        zoo.check_run(card, own | {"seed": 7})


def test_a_card_from_elsewhere_replaces_none_of_another_network(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields())
    content = zoo.weights_path(card).read_bytes()
    brighter = card.architecture.model_copy(update={"mean": (0.9,) * card.architecture.in_channels})
    with pytest.raises(InputError, match="already, with other weights or another network"):
        zoo.adopt(card.model_copy(update={"architecture": brighter}), content)
    zoo.adopt(card.model_copy(update={"authors": "others"}), content)
    assert zoo.find("sam").authors == "others"


def test_saving_the_same_weights_again_keeps_them(zoo: Zoo, network: Networks, fields: Fields) -> None:
    first = zoo.save(network(), fields())
    assert zoo.save(network(), fields(seed=1)).weights == first.weights
    assert zoo.verify(zoo.find("sam")) == [] and zoo.strays() == []


def test_the_longest_name_can_be_saved(zoo: Zoo, network: Networks, fields: Fields) -> None:
    names = ["x" * 99 + end for end in "ab"]
    cards = [zoo.save(network(), fields(name=name)) for name in names]
    assert cards[0].weights.file != cards[1].weights.file
    assert all(zoo.verify(card) == [] for card in cards)


def test_names_that_timm_cannot_tell_apart_are_refused_with_both(zoo: Zoo, network: Networks, fields: Fields) -> None:
    zoo.save(network(), fields(name="sam-rho0.2"))
    for clash in (fields(name="SAM_rho02"), fields(name="sam-rho02", dataset="cifar10", robustbench_dataset=None)):
        with pytest.raises(InputError, match=r"sam-rho0\.2.*'sam_rho02_cifar10") as caught:
            zoo.save(network(), clash)
        assert clash["name"] in str(caught.value)
    assert len(zoo.cards()) == 1
    zoo.save(network(), fields(name="sam-rho0.2", threat="L2"))
    assert len(zoo.cards()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../escape"}, r"name: '\.\./escape' is not a usable name"),
        ({"dataset": "a/b"}, "dataset: 'a/b' is not a usable name"),
        ({"name": None}, "name: "),
        ({"clean_accuracy": 55.0}, "clean_accuracy"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_written(
    zoo: Zoo, network: Networks, fields: Fields, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        zoo.save(network(), fields(**change))
    assert not zoo.root.exists()


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(zoo: Zoo, network: Networks, fields: Fields) -> None:
    state = dict(network().state_dict())
    key = next(key for key in state if key.endswith("weight"))
    cases = {
        f"{key} missing": {name: value for name, value in state.items() if name != key},
        "stranger not expected": {**state, "stranger": torch.zeros(1)},
        "has shape": {**state, key: state[key][:1]},
        f"{key} holds NaN": {**state, key: torch.full_like(state[key], float("nan"))},
    }
    for message, wrong in cases.items():
        with pytest.raises(InputError, match=message):
            zoo.save(wrong, fields())
    with pytest.raises(InputError, match="65504"):
        zoo.save({**state, key: torch.full_like(state[key], 1e6)}, fields(), dtype="fp16")
    assert zoo.cards() == []


def test_an_altered_or_truncated_file_is_refused_with_both_checksums(
    zoo: Zoo, network: Networks, fields: Fields
) -> None:
    card = zoo.save(network(), fields())
    path = zoo.weights_path(card)
    content = path.read_bytes()
    for how, damaged in (("altered", content[:-1] + bytes([content[-1] ^ 1])), ("cut short", content[:-100])):
        path.write_bytes(damaged)
        found = sha256_file(path)
        with pytest.raises(SamBenchError, match=f"{how}: SHA-256 expected {card.weights.sha256}, found {found}"):
            zoo.load(card)
        problem = next(problem for problem in zoo.verify(card) if problem.check == "sha256")
        assert (problem.expected, problem.found) == (card.weights.sha256, found)
    assert {problem.check for problem in zoo.verify(card)} == {"size", "sha256", "format"}
    path.unlink()
    assert [problem.check for problem in zoo.verify(card)] == ["file"]
    with pytest.raises(SamBenchError, match="cannot read the weights of cifar10-jpeg/Linf/sam"):
        zoo.load(card)


def test_verify_names_wrong_architecture_and_values_behind_a_right_checksum(
    zoo: Zoo, network: Networks, fields: Fields
) -> None:
    state = dict(network().state_dict())
    key = next(key for key in state if key.endswith("weight"))
    nan = state | {key: torch.full_like(state[key], float("nan"))}
    card = zoo.save(network(), fields())
    for check, wrong in (("values", nan), ("architecture", {"other": torch.zeros(2)})):
        content = safetensors.torch.save(wrong)
        sha256 = hashlib.sha256(content).hexdigest()
        weights = WeightsFile(file=weights_file(card.name, sha256), size=len(content), sha256=sha256)
        replaced = card.model_copy(update={"weights": weights})
        zoo.weights_path(replaced).write_bytes(content)
        assert [problem.check for problem in zoo.verify(replaced)] == [check]
    wrong_count = zoo.save(network(), fields()).model_copy(update={"parameters": 7})
    assert [(problem.check, problem.expected) for problem in zoo.verify(wrong_count)] == [("architecture", "7")]


def test_find_lists_the_candidates_and_the_nearest_names(zoo: Zoo, network: Networks, fields: Fields) -> None:
    linf, l2 = (zoo.save(network(), fields(threat=threat)) for threat in ("Linf", "L2"))
    with pytest.raises(InputError, match="names 2 models; say which: cifar10-jpeg/L2/sam, cifar10-jpeg/Linf/sam"):
        zoo.find("sam")
    assert zoo.find("sam", threat="L2") == zoo.find("cifar10-jpeg/L2/sam") == l2
    assert zoo.find("cifar10-jpeg/Linf/sam") == linf
    with pytest.raises(InputError, match="Did you mean 'sam'"):
        zoo.find("smam")
    for absent in ("cifar10-jpeg/L2/other", "a/b", "../zoo/cifar10-jpeg/L2/sam", "*", ""):
        with pytest.raises(InputError, match="unknown model in the zoo"):
            zoo.find(absent)
    with pytest.raises(InputError, match="cifar10-jpeg/Linf/sam"):
        zoo.find("sam", dataset="digits")


def test_a_broken_card_is_warned_of_and_the_others_are_listed(zoo: Zoo, network: Networks, fields: Fields) -> None:
    card = zoo.save(network(), fields())
    folder = zoo.card_path(card).parent
    (folder / "broken.json").write_text("{")
    (folder / "moved.json").write_text(zoo.card_path(card).read_text())
    with pytest.warns(UserWarning) as caught:
        assert zoo.cards() == [card]
    assert ["broken.json" in str(caught[0].message), "moved.json" in str(caught[1].message)] == [True, True]
    with pytest.raises(InputError, match=r"broken\.json is not a valid ModelCard"):
        zoo.find("broken")
    with pytest.raises(InputError, match="is the card of cifar10-jpeg/Linf/sam, which belongs at"):
        zoo.find("moved")


def test_a_file_is_no_zoo(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder"):
        Zoo(tmp_path / "file")
    assert Zoo(tmp_path / "nothing yet").cards() == []


@pytest.mark.parametrize("room", ["none for the weights", "none for the card"])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(
    zoo: Zoo, network: Networks, fields: Fields, room: str, images: Tensor
) -> None:
    first = zoo.save(network(0), fields())
    expected = zoo.load(first)(images)
    # The kernel itself refuses to let a file grow beyond the limit, as a full disk does.
    second = network(1)
    changes = {} if room == "none for the weights" else {"command": "x" * (2 * first.weights.size)}
    limit = first.weights.size // 2 if room == "none for the weights" else first.weights.size + 1000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SamBenchError, match=r"cannot write .*what stood there is untouched"):
            zoo.save(second, fields(**changes))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert zoo.cards() == [first] and zoo.verify(first) == [] and zoo.strays() == []
    assert torch.equal(zoo.load(first)(images), expected)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from sam_bench.records import ModelCard
from sam_bench.zoo import Zoo

torch.set_num_threads(1)
zoo = Zoo(Path(sys.argv[1]))
old = zoo.find("sam")
module = zoo.load(old)
with torch.no_grad():
    next(module.parameters()).add_(1)
fields = {**old.model_dump(exclude={"weights"}), "seed": 1}
seen = []
for point in range(100):
    child = os.fork()
    if child == 0:
        steps = [0]
        def step(event, args):
            if event in ("os.rename", "os.remove", "os.chmod") or (event == "open" and str(args[0]).endswith(".tmp")):
                if steps[0] == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps[0] += 1
        sys.addaudithook(step)
        zoo.save(module, fields)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    card = zoo.find("sam")
    zoo.load(card)
    seen.append([os.WIFSIGNALED(status), card.seed, [str(p) for p in zoo.verify(card)]])
    if not os.WIFSIGNALED(status):
        break
    if card.seed == 1:
        zoo.save(zoo.load(card), {**fields, "seed": 0})
        with torch.no_grad():
            next(module.parameters()).add_(1)
print(json.dumps({"seen": seen, "strays": len(zoo.strays())}))
"""


def test_a_save_killed_at_any_step_leaves_a_whole_checkpoint(zoo: Zoo, network: Networks, fields: Fields) -> None:
    zoo.save(network(), fields())
    run = subprocess.run([sys.executable, "-c", KILLED, str(zoo.root)], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    *killed, finished = result["seen"]
    assert len(killed) >= 5 and all(signalled for signalled, _, _ in killed)
    assert all(problems == [] for _, _, problems in result["seen"])
    # Killed early the old checkpoint stands, killed late the new one does, and never anything between.
    assert [seed for _, seed, _ in killed] == sorted(seed for _, seed, _ in killed)
    assert {seed for _, seed, _ in killed} == {0, 1}
    assert finished[:2] == [False, 1]
    assert result["strays"] > 0


@given(
    tensors=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3),
            st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
        ),
        max_size=5,
    )
)
@settings(max_examples=50, deadline=None)
def test_packing_is_exact_and_depends_on_nothing_but_the_tensors(
    tensors: dict[str, tuple[list[int], torch.dtype]],
) -> None:
    state = {key: (torch.randn(shape) * 10).to(dtype) for key, (shape, dtype) in tensors.items()}
    reverse = {key: state[key] for key in reversed(list(state))}
    back = unpack(pack(state), "here")
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype and torch.equal(back[key], tensor)
    assert pack(reverse) == pack(state)
    assert state_dict_sha256(reverse) == state_dict_sha256(state) == state_dict_sha256(back)


def test_tied_and_strided_tensors_are_stored_as_their_values() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": base,
        "tied": base,
        "strided": base.t(),
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    back = unpack(pack(state), "here")
    assert all(torch.equal(back[key], value) for key, value in state.items())
    assert state_dict_sha256(back) == state_dict_sha256(state)


def test_the_state_dict_digest_sees_names_shapes_types_and_values() -> None:
    states = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
    ]
    assert len({state_dict_sha256(state) for state in states}) == len(states)
