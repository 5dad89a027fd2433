"""What every analysis has in common: how it is asked for, what is kept, what is refused."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sam_bench
from sam_bench import progress
from sam_bench.analysis import ANALYSES, Context
from sam_bench.analysis.calibration import Calibration
from sam_bench.api.analyzing import run_analysis
from sam_bench.api.specs.analyze import AnalyzeSpec
from sam_bench.errors import InputError, SamBenchError
from sam_bench.progress import PlainReporter


@pytest.mark.parametrize("analysis", list(ANALYSES), ids=lambda each: each.method)
def test_an_analysis_says_what_it_answers_and_what_its_settings_are(analysis: Any) -> None:
    assert analysis.summary[0].islower() and not analysis.summary.endswith(".")
    assert all(field.description for field in analysis.model_fields.values())


def test_numbers_and_figure_are_written(zoo: Path, tmp_path: Path) -> None:
    result = sam_bench.analyze("calibration", zoo=zoo, n_examples=20, output=tmp_path, command="the command")
    written = json.loads(result.numbers.read_text())
    assert written["measured"] == result.measured
    assert set(result.measured) == {"first", "second"}
    assert (written["n_examples"], written["command"], written["settings"]) == (20, "the command", {"bins": 15})
    assert {path.suffix for path in result.figures} == {".svg", ".png"}
    assert all(path.stat().st_size > 1000 for path in result.figures)
    assert result.lines[0].startswith("first: accuracy ")


def test_the_images_that_there_are_are_counted(zoo: Path, tmp_path: Path) -> None:
    result = sam_bench.analyze("calibration", ["first"], zoo=zoo, n_examples=10_000, output=tmp_path)
    assert json.loads(result.numbers.read_text())["n_examples"] == 500


def test_the_time_left_counts_the_whole_first_batch(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)

    def measure(self: Calibration, _: Any, context: Context) -> dict[str, float]:
        clock.now += 20.0
        context.stage.update(10)
        return {"accuracy": 0.5, "confidence": 0.5, "ece": 0.0}

    monkeypatch.setattr(Calibration, "measure", measure)
    monkeypatch.setattr(Calibration, "draw", lambda *_: None)
    stream = io.StringIO()
    spec = AnalyzeSpec(analysis="calibration", subjects=("first",), zoo=zoo, n_examples=20, output=tmp_path)
    run_analysis(spec, reporter=PlainReporter(stream))
    assert "calibration first 10/20, 0:20 elapsed, 0:20 left" in stream.getvalue().splitlines()


def test_where_no_figure_can_be_drawn_nothing_is_written(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("nothing to draw")

    monkeypatch.setattr(Calibration, "draw", fails)
    with pytest.raises(ValueError, match="nothing to draw"):
        sam_bench.analyze("calibration", ["first"], zoo=zoo, n_examples=20, output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["measured"]


def test_the_model_of_a_number_that_is_not_finite_is_named(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Calibration, "measure", lambda *_: {"ece": math.nan})
    with pytest.raises(SamBenchError, match="calibration of second found a number that is not finite"):
        sam_bench.analyze("calibration", ["second"], zoo=zoo, n_examples=20, output=tmp_path)


@pytest.mark.parametrize(
    ("channels", "labels", "message"),
    [
        (1, 12, "model first knows 10 classes, but data set other has labels up to 11"),
        (3, 10, "model first takes images of 1 channel of 8x8, but data set other has 3 channels of 8x8"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(
    zoo: Path, tmp_path: Path, channels: int, labels: int, message: str
) -> None:
    images, numbers = np.zeros((24, 8, 8, channels), np.uint8), np.arange(24) % labels
    np.savez(tmp_path / "other.npz", x_train=images, y_train=numbers, x_test=images, y_test=numbers)
    with pytest.raises(InputError, match=message):
        sam_bench.analyze("calibration", ["first"], zoo=zoo, dataset=str(tmp_path / "other.npz"), output=tmp_path)


def test_the_same_question_gives_the_same_files(zoo: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        sam_bench.analyze("calibration", ["first"], zoo=zoo, n_examples=20, output=tmp_path / name)
    assert (tmp_path / "a/calibration.svg").read_bytes() == (tmp_path / "b/calibration.svg").read_bytes()


def test_what_was_measured_is_not_measured_again(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"zoo": zoo, "n_examples": 20, "output": tmp_path}
    before = sam_bench.analyze("calibration", ["first"], **asked)
    original, measured = Calibration.measure, []

    def counted(self: Calibration, model: Any, context: Any) -> Any:
        measured.append((model.name, self.bins, len(context.x), context.seed))
        return original(self, model, context)

    monkeypatch.setattr(Calibration, "measure", counted)
    assert sam_bench.analyze("calibration", ["first"], **asked).measured == before.measured
    assert measured == []
    sam_bench.analyze("calibration", **asked)
    sam_bench.analyze("calibration", ["first"], **asked, settings={"bins": 2})
    sam_bench.analyze("calibration", ["first"], **{**asked, "n_examples": 21})
    sam_bench.analyze("calibration", ["first"], **asked, seed=1)
    assert measured == [("second", 15, 20, 0), ("first", 2, 20, 0), ("first", 15, 21, 0), ("first", 15, 20, 1)]


def test_a_damaged_file_of_measurements_is_measured_again(zoo: Path, tmp_path: Path) -> None:
    asked = {"zoo": zoo, "n_examples": 20, "output": tmp_path}
    before = sam_bench.analyze("calibration", ["first"], **asked)
    (kept,) = (tmp_path / "measured").iterdir()
    kept.write_text(kept.read_text()[:-20])
    assert sam_bench.analyze("calibration", ["first"], **asked).measured == before.measured


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"analysis": "calibrate"}, "unknown analysis 'calibrate'. Did you mean 'calibration'"),
        ({"settings": {"rho": 1}}, "analysis.rho does not apply: calibration takes bins"),
        ({"settings": {"bins": 1}}, "analysis.bins: must be greater than or equal to 2"),
        ({"analysis": "transfer", "settings": {"eps": 8}}, "analysis.eps: 8 is too large for Linf: inputs are in"),
        ({"analysis": "features", "settings": {"eps": 16}}, "analysis.eps: 16 is too large for L2: inputs are in"),
        ({"analysis": "sharpness", "settings": {"eps": 8}}, "analysis.eps: images are in [0, 1], so 8 holds all"),
        ({"subjects": ["frist"]}, "Did you mean 'first'"),
        ({"n_examples": 0}, "n_examples must be a whole number of at least 1"),
        ({"zoo": "nowhere"}, "calibration needs models: name some, or train one, as the zoo is empty"),
    ],
)
def test_a_wrong_question_is_refused(zoo: Path, tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        sam_bench.analyze(**{"analysis": "calibration", "zoo": zoo, "output": tmp_path / "out", **asked})
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_two_models_of_one_name_are_refused_and_none_is_left_out_unsaid(zoo: Path, tmp_path: Path) -> None:
    twins = tmp_path / "twins"
    shutil.copytree(zoo, twins)
    (home,) = twins.glob("*/Linf")
    card = json.loads((home / "second.json").read_text()) | {"name": "first", "threat": "L2"}
    shutil.copytree(home, home.with_name("L2"))
    (home.with_name("L2") / "second.json").unlink()
    (home.with_name("L2") / "first.json").write_text(json.dumps(card))
    for subjects in ([], [str(home / "first.json"), str(home.with_name("L2") / "first.json")]):
        with pytest.raises(InputError, match="two models that differ are called first"):
            sam_bench.analyze("calibration", subjects, zoo=twins, n_examples=20, output=tmp_path / "out")
