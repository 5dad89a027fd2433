"""The energy meter against a powercap tree made by the test: sums, wrap-around, and machines that do not tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sam_bench import energy
from sam_bench.energy import EnergyMeter, counted_by
from sam_bench.records import Cost

WRAPS_AT = 262_143_328_850  # microjoules, as Intel's packages have it


def zone(root: Path, place: str, name: str, used: int, *, wraps_at: int = WRAPS_AT) -> Path:
    folder = root / f"intel-rapl:{place}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (folder / "energy_uj").write_text(f"{used}\n")
    return folder / "energy_uj"


def test_packages_add_up_and_their_inner_domains_are_not_counted_twice(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "0", "package-0", 5_000_000), zone(tmp_path, "1", "package-1", 7_000_000)
    core, platform = zone(tmp_path, "0:0", "core", 0), zone(tmp_path, "2", "psys", 0)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    assert meter.joules() == 0.0
    for file, used in ((first, 6_500_000), (second, 7_250_000), (core, 9_000_000), (platform, 9_000_000)):
        file.write_text(str(used))
    assert meter.joules() == pytest.approx(1.75)
    assert meter.joules() == pytest.approx(1.75)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, WRAPS_AT - 1), used=st.lists(st.integers(0, WRAPS_AT - 1), min_size=1, max_size=6))
def test_a_counter_that_starts_again_from_zero_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, start: int, used: list[int]
) -> None:
    root = tmp_path_factory.mktemp("powercap")
    file = zone(root, "0", "package-0", start)
    meter = EnergyMeter("cpu", powercap=root)
    total, seen = start, 0.0
    for amount in used:
        total += amount
        file.write_text(str(total % WRAPS_AT))
        now = meter.joules()
        assert now is not None and now >= seen
        seen = now
    assert seen == pytest.approx((total - start) * 1e-6, abs=1e-5)


def test_a_machine_that_does_not_tell_gives_none(tmp_path: Path) -> None:
    assert EnergyMeter("cpu", powercap=tmp_path / "nowhere").joules() is None
    assert EnergyMeter("meta", powercap=tmp_path).joules() is None


@pytest.mark.parametrize("content", ["", "unknown", "-5", "1.5"])
def test_a_package_that_cannot_be_read_gives_none_instead_of_a_sum_without_it(tmp_path: Path, content: str) -> None:
    zone(tmp_path, "0", "package-0", 1)
    zone(tmp_path, "1", "package-1", 1).write_text(content)
    assert EnergyMeter("cpu", powercap=tmp_path).joules() is None


def test_a_counter_that_vanishes_gives_none_from_then_on(tmp_path: Path) -> None:
    file = zone(tmp_path, "0", "package-0", 1)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    file.unlink()
    assert meter.joules() is None
    file.write_text("2000000")
    assert meter.joules() is None


def test_processes_know_whether_they_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's CPUs are counted whole, whoever looks; a GPU by itself, whatever number it goes by."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"chip of {device}"))
    cpu, first, second = (counted_by(device) for device in ("cpu", "cuda:0", "cuda:1"))
    assert len({cpu, first, second}) == 3 and counted_by(torch.device("cpu")) == cpu
    assert first == "GPU chip of cuda:0"
    monkeypatch.setattr(energy, "_BOOT", Path("/nowhere"))
    monkeypatch.setattr(energy.platform, "node", lambda: "this-machine")
    assert counted_by("cpu") == "cpu of this-machine"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_uses_energy_when_it_works() -> None:
    pytest.importorskip("pynvml")
    meter = EnergyMeter("cuda")
    if meter.joules() is None:
        pytest.skip("this GPU does not count its energy")
    matrix = torch.randn(4096, 4096, device="cuda")
    for _ in range(200):
        matrix = (matrix @ matrix).tanh()
    torch.cuda.synchronize()
    joules = meter.joules()
    assert joules is not None and joules > 0


def test_a_cards_energy_is_optional_and_never_negative() -> None:
    fields = {"train_forward": 1, "train_backward": 1, "seconds": 1, "device": "a CPU"}
    assert Cost(**fields).energy_joules is None
    assert Cost(**fields, energy_joules=12.5).energy_joules == 12.5
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Cost(**fields, energy_joules=-1)
