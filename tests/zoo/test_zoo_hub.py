"""Models go to the Hub and come back whole, over a connection that breaks and from a server that lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import Hub, point_at, running_hub
from torch import Tensor, nn

from sam_bench.api import push_model
from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import EvaluationRecord, ModelCard, accuracies, write_record
from sam_bench.zoo import Zoo
from sam_bench.zoo.hub import CARD, RESULTS, WEIGHTS, pull, push

REPO = "somebody/a-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub, and a cache of downloads that is empty."""
    with running_hub() as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield server


@pytest.fixture
def card(zoo: Zoo, network: Callable[[int], nn.Module], fields: Callable[..., dict[str, Any]]) -> ModelCard:
    return zoo.save(network(0), fields(name="sam", dataset="cifar10", classes=tuple("abcdefghij")))


def _record(card: ModelCard, path: Path) -> Path:
    verdicts = ["robust", "apgd-ce", "misclassified", "robust"]
    record = EvaluationRecord(
        model=card.name,
        checkpoint_sha256=card.weights.sha256,
        dataset=card.dataset,
        dataset_fingerprint=card.test_fingerprint,
        attack="autoattack",
        version="standard",
        engine="sam-bench 0.1.0",
        norm="Linf",
        eps="8/255",  # type: ignore[arg-type]
        eps_float=8 / 255,
        seed=0,
        batch_size=4,
        n_examples=4,
        **accuracies(verdicts, ["apgd-ce"]),
        seconds=1.0,
        device="cpu",
        packages={},
        created="2026-01-02T03:04:05+00:00",
        verdicts=verdicts,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return path


def test_what_was_pushed_comes_back_the_same(
    hub: Hub, zoo: Zoo, card: ModelCard, tmp_path: Path, images: Tensor
) -> None:
    record = _record(card, tmp_path / "evaluations/sam/autoattack.json")
    bundle = record.with_name("autoattack.adversarial.npz")
    bundle.write_bytes(b"\0" * 5000)
    address = push(zoo, "sam", REPO, records=[record])
    assert address == f"{hub.url}/{REPO}/commit/{hub.commit(REPO)}"
    there = hub.repos[REPO]
    assert set(there) == {
        WEIGHTS,
        CARD,
        "README.md",
        "records/autoattack.json",
        "records/autoattack.adversarial.npz",
        RESULTS,
    }
    assert there[WEIGHTS] == zoo.weights_path(card).read_bytes()

    other = Zoo(tmp_path / "other")
    done = pull(other, REPO, evaluations=tmp_path / "pulled")
    assert done.card == card and other.verify(card) == []
    assert torch.equal(other.load(done.card)(images), zoo.load(card)(images))
    assert [path.read_bytes() for path in done.records] == [record.read_bytes()]
    assert (tmp_path / "pulled" / bundle.name).read_bytes() == bundle.read_bytes()
    assert pull(other, REPO, evaluations=tmp_path / "pulled") == done
    renamed = pull(other, REPO, name="theirs", evaluations=tmp_path / "pulled")
    assert renamed.card.name == "theirs" and other.verify(renamed.card) == []


def test_the_hub_reads_the_card_and_the_results(zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard as HubCard

    push(zoo, "sam", REPO, records=[_record(card, tmp_path / "autoattack.json")])
    read = HubCard(hub.repos[REPO]["README.md"].decode())
    assert (read.data.license, read.data.datasets) == ("mit", ["uoft-cs/cifar10"])
    results = {each.metric_name: each.metric_value for each in read.data.eval_results or []}
    assert results == {"clean accuracy": 50.0, "robust accuracy, autoattack standard, Linf 8/255": 50.0}
    assert yaml.safe_load(hub.repos[REPO][RESULTS]) == [
        {
            "dataset": {"id": "uoft-cs/cifar10", "task_id": "autoattack_standard_linf_8over255"},
            "value": 50.0,
            "date": "2026-01-02T03:04:05+00:00",
            "source": {
                "url": f"{hub.url}/{REPO}/blob/main/records/autoattack.json",
                "name": "verdict of every example",
            },
            "notes": "autoattack standard, Linf 8/255, 4 examples, engine sam-bench 0.1.0",
        }
    ]


def test_a_push_that_failed_goes_on_and_sends_no_large_file_twice(zoo: Zoo, card: ModelCard, hub: Hub) -> None:
    hub.refuse_commit = True
    with pytest.raises(SamBenchError, match=r"cannot put cifar10/Linf/sam into .*: the Hub says .*not allowed; log in"):
        push(zoo, "sam", REPO)
    assert hub.repos[REPO] == {} and hub.uploads == 1
    hub.refuse_commit = False
    push(zoo, "sam", REPO)
    assert hub.uploads == 1 and WEIGHTS in hub.repos[REPO]


def test_a_pushed_record_that_is_no_longer_given_goes(zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path) -> None:
    push(zoo, "sam", REPO, records=[_record(card, tmp_path / "autoattack.json")])
    push(zoo, "sam", REPO)
    assert set(hub.repos[REPO]) == {WEIGHTS, CARD, "README.md"}


def test_another_model_is_not_pushed_over(
    zoo: Zoo, card: ModelCard, hub: Hub, network: Callable[[int], nn.Module], fields: Callable[..., dict[str, Any]]
) -> None:
    push(zoo, "sam", REPO)
    zoo.save(network(1), fields(name="other"))
    with pytest.raises(InputError, match=r"holds cifar10/Linf/sam: name another repository"):
        push(zoo, "other", REPO)
    push(zoo, "other", REPO, replace=True)
    assert json.loads(hub.repos[REPO][CARD])["name"] == "other"


def test_a_download_that_is_cut_goes_on_where_it_was(
    zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = 1 << 14  # the Hub's client writes 10 MB at a time, more than this model has
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", chunk)
    push(zoo, "sam", REPO)
    hub.cut[WEIGHTS] = card.weights.size // 2
    other = Zoo(tmp_path / "other")
    with pytest.raises(SamBenchError, match="the connection broke off; asked again, it goes on where it was"):
        pull(other, REPO)
    assert not other.root.exists()
    done = pull(other, REPO)
    assert other.verify(done.card) == [] and hub.cut == {}
    (begun,) = (int(each.removeprefix("bytes=").split("-")[0]) for each in hub.ranges)
    assert begun == card.weights.size // 2 // chunk * chunk > 0


def test_wrong_bytes_never_enter_the_zoo_and_are_fetched_again(
    zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path
) -> None:
    push(zoo, "sam", REPO)
    hub.altered[WEIGHTS] = bytes(card.weights.size)
    other = Zoo(tmp_path / "other")
    with pytest.raises(SamBenchError, match=f"SHA-256 expected {card.weights.sha256}, found "):
        pull(other, REPO)
    assert not other.root.exists()
    hub.altered.clear()
    assert pull(other, REPO).card == card


@pytest.mark.parametrize("file", [CARD, "records/autoattack.json"])
def test_a_web_page_for_a_card_or_a_record_is_not_kept_in_the_cache(
    zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path, file: str
) -> None:
    push(zoo, "sam", REPO, records=[_record(card, tmp_path / "autoattack.json")])
    hub.altered[file] = b"<html>quota exceeded</html>"
    other = Zoo(tmp_path / "other")
    with pytest.raises(InputError, match="Invalid JSON"):
        pull(other, REPO, evaluations=tmp_path / "evaluations")
    assert not other.root.exists()
    hub.altered.clear()
    assert pull(other, REPO, evaluations=tmp_path / "evaluations").card == card


def test_records_of_other_weights_are_refused_both_ways(zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path) -> None:
    record = _record(card, tmp_path / "autoattack.json")
    foreign = tmp_path / "foreign.json"
    foreign.write_text(record.read_text().replace(card.weights.sha256, "f" * 64))
    with pytest.raises(InputError, match=r"is about weights ffffffffffff…"):
        push(zoo, "sam", REPO, records=[foreign])
    push(zoo, "sam", REPO, records=[record])
    hub.repos[REPO]["records/autoattack.json"] = foreign.read_bytes()
    with pytest.raises(InputError, match=r"is about weights ffffffffffff…"):
        pull(Zoo(tmp_path / "other"), REPO)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "svhn"}, r"other\.json was measured on svhn, but sam is a model of cifar10: leave it out"),
        ({"architecture_sha256": "f" * 64}, r"other\.json is about these weights in another architecture"),
    ],
)
def test_records_of_other_data_or_another_architecture_are_refused_by_name_and_else_left_out(
    zoo: Zoo,
    card: ModelCard,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = _record(card, Path("evaluations/sam/other.json"))
    other.write_text(json.dumps({**json.loads(other.read_text()), **change}))
    _record(card, Path("evaluations/sam/own.json"))
    with pytest.raises(InputError, match=said):
        push_model("sam", REPO, records=[other], zoo=zoo.root)
    assert hub.repos == {}
    push_model("sam", REPO, zoo=zoo.root)
    assert [name for name in hub.repos[REPO] if name.startswith("records/")] == ["records/own.json"]
    hub.repos[REPO]["records/other.json"] = other.read_bytes()
    with pytest.raises(InputError, match=said):
        pull(Zoo(tmp_path / "other"), REPO)


def test_two_records_of_one_file_name_are_refused(zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path) -> None:
    first, second = (_record(card, tmp_path / folder / "autoattack.json") for folder in "ab")
    with pytest.raises(InputError, match=r"a/autoattack\.json and .*b/autoattack\.json would be one file"):
        push(zoo, "sam", REPO, records=[first, second])
    assert hub.repos == {}
    push(zoo, "sam", REPO, records=[first, first])
    assert [name for name in hub.repos[REPO] if name.startswith("records/")] == ["records/autoattack.json"]


@pytest.mark.parametrize("name", ["autoattack.json", "autoattack.adversarial.npz", "bare.adversarial.npz"])
def test_a_pull_leaves_other_files_of_the_user_alone(
    zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path, name: str
) -> None:
    record = _record(card, tmp_path / "autoattack.json")
    record.with_name("autoattack.adversarial.npz").write_bytes(b"\0" * 5000)
    push(zoo, "sam", REPO, records=[record, _record(card, tmp_path / "bare.json")])
    own = tmp_path / "own" / name
    own.parent.mkdir()
    own.write_bytes(b"\1" * 5000)
    other = Zoo(tmp_path / "other")
    said = (
        rf"own/{name} is there already and is not what this repository has: move it away, or choose another evaluations"
    )
    with pytest.raises(InputError, match=said):
        pull(other, REPO, evaluations=own.parent)
    assert not other.root.exists() and [*own.parent.iterdir()] == [own] and own.read_bytes() == b"\1" * 5000


def test_a_path_that_leads_elsewhere_is_not_written(
    zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(zoo, "sam", REPO, records=[_record(card, tmp_path / "autoattack.json")])
    hub.repos[REPO]["records/../../evil.json"] = b"{}"
    hub.repos[REPO]["records/sub/evil.json"] = b"{}"
    monkeypatch.chdir(tmp_path)
    done = pull(Zoo(tmp_path / "other"), REPO)
    assert [path.name for path in done.records] == ["autoattack.json"]
    assert not [*tmp_path.rglob("evil.json")]
    fields = json.loads(hub.repos[REPO][CARD])
    hub.repos[REPO][CARD] = json.dumps({**fields, "name": "../../evil"}).encode()
    with pytest.raises(InputError, match="is not a valid ModelCard"):
        pull(Zoo(tmp_path / "other"), REPO)


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("somebody/nothing", "the Hub says .*Repository not found"),
        ("somebody/theirs", r"has no model\.safetensors|has no sam-bench\.json"),
        ("not a repo/at all/x", "cannot fetch"),
    ],
)
def test_a_repository_without_a_model_of_ours_is_told(hub: Hub, tmp_path: Path, repo: str, said: str) -> None:
    hub.repos["somebody/theirs"] = {"config.json": b"{}"}
    with pytest.raises(SamBenchError, match=said):
        pull(Zoo(tmp_path / "other"), repo)


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.raises(SamBenchError, match=r"cannot fetch a/b: .*asked again, it goes on") as caught:
        pull(Zoo(tmp_path / "other"), "a/b")
    assert "http://127.0.0.1:9 cannot be reached (NewConnectionError): check the network, or" in str(caught.value)


def test_a_hub_that_goes_away_meanwhile_is_said_to_be_out_of_reach(
    zoo: Zoo, hub: Hub, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(zoo, "sam", REPO)
    monkeypatch.setattr("hub_server._Handler.do_HEAD", lambda handler: handler.connection.shutdown(2))
    with pytest.raises(SamBenchError, match=rf"{hub.url} cannot be reached \(ConnectionError\): check the network"):
        pull(Zoo(tmp_path / "other"), REPO)


def test_a_cache_that_cannot_be_written_is_named(
    zoo: Zoo, hub: Hub, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(zoo, "sam", REPO)
    (tmp_path / "file").touch()
    point_at(hub.url, tmp_path / "file" / "cache", monkeypatch)
    with pytest.raises(SamBenchError, match=r"file/cache.*: Not a directory; HF_HOME names another folder") as caught:
        pull(Zoo(tmp_path / "other"), REPO)
    assert "asked again" not in str(caught.value)


def test_code_that_a_pulled_card_names_is_not_run(zoo: Zoo, card: ModelCard, hub: Hub, tmp_path: Path) -> None:
    push(zoo, "sam", REPO)
    fields = json.loads(hub.repos[REPO][CARD])
    architecture = {**fields["architecture"], "name": "python:os:getcwd", "options": {}}
    hub.repos[REPO][CARD] = json.dumps({**fields, "architecture": architecture}).encode()
    with pytest.raises(InputError, match="if you trust that module, set the environment variable SAM_BENCH_CODE=os"):
        pull(Zoo(tmp_path / "other"), REPO)
    assert not (tmp_path / "other").exists()
