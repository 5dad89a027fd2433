"""The whole way in Python, and the result as timm and RobustBench find it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_runs import Linear, train_on_digits

import sam_bench
from sam_bench import build_leaderboard, evaluate, load_model
from sam_bench.api import EvalSpec, submit
from sam_bench.data import load_dataset, to_float
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.records import EvaluationRecord, ModelCard, read_record, sha256_file
from sam_bench.training import load_recipe
from sam_bench.zoo import state_dict_sha256

pytestmark = pytest.mark.usefixtures("workplace")


def test_the_package_offers_the_four_verbs() -> None:
    assert {"train", "evaluate", "load_model", "build_leaderboard"} <= set(dir(sam_bench))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = sam_bench.trian


def test_the_whole_way_from_training_to_the_leaderboard(workplace: Path) -> None:
    trained = train_on_digits("sam", name="whole-way", settings={"rho": 0.1})
    card = read_record(trained.card_path, ModelCard)
    assert card == trained.card
    assert trained.card_path == workplace / "zoo/digits-8px/Linf/whole-way.json"
    assert trained.run_dir == Path("runs/whole-way")
    assert card.recipe.weights.method == "sam" and card.recipe.weights.settings["rho"] == 0.1
    assert card.cost.passes == pytest.approx(2 * 3, rel=0.05)

    model = load_model("whole-way")
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[key]), key
    test = load_dataset("digits", image_size=8).test
    images = to_float(test.images)
    with torch.no_grad():
        logits = model(images)
        # Trained in channels_last, loaded contiguous: the same weights, sums in another order.
        torch.testing.assert_close(logits, trained.model(images), rtol=1e-4, atol=1e-4)
    assert float((logits.argmax(1) == test.labels).float().mean()) == pytest.approx(card.clean_accuracy)
    assert card.clean_accuracy > 0.2

    paths = []
    for attack, eps, settings in (("fgsm", "16/255", {}), ("pgd", "16/255", {"steps": 5}), ("autoattack", "0.9", {})):
        path = Path(f"{attack}.json")
        examples = 4 if attack == "autoattack" else 64
        record = evaluate("whole-way", attack=attack, eps=eps, settings=settings, n_examples=examples, output=path)
        assert read_record(path, EvaluationRecord) == record
        assert record.checkpoint_sha256 == card.weights.sha256
        assert record.robust_accuracy <= record.clean_accuracy
        assert len(record.verdicts) == examples
        paths.append(path)
    with torch.no_grad():
        right = (logits.argmax(1) == test.labels)[:4].tolist()
    assert [verdict != "misclassified" for verdict in record.verdicts] == right

    submission = submit("whole-way", paths)
    assert submission.path == Path("leaderboards/digits-8px/Linf/whole-way.json")
    assert json.loads(submission.model_info)["clean_acc"] == f"{100 * record.clean_accuracy:.2f}"
    built = build_leaderboard(Path("leaderboards"))
    table = built.paths["md"].read_text()
    assert table.count("whole-way") == 3
    assert built.paths["html"].read_text().startswith("<!DOCTYPE html>")


def test_equal_arguments_give_equal_weights_and_another_seed_gives_others() -> None:
    first = train_on_digits(name="first", settings={"epochs": 1})
    again = train_on_digits(name="again", settings={"epochs": 1})
    other = train_on_digits(name="other", settings={"epochs": 1}, seed=1)
    assert first.card.weights.sha256 == again.card.weights.sha256 != other.card.weights.sha256


class Listening(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_resumed_run_keeps_the_precision_that_was_measured_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.device.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("sam_bench.training.precision.network_gain", lambda network, shape: 2.0)
    told = [Listening(), Listening()]
    short: dict[str, Any] = {"precision": "auto", "settings": {"epochs": 1}, "limit_train": 64, "name": "measured"}
    first = train_on_digits(**short, reporter=told[0])
    monkeypatch.setattr("sam_bench.training.precision.network_gain", lambda network, shape: 0.5)
    monkeypatch.setattr("sam_bench.device.bf16_gain", lambda threads: 0.5)
    again = train_on_digits(**short, reporter=told[1], resume=True)
    assert first.card.precision == again.card.precision == "bf16"
    assert "precision bf16 (the network in bfloat16 is 2.00 times as fast, measured now)" in " ".join(told[0].said)
    assert "precision bf16 (as the run began)" in " ".join(told[1].said)
    with pytest.raises(InputError, match="precision"):
        train_on_digits(**short | {"precision": "fp32"}, resume=True)
    evaluate("measured", attack="autoattack-bf16", eps="1/255", n_examples=1, reporter=told[1])
    assert "autoattack, which searches in float32, would be faster" in " ".join(told[1].said)


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_trained() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = train_on_digits(name="first", settings={"epochs": 1})
    assert torch.equal(torch.rand(3), expected)
    assert train_on_digits(name="again", settings={"epochs": 1}).card.weights.sha256 == first.card.weights.sha256


def test_a_recipe_may_be_given_as_an_object_and_a_silent_run_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    gentle = load_recipe("sam").model_copy(update={"name": "gentle"})
    card = train_on_digits(gentle, settings={"epochs": 1, "rho": 0.05}).card
    assert card.recipe.name == "gentle" and card.name.startswith("gentle-rho005-preactresnet10-w4")
    evaluate(card.name, attack="fgsm", eps="1/255", n_examples=4)
    assert capfd.readouterr() == ("", "")


def test_a_model_of_another_run_is_not_replaced() -> None:
    first = train_on_digits(settings={"epochs": 1})
    other = train_on_digits(settings={"epochs": 1}, seed=1)
    assert other.card.name == f"{first.card.name}-seed1"
    with pytest.raises(InputError, match=rf"{first.card.name} is in the zoo .* from a run with another recipe: choose"):
        train_on_digits(settings={"epochs": 2}, run_dir="runs/longer")
    # Its own run, made anew, is.
    assert train_on_digits(settings={"epochs": 1}, run_dir="runs/again").card.weights == first.card.weights


def test_half_precision_weights_are_what_is_measured() -> None:
    card = train_on_digits(name="half", settings={"epochs": 1}, weights_dtype="float16").card
    whole = train_on_digits(name="whole", settings={"epochs": 1}).card
    assert card.weights.size < 0.6 * whole.weights.size
    record = evaluate("half", attack="fgsm", eps=0)
    assert record.clean_accuracy == record.robust_accuracy == pytest.approx(card.clean_accuracy)


def test_a_few_examples_of_a_sorted_test_set_are_of_every_class(workplace: Path) -> None:
    test = load_dataset("digits", image_size=8, test_only=True).test
    order = test.labels.argsort(stable=True)
    images = test.images[order].permute(0, 2, 3, 1).numpy()
    np.savez("sorted.npz", x_train=images, y_train=test.labels[order], x_test=images, y_test=test.labels[order])
    train_on_digits(dataset="sorted.npz", name="sorted", limit_train=40, settings={"epochs": 1})
    record = evaluate("sorted", attack="fgsm", eps="4/255", dataset="sorted.npz", n_examples=20)
    ten_twice = test.select(torch.cat([(test.labels == label).nonzero().flatten()[:2] for label in range(10)]))
    assert record.n_examples == 20 and record.dataset_fingerprint == ten_twice.fingerprint


def test_a_module_of_ones_own_and_a_checkpoint_of_a_run_are_evaluated(workplace: Path) -> None:
    torch.manual_seed(0)
    module = Linear()
    options: dict[str, Any] = {"attack": "fgsm", "eps": "1/255", "dataset": "digits-8px", "n_examples": 20}
    record = evaluate(module, **options, output="own.json")
    assert Path("own.json").exists() and record.checkpoint_sha256 != state_dict_sha256(module)
    assert record.model == f"Linear-{record.checkpoint_sha256[:8]}"
    assert module.training, "its mode is given back"
    with pytest.raises(InputError, match=r"a module does not say what it was trained on: give dataset"):
        evaluate(module, attack="fgsm")
    said = _Said()
    evaluate(Linear(classes=12), **options, reporter=said)
    assert any("knows 12 classes, and digits-8px has 10" in line for line in said.lines)

    trained = train_on_digits(name="mine", settings={"epochs": 1})
    registered = evaluate("mine", **options)
    checkpoint = trained.run_dir / "checkpoint.pt"
    again = evaluate(str(checkpoint), **options)
    assert again.verdicts == registered.verdicts and again.checkpoint_sha256 == sha256_file(checkpoint)
    (path,) = Path("evaluations/mine-checkpoint").glob("*.json")
    assert path.name == "fgsm-Linf-1over255-n20.json"


def test_a_refusal_for_too_few_classes_leaves_the_way_free_for_what_it_recommends(workplace: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(12) % 3
    np.savez("three.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    torch.manual_seed(0)
    options: dict[str, Any] = {"dataset": "three.npz", "eps": "1/255", "output": "t3.json"}
    module = Linear(classes=3)
    with pytest.raises(InputError, match="use attack='autoattack' version='custom' suite='apgd-ce,fab-t,square'"):
        evaluate(module, **options)
    assert not Path("t3.progress").exists()
    settings = {"version": "custom", "suite": "apgd-ce,fab-t,square"}
    assert evaluate(module, **options, settings=settings).attack == "autoattack"


class _Said(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("radii", "texts"),
    [
        (np.float32(8 / 255), ["0.03137255"]),
        (0.5, ["0.5"]),
        (np.array([0.25, 0.5]), ["0.25", "0.5"]),
        (["1/255", 2], ["1/255", "2"]),
    ],
)
def test_radii_of_numpys_types_are_understood(radii: Any, texts: list[str]) -> None:
    found = EvalSpec(eps=radii, norm="L2").radii
    assert [str(radius) for radius in found] == texts
    if isinstance(radii, np.float32):
        assert np.float32(float(found[0])) == radii


def test_paths_numpys_numbers_and_devices_are_taken_as_their_plain_kin() -> None:
    card = train_on_digits(name="kin", settings={"epochs": 1}, seed=np.int64(0), limit_train=np.int32(64)).card
    options: dict[str, Any] = {"attack": "fgsm", "eps": "1/255"}
    plain = evaluate("kin", **options, n_examples=20, batch_size=8, seed=3, output="plain.json")
    path = Path("zoo/digits-8px/Linf/kin.json")
    kin = evaluate(
        path,
        **options,
        n_examples=np.int64(20),
        batch_size=np.int16(8),
        seed=np.uint8(3),
        device=torch.device("cpu"),
        dataset=Path("digits-8px"),
        output="kin.json",
    )
    assert (kin.verdicts, kin.checkpoint_sha256) == (plain.verdicts, card.weights.sha256)
    assert (kin.model, kin.seed, kin.batch_size) == (str(path), 3, 8)


def test_settings_as_they_are_anyway_do_not_change_the_records_name() -> None:
    module = Linear()
    options: dict[str, Any] = {"attack": "pgd", "eps": "1/255", "dataset": "digits-8px", "n_examples": 4}
    evaluate(module, **options, settings={"steps": 10, "random_start": True, "restarts": 2})
    assert [path.name for path in Path("evaluations").glob("*/*.json")] == ["pgd-restarts2-Linf-1over255-n4.json"]


def test_timm_and_robustbench_find_a_model_that_shares_cifar10s_inputs(workplace: Path) -> None:
    import robustbench.utils
    import timm

    draws = np.random.default_rng(0)
    np.savez(
        workplace / "synthetic.npz",
        x_train=draws.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(40) % 10,
        x_test=draws.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(20) % 10,
    )
    trained = train_on_digits(
        dataset="synthetic.npz",
        name="shared-inputs",
        robustbench_dataset="cifar10",
        image_size=None,
        arch_options={"width": 2},
        settings={"epochs": 1},
        validation=0,
    )
    assert trained.card.robustbench_dataset == "cifar10"
    images = to_float(load_dataset("synthetic.npz").test.images)
    own = load_model("shared-inputs")
    by_timm = timm.create_model("shared_inputs_synthetic_linf", pretrained=True).eval()
    by_its_other_name = timm.create_model("shared_inputs_cifar10_linf", pretrained=True).eval()
    by_robustbench = robustbench.utils.load_model("shared-inputs", dataset="cifar10", threat_model="Linf").eval()
    with torch.no_grad():
        expected = own(images)
        for model in (by_timm, by_its_other_name, by_robustbench):
            assert torch.equal(model(images), expected)
    record = evaluate("robustbench:shared-inputs", attack="fgsm", dataset="synthetic.npz", eps="1/255")
    assert record.checkpoint_sha256 == trained.card.weights.sha256
