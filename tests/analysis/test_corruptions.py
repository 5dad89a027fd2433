"""Common corruptions, made on the fly and read from a folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import sam_bench
from sam_bench.analysis.corruptions import MADE, PUBLISHED, corrupted
from sam_bench.errors import InputError
from sam_bench.zoo import load_model


def images(count: int = 40, size: int = 32, channels: int = 3) -> torch.Tensor:
    """Smooth random images that fill most of [0, 1]."""
    draws = np.random.default_rng(0).random((count, channels, size, size))
    smooth = gaussian_filter(draws, (0, 0, 1, 1))
    return torch.from_numpy((smooth - smooth.min()) / (smooth.max() - smooth.min())).float()


@pytest.mark.parametrize("name", MADE)
def test_a_corruption_moves_images_farther_the_more_severe_it_is(name: str) -> None:
    x = images()
    moved = [float((corrupted(x, name, severity, seed=0) / 255 - x).square().mean()) for severity in range(1, 6)]
    assert moved == sorted(moved) and moved[0] > 1e-6


@pytest.mark.parametrize("name", MADE)
def test_grey_images_of_any_size_are_corrupted_and_the_seed_decides(name: str) -> None:
    x = images(count=4, size=8, channels=1)
    first, again, other = (corrupted(x, name, 3, seed=seed) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8 and first.shape == x.shape
    assert torch.equal(first, again)
    assert torch.equal(first, other) != name.endswith("noise")


def test_noise_has_the_published_strength() -> None:
    x = torch.full((60, 3, 32, 32), 0.5)
    gaussian, shot, impulse = (
        corrupted(x, name, 5, seed=0).double() / 255 for name in ("gaussian_noise", "shot_noise", "impulse_noise")
    )
    assert float(gaussian.std()) == pytest.approx(0.1, rel=0.01)
    assert float(shot.mean()) == pytest.approx(0.5, rel=0.01)
    assert float(shot.std()) == pytest.approx((0.5 / 50) ** 0.5, rel=0.02)  # of a Poisson variable, over 50 photons
    assert float((impulse == 0).double().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((impulse == 1).double().mean()) == pytest.approx(0.035, rel=0.05)


def test_the_blur_is_scipys() -> None:
    x = images(count=2)
    expected = gaussian_filter(x.numpy(), (0, 0, 0.7, 0.7), mode="mirror")
    assert np.abs(corrupted(x, "gaussian_blur", 3, seed=0).numpy() / 255 - expected).max() < 2.5 / 255


def test_compression_is_pillows() -> None:
    x = images(count=1)
    file = io.BytesIO()
    Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert np.array_equal(corrupted(x, "jpeg_compression", 5, seed=0)[0].numpy(), expected)


def test_pixelated_images_keep_their_mean_and_lose_detail() -> None:
    x = images(count=2)
    found = corrupted(x, "pixelate", 5, seed=0).float() / 255
    assert (found.mean((2, 3)) - x.mean((2, 3))).abs().max() < 1 / 255
    assert (found[..., 1:] - found[..., :-1]).abs().mean() < 0.8 * (x[..., 1:] - x[..., :-1]).abs().mean()


def test_light_is_a_straight_line() -> None:
    x = images(count=2)
    brighter, flatter = (corrupted(x, name, 2, seed=0).double() / 255 for name in ("brightness", "contrast"))
    assert (brighter - (x + 0.1).clamp(max=1)).abs().max() < 0.51 / 255
    assert flatter.std((2, 3)) / x.double().std((2, 3)) == pytest.approx(0.5, rel=0.02)


def published(folder: Path, count: int = 6, size: int = 8) -> dict[str, np.ndarray]:
    """A small folder laid out as CIFAR-10-C, in grey: two of the paper's corruptions and one more."""
    folder.mkdir()
    draws = np.random.default_rng(1)
    files = {
        name: draws.integers(0, 256, (5 * count, size, size, 1), dtype=np.uint8)
        for name in ("fog", "snow", "speckle_noise")
    }
    files["labels"] = np.tile(draws.integers(0, 10, count, dtype=np.uint8), 5)
    for name, array in files.items():
        np.save(folder / f"{name}.npy", array)
    return files


def test_a_published_folder_is_read_severity_by_severity(zoo: Path, tmp_path: Path) -> None:
    files = published(tmp_path / "corrupted")
    asked: dict[str, Any] = {"zoo": zoo, "n_examples": 4, "output": tmp_path / "out"}
    result = sam_bench.analyze("corruptions", ["first"], settings={"folder": str(tmp_path / "corrupted")}, **asked)
    module = load_model("first", zoo=zoo).module
    expected = {}
    for name in ("fog", "snow"):
        right = []
        for severity in range(5):
            rows = slice(6 * severity, 6 * severity + 4)
            x = torch.from_numpy(files[name][rows]).permute(0, 3, 1, 2) / 255
            right.append(float((module(x).argmax(1).numpy() == files["labels"][rows]).mean()))
        expected[name] = right
    found = result.measured["first"]
    assert found["accuracy"] == expected
    assert found["mean"] == pytest.approx(np.mean([*expected["fog"], *expected["snow"]]))
    settings = {"folder": str(tmp_path / "corrupted"), "corruptions": ["speckle_noise"]}
    assert set(sam_bench.analyze("corruptions", ["first"], settings=settings, **asked).findings["best"]) == {
        "speckle_noise"
    }


def test_the_published_mean_is_over_fifteen() -> None:
    assert len(set(PUBLISHED)) == 15


def test_numbers_and_figure_of_corruptions_made_on_the_fly(zoo: Path, tmp_path: Path) -> None:
    result = sam_bench.analyze("corruptions", zoo=zoo, n_examples=20, output=tmp_path)
    for found in result.measured.values():
        assert set(found["accuracy"]) == set(MADE)
        assert all(0 <= each <= 1 for values in found["accuracy"].values() for each in values)
    assert result.lines[0].startswith("first: clean ")
    assert all(path.stat().st_size > 1000 for path in result.figures)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"labels": None}, "labels.npy cannot be read"),
        ({"labels": np.zeros(7, dtype=np.uint8)}, "for five severities of equal size"),
        ({"fog": np.zeros((30, 8, 8, 1))}, "fog.npy must hold uint8 images"),
        ({"fog": np.zeros((29, 8, 8, 1), dtype=np.uint8)}, "as many as there are labels"),
        (
            {"fog": np.zeros((30, 12, 12, 1), dtype=np.uint8)},
            r"of the clean images' shape, not uint8 \[30, 12, 12, 1\]",
        ),
        ({"labels": np.full(30, 10)}, "labels.npy must hold whole numbers from 0 to 9"),
        ({"labels": np.full(30, -1)}, "labels.npy must hold whole numbers from 0 to 9"),
        ({"labels": np.full(30, 2.9)}, "labels.npy must hold whole numbers from 0 to 9"),
        ({"fog": None, "snow": None, "speckle_noise": None}, "holds labels but no corruption"),
    ],
)
def test_a_folder_that_is_not_laid_out_so_is_refused(
    zoo: Path, tmp_path: Path, broken: dict[str, Any], message: str
) -> None:
    published(tmp_path / "corrupted")
    for name, array in broken.items():
        (tmp_path / f"corrupted/{name}.npy").unlink()
        if array is not None:
            np.save(tmp_path / f"corrupted/{name}.npy", array)
    with pytest.raises(InputError, match=message):
        sam_bench.analyze(
            "corruptions",
            ["first"],
            zoo=zoo,
            n_examples=4,
            output=tmp_path / "out",
            settings={"folder": str(tmp_path / "corrupted")},
        )


def test_an_unknown_corruption_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown corruption 'contast'\. Did you mean 'contrast'"):
        sam_bench.analyze(
            "corruptions", ["first"], zoo=zoo, n_examples=4, output=tmp_path, settings={"corruptions": ["contast"]}
        )
