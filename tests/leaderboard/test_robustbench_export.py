"""What `zoo export` writes is what RobustBench's own code reads and loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from leaderboard_samples import AT, make_card, make_record

from sam_bench import api, integrations
from sam_bench.api.exporting import snippet
from sam_bench.attacks.warnings import second_attack_warnings
from sam_bench.errors import InputError
from sam_bench.leaderboard import submit_entry
from sam_bench.models import create_model
from sam_bench.records import EvaluationRecord, ModelCard, SecondAttack, read_record, write_record
from sam_bench.zoo import Zoo

PAPER = {"authors": "Ann Other", "paper_title": "Robust Nets", "paper_link": "https://example.org", "venue": "X 2026"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Zoo, ModelCard]:
    """A model with weights, of CIFAR-10's shape."""
    fields = make_card("mine", AT, dataset="cifar10-jpeg", robustbench_dataset="cifar10", additional_data=True)
    torch.manual_seed(0)
    narrow = fields.architecture.model_copy(update={"options": {"width": 4}, "mean": (0.5,) * 3, "std": (0.2,) * 3})
    zoo = Zoo(tmp_path / "zoo")
    return zoo, zoo.save(create_model(narrow), fields.model_copy(update={"architecture": narrow}))


def _record(card: ModelCard, path: Path, *, second: int | None = None) -> Path:
    record = make_record(card, clean=83, robust=47)
    if second is not None:
        broken = [index for index, verdict in enumerate(record.verdicts) if verdict == "robust"][:second]
        opinion = SecondAttack(
            attack="pgd", engine="x", robust_accuracy=(47 - second) / 100, gap=second / 100, broken=broken, seconds=1
        )
        warnings = list(map(str, second_attack_warnings("autoattack", "pgd", opinion.gap)))
        record = EvaluationRecord.model_validate(
            {**record.model_dump(), "second_opinion": opinion, "warnings": warnings}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return path


def test_robustbench_loads_the_checkpoint_by_the_snippet_and_reads_the_numbers(
    saved: tuple[Zoo, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integrations.install()
    import robustbench.utils
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    zoo, card = saved
    monkeypatch.chdir(tmp_path)
    _record(card, tmp_path / "evaluations/mine/autoattack.json")
    done = api.export_robustbench("mine", "sent", zoo=zoo.root, **PAPER)

    code: dict[str, object] = {}
    exec(compile(done.snippet.read_text(), "snippet", "exec"), code)
    name, entry = code["ENTRY"]  # type: ignore[misc]
    table = model_dicts[BenchmarkDataset("cifar10")][ThreatModel("Linf")]
    monkeypatch.setitem(table, name, entry)
    # RobustBench asks timm first, and timm may know the model from the zoo.
    monkeypatch.setattr(robustbench.utils.timm, "is_model", lambda _: False)
    models = tmp_path / "models/cifar10/Linf"
    models.mkdir(parents=True)
    (models / "mine.pt").write_bytes(done.checkpoint.read_bytes())
    theirs = robustbench.utils.load_model("mine", model_dir=tmp_path / "models", dataset="cifar10")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(theirs(x), zoo.load(card)(x))

    monkeypatch.chdir(tmp_path / "sent")
    (line,) = robustbench.utils.get_leaderboard_latex("cifar10", "Linf").splitlines()
    assert "83.00 & 47.00 & Y & PreActRN-18 (width 4) & X 2026 & mine" in line


def test_robustbench_loads_a_model_of_imagenet_by_the_snippet(
    saved: tuple[Zoo, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `load_model` puts "model." before every key there."""
    integrations.install()
    import robustbench.utils
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    zoo, card = saved
    code: dict[str, object] = {}
    exec(snippet(card.model_copy(update={"robustbench_dataset": "imagenet"})), code)
    name, entry = code["ENTRY"]  # type: ignore[misc]
    monkeypatch.setitem(model_dicts[BenchmarkDataset("imagenet")][ThreatModel("Linf")], name, entry)
    monkeypatch.setattr(robustbench.utils.timm, "is_model", lambda _: False)
    (tmp_path / "models/imagenet/Linf").mkdir(parents=True)
    torch.save(zoo.load(card).state_dict(), tmp_path / "models/imagenet/Linf/mine.pt")
    theirs = robustbench.utils.load_model("mine", model_dir=tmp_path / "models", dataset="imagenet")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(theirs(x), zoo.load(card)(x))


def test_a_name_by_which_robustbench_returns_random_weights_is_refused(
    saved: tuple[Zoo, ModelCard], tmp_path: Path
) -> None:
    zoo, card = saved
    zoo.save(zoo.load(card), card.model_copy(update={"name": "Standard-SAM", "robustbench_dataset": "imagenet"}))
    with pytest.raises(InputError, match="Standard-SAM cannot be exported under this name"):
        api.export_robustbench("Standard-SAM", tmp_path / "sent", zoo=zoo.root, **PAPER)


def test_every_field_of_model_info_is_filled(saved: tuple[Zoo, ModelCard], tmp_path: Path) -> None:
    zoo, card = saved
    record = _record(card, tmp_path / "autoattack.json", second=3)
    done = api.export_robustbench("mine", tmp_path / "sent", zoo=zoo.root, records=[record], **PAPER)
    info = json.loads(done.model_info.read_text())
    assert info.pop("footnote") and info == {
        "link": "https://example.org",
        "name": "Robust Nets",
        "authors": "Ann Other",
        "additional_data": True,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "X 2026",
        "architecture": "PreActResNet-18 (width 4)",
        "eps": "8/255",
        "clean_acc": "83.00",
        "reported": "47.00",
        "autoattack_acc": "47.00",
        "external": "44.00",
        "unreliable": True,
    }
    issue = done.issue.read_text()
    assert issue.startswith("[New Model] Other2026Robust\n") and "**Additional data**: true" in issue
    assert done.missing == []
    assert api.export_robustbench("mine", tmp_path / "sent", zoo=zoo.root, records=[record]).missing == [
        "authors",
        "paper_title",
        "paper_link",
    ]
    assert read_record(zoo.card_path(card), ModelCard) == card


def test_a_board_with_a_second_attack_is_checked_and_an_imported_model_has_no_passes(
    saved: tuple[Zoo, ModelCard], tmp_path: Path
) -> None:
    zoo, card = saved
    path = zoo.card_path(card)
    fields = json.loads(path.read_text())
    del fields["train_examples"], fields["train_fingerprint"]
    path.write_text(json.dumps({**fields, "imported": {"file": "theirs.pt", "sha256": "0" * 64}}))
    imported = zoo.find("mine")
    record = _record(imported, tmp_path / "autoattack.json", second=3)
    done = submit_entry(imported, path, [record], folder=tmp_path / "boards")
    assert (done.entry.external, done.entry.sam_bench.passes) == ("44.00", None)
    assert "the examples of cifar10-jpeg alone" in done.issue or "more than the examples" in done.issue
    built = api.build_leaderboard(tmp_path / "boards", zoo=zoo.root)
    assert "| ? | ? |" in built.paths["md"].read_text()
    done.path.write_text(done.path.read_text().replace('"external": "44.00"', '"external": "46.00"'))
    with pytest.raises(Exception, match=r"external is \"46\.00\", but .* give \"44\.00\""):
        api.build_leaderboard(tmp_path / "boards", zoo=zoo.root)
