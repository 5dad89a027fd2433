"""Attribution, against planted saliency, closed forms and SciPy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import sam_bench
from sam_bench.analysis import Context
from sam_bench.analysis.attribution import (
    Attribution,
    correlation,
    deletion,
    edges,
    input_gradients,
    integrated_gradients,
    low_frequency_share,
)
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.zoo import LoadedModel


class ReadsAPatch(nn.Module):
    """Scores of three classes from the patch [4:8, 4:8] alone, through a layer that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Tanh(), nn.Linear(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(3 * (x[:, :, 4:8, 4:8] - 0.5))
        return scores


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 16, 16, generator=draws), torch.randint(3, (count,), generator=draws)


def test_all_attribution_is_where_the_model_looks() -> None:
    (x, y), model = images(), ReadsAPatch().eval()
    for maps in (input_gradients(model, x, y), integrated_gradients(model, x, y, steps=16)):
        assert (maps[:, :, 4:8, 4:8] != 0).all()
        assert (maps != 0).sum() == maps[:, :, 4:8, 4:8].numel()


def test_integrated_gradients_are_complete() -> None:
    (x, y), model = images(), ReadsAPatch().eval()
    with torch.no_grad():
        gained = (model(x) - model(torch.zeros_like(x)))[torch.arange(len(y)), y]
    found = integrated_gradients(model, x, y, steps=32).sum((1, 2, 3))
    assert torch.allclose(found, gained, atol=1e-5)
    assert not torch.allclose((input_gradients(model, x, y) * x).sum((1, 2, 3)), gained, atol=1e-2)


def test_of_a_linear_model_both_are_known() -> None:
    x, y = images()
    layer = nn.Linear(3 * 16 * 16, 3)
    model = nn.Sequential(nn.Flatten(), layer)
    weights = layer.weight[y].view_as(x).detach()
    assert torch.allclose(input_gradients(model, x, y), weights)
    assert torch.allclose(integrated_gradients(model, x, y, steps=8), weights * x, atol=1e-6)


def test_the_share_of_low_frequencies_is_that_of_waves_with_known_periods() -> None:
    across = torch.arange(32) / 32
    waves = torch.stack([torch.cos(2 * torch.pi * periods * across) for periods in (0, 1, 4, 5, 16)])
    maps = waves[:, None, None, :].expand(-1, 3, 32, -1)
    assert low_frequency_share(maps).tolist() == pytest.approx([1, 1, 1, 0, 0], abs=1e-5)
    mixed = maps[1:2] + 2 * maps[4:5]  # energies 1/2 and 4
    assert float(low_frequency_share(mixed)) == pytest.approx(0.5 / 4.5, abs=1e-5)
    noise = torch.randn(400, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(low_frequency_share(noise).mean()) == pytest.approx(49 / 1024, rel=0.02)


def test_edges_are_scipys() -> None:
    x, _ = images()
    grey = x.mean(1).numpy()
    for image, found in zip(grey, edges(x).numpy(), strict=True):
        expected = np.hypot(*(ndimage.sobel(image, axis, mode="mirror") for axis in (0, 1)))
        assert np.allclose(found, expected, atol=1e-5)


def test_the_correlation_is_numpys() -> None:
    a, b = torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = [np.corrcoef(a[i].flatten(), b[i].flatten())[0, 1] for i in range(5)]
    assert correlation(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert correlation(a, torch.ones_like(b)).abs().max() < 1e-3


def test_deleting_what_the_model_reads_breaks_it_at_once_and_the_rest_never() -> None:
    x, _ = images()
    model = ReadsAPatch().eval()
    flat = x.clone()
    flat[:, :, 4:8, 4:8] = x.mean((2, 3), keepdim=True)
    y = model(x).argmax(1)
    breaks = model(flat).argmax(1) != y
    assert breaks.any()
    patch = torch.zeros(len(x), 16, 16)
    patch[:, 4:8, 4:8] = 1
    # The patch is four of the 64 cells of the grid, one part in sixteen.
    first, last = (deletion(model, x, y, importance, parts=16) for importance in (patch, -patch))
    assert first[:, 0].all() and torch.equal(first[:, 1], ~breaks)
    assert last[:, :16].all() and torch.equal(last[:, 16], first[:, 16])


def test_measures_of_a_planted_model() -> None:
    x, _ = images(40)
    model = ReadsAPatch().eval()
    y = model(x).argmax(1)
    with SilentReporter().stage("", 40) as stage:
        context = Context(x=x, y=y, classes=("a", "b", "c"), batch_size=16, seed=0, stage=stage, models={})
        found = Attribution(parts=16).measure(LoadedModel(model, "planted", "0" * 64, None, 3, None), context)
    assert found["completeness_error"] < 1e-4
    assert found["low_frequency_of_noise"] == pytest.approx(13 / 256)
    assert found["gradient"]["curve"][0] == found["random"]["curve"][0] == 1
    # The patch is deleted first by both methods; what is deleted later changes nothing.
    assert found["integrated"]["deletion_gain"] == pytest.approx(found["gradient"]["deletion_gain"])
    assert found["gradient"]["deletion_gain"] > 0
    assert all(each.grad is None and each.requires_grad for each in model.parameters())


def test_numbers_and_figure(zoo: Path, tmp_path: Path) -> None:
    settings = {"path_steps": 2, "parts": 2, "shown": 2}
    result = sam_bench.analyze("attribution", zoo=zoo, n_examples=10, output=tmp_path, settings=settings)
    found = result.measured["first"]
    assert len(found["images"]) == len(found["gradient"]["maps"]) == 2
    assert found["image_shape"] == [8, 8, 1]
    assert all(0 <= found[method]["low_frequency"] <= 1 for method in ("gradient", "integrated"))
    assert result.lines[1].startswith("first, integrated gradients: low frequencies ")
    assert all(path.stat().st_size > 1000 for path in result.figures)


def test_without_captum_it_says_how_to_get_it(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"attribution needs Captum: pip install 'sam-bench\[analysis\]'"):
        sam_bench.analyze("attribution", ["first"], zoo=zoo, n_examples=4, output=tmp_path)
