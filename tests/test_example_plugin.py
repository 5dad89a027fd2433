"""The example package, installed as a user would, brings its methods and its attack without a change to ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam_bench.attacks import Attack

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin"

SMALL = [
    *("--dataset", "digits", "--image-size", "8", "--arch", "preactresnet10", "--width", "2", "--limit-train", "32"),
    *("--epochs", "1", "--validation", "0", "--crop-padding", "0", "--no-flip", "--precision", "fp32"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed by pip, built from a copy so that nothing is left in the source."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "plugin")
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


def sam_bench(*arguments: str, path: Path | None, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-m", "sam_bench", *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )


def test_the_methods_of_an_attack_that_its_readme_names_exist() -> None:
    (sentence,) = re.findall(r"An attack needs no .*", (EXAMPLE / "README.md").read_text(encoding="utf-8"))
    names = set(re.findall(r"`(\w+)`", sentence)) - {"passes"}
    assert names and all(hasattr(Attack, name) for name in names)


@pytest.mark.slow
def test_its_recipe_trains_and_the_card_names_its_methods_settings_and_cost(site: Path, tmp_path: Path) -> None:
    recipe = str(EXAMPLE / "sign-sam-pairing.yaml")
    done = sam_bench("train", "--recipe", recipe, "--pairing", "0.25", *SMALL, "--json", path=site, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)["card"]
    weights, objective = card["recipe"]["weights"], card["recipe"]["objective"]
    assert (weights["method"], weights["rho"], weights["start_epoch"]) == ("sign-sam", 0.001, 0)
    assert objective == {"method": "logit-pairing", "pairing": 0.25}
    assert card["packages"]["sam-bench-plugin"] == "1.0"
    # Two gradients, each on clean and perturbed inputs; one of the input.
    cost = {key: value for key, value in card["cost"].items() if "forward" in key or "backward" in key}
    assert cost == {"train_forward": 4, "train_backward": 4, "attack_forward": 1, "attack_backward": 1}


@pytest.mark.slow
def test_its_attack_runs_alone_and_shared_with_the_same_verdicts_and_refuses_what_it_cannot(
    site: Path, tmp_path: Path
) -> None:
    learned = [*SMALL, "--limit-train", "1000", "--epochs", "10"]  # enough not to say the same of every image
    trained = sam_bench("train", "--recipe", "standard", *learned, "--name", "victim", path=site, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    attack = ["evaluate", "victim", "--attack", "random-corners", "--n-examples", "40", "--eps", "64/255", "--json"]
    alone = sam_bench(*attack, "--trials", "5", path=site, folder=tmp_path)
    shared = sam_bench(*attack, "--trials", "5", "--workers", "2", "--output", "two.json", path=site, folder=tmp_path)
    assert (alone.returncode, shared.returncode) == (0, 0), alone.stderr + shared.stderr
    records = [json.loads(each.stdout) for each in (alone, shared)]
    assert records[0]["settings"] == {"trials": 5} and records[0]["attack"] == "random-corners"
    assert records[0]["verdicts"] == records[1]["verdicts"]
    assert set(records[0]["verdicts"]) <= {"robust", "misclassified", "random-corners"}
    assert 0 < records[0]["verdicts"].count("random-corners") < 40
    refused = sam_bench(*attack, "--norm", "L2", path=site, folder=tmp_path)
    assert refused.returncode == 2 and "random-corners has corners in Linf alone" in refused.stderr


@pytest.mark.slow
def test_it_is_refused_as_ours_are_where_it_makes_no_sense_and_unknown_without_the_package(
    site: Path, tmp_path: Path
) -> None:
    alone = sam_bench("train", "--objective", "logit-pairing", *SMALL, path=site, folder=tmp_path)
    assert alone.returncode == 2 and "objective 'logit-pairing' compares clean with perturbed inputs" in alone.stderr
    without = sam_bench("train", "--weights", "sign-sam", *SMALL, path=None, folder=tmp_path)
    assert without.returncode == 2 and "unknown weight perturbation 'sign-sam'" in without.stderr
