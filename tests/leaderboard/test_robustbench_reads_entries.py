"""RobustBench's own readers take an entry's file as it stands.

Its HTML generator is not tested: the wheel lacks the template it renders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from leaderboard_samples import AT, SAM, STANDARD, Bench, make_card, make_record

from sam_bench import integrations


@pytest.fixture
def robustbench_utils() -> ModuleType:
    """`robustbench.utils`, importable once our integrations are installed."""
    integrations.install()
    import robustbench.utils

    module: ModuleType = robustbench.utils
    return module


@pytest.fixture
def listed(bench: Bench, monkeypatch: pytest.MonkeyPatch, robustbench_utils: ModuleType) -> Iterator[Bench]:
    """Three entries linked, unchanged, to where RobustBench looks, and named in its model dictionary."""
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    for name, recipe, clean, robust in (
        ("sb-standard", STANDARD, 94, 0),
        ("sb-sam", SAM, 93, 2),
        ("sb-at", AT, 83, 47),
    ):
        card = make_card(name, recipe, dataset="cifar10-jpeg", robustbench_dataset="cifar10")
        done = bench.submit(card, make_record(card, clean=clean, robust=robust))
        link = bench.root / "model_info" / done.entry.dataset / "Linf" / done.path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(done.path)
    models = model_dicts[BenchmarkDataset("cifar10")][ThreatModel("Linf")]
    before = dict(models)
    models.update({name: {} for name in ("sb-standard", "sb-sam", "sb-at")})
    monkeypatch.chdir(bench.root)
    yield bench
    models.clear()
    models.update(before)


def test_list_available_models_ranks_our_entries(
    listed: Bench, robustbench_utils: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    robustbench_utils.list_available_models(dataset="cifar10", threat_model="Linf")
    lines = capsys.readouterr().out.splitlines()[2:]
    names = [re.search(r"\*\*(sb-\w+)\*\*", line) for line in lines]
    assert [name[1] for name in names if name] == ["sb-at", "sb-sam", "sb-standard"] and len(lines) == 3
    assert "83.00%" in lines[0] and "47.00%" in lines[0] and "PreActResNet-18 (width 16)" in lines[0]


def test_get_leaderboard_latex_reads_our_entries(listed: Bench, robustbench_utils: ModuleType) -> None:
    lines = robustbench_utils.get_leaderboard_latex("cifar10", "Linf").splitlines()
    assert [line.split("&")[1].strip() for line in lines] == [
        r"\citet{sb-at}",
        r"\citet{sb-sam}",
        r"\citet{sb-standard}",
    ]
    assert lines[0].endswith(r"& 83.00 & 47.00 & N & PreActRN-18 (width 16) & Unpublished & sb-at\\")


def test_get_leaderboard_bibtex_reads_our_entries(listed: Bench, robustbench_utils: ModuleType) -> None:
    entries, text = robustbench_utils.get_leaderboard_bibtex("cifar10", "Linf")
    assert len(entries) == 3
    assert "sam-bench: sam" in text and "Anonymous" in text and "Unpublished" in text


def test_what_is_sent_to_robustbench_is_read_the_same(
    bench: Bench, robustbench_utils: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card("sb-sent", AT)
    done = bench.submit(card, make_record(card, clean=83, robust=47))
    path = Path(bench.root / "model_info" / "cifar10" / "Linf" / "sb-sent.json")
    path.parent.mkdir(parents=True)
    path.write_text(done.model_info)
    monkeypatch.chdir(bench.root)
    assert "83.00 & 47.00" in robustbench_utils.get_leaderboard_latex("cifar10", "Linf")
