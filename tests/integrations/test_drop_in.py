"""`from sam_bench import AutoAttack`, as scripts that call AutoAttack use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import robustbench
import torch
from torch import Tensor, nn

from sam_bench import AutoAttack
from sam_bench.attacks import ATTACKS
from sam_bench.attacks.autoattack.suite import build_suite
from sam_bench.errors import InputError, SamBenchError
from sam_bench.integrations.robustbench import autoattack_seed
from sam_bench.integrations.state import EvaluationState
from sam_bench.records import ComponentSpec

Batch = tuple[Tensor, Tensor]


def quick(model: Any, *, workers: int = 1, search_precision: str = "fp32", **settings: Any) -> AutoAttack:
    adversary = AutoAttack(model, **{"eps": 0.08, "seed": 0, "verbose": False, "device": "cpu", **settings})
    for part in (adversary.apgd, adversary.apgd_targeted):
        part.n_iter = 10
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
    adversary.workers, adversary.search_precision = workers, search_precision
    adversary.fab.n_iter, adversary.square.n_queries = 5, 50
    return adversary


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_a_version_runs_what_evaluate_runs(model: nn.Module, version: Any, norm: Any) -> None:
    adversary = AutoAttack(model, norm=norm, version=version, device="cpu")
    assert adversary._attack().suite == tuple(build_suite(version, norm=norm))


def test_a_custom_version_has_upstreams_restarts(model: nn.Module) -> None:
    named = ["apgd-dlr", "fab-t", "fab", "square"]
    adversary = AutoAttack(model, version="custom", attacks_to_run=named, device="cpu")
    assert adversary._attack().suite == tuple(build_suite("custom", named))


@pytest.mark.slow
def test_verdicts_are_those_of_evaluates_autoattack(model: nn.Module, batch: Batch) -> None:
    x, y = batch[0][:6], batch[1][:6]
    adversary = AutoAttack(model, eps=0.08, seed=3, verbose=False, device="cpu")
    x_adv = adversary.run_standard_evaluation(x, y, bs=4)
    attack = ATTACKS.build(ComponentSpec(method="autoattack"))
    expected = attack.run(model, x, y, norm="Linf", eps=0.08, seed=3)
    assert adversary.verdicts == expected.verdicts
    assert torch.equal(x_adv, expected.x_adv)


def test_results_are_as_upstream_gives_them(model: nn.Module, batch: Batch) -> None:
    x, y = batch
    adversary = quick(model)
    x_adv, labels = adversary.run_standard_evaluation(x, y, bs=7, return_labels=True)
    with torch.no_grad():
        assert torch.equal(model(x_adv).argmax(1), labels)
    assert ((x_adv - x).abs() <= 0.08 + 1e-6).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    robust = torch.tensor([verdict == "robust" for verdict in adversary.verdicts])
    assert torch.equal(labels == y, robust) and 0 < robust.sum() < len(y)
    assert torch.equal(x_adv[robust], x[robust])
    assert torch.is_tensor(quick(model).run_standard_evaluation(x[:4], y[:4]))
    assert adversary.clean_accuracy(x, y, bs=5) == pytest.approx(float((model(x).argmax(1) == y).float().mean()))


def test_predictions_are_made_as_the_attack_is_and_change_nothing(batch: Batch) -> None:
    class Trained(nn.Module):
        """In train mode, with BatchNorm, and it writes into its input."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.head = nn.BatchNorm1d(batch[0][0].numel()), nn.Linear(batch[0][0].numel(), 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x.sub_(0.5).flatten(1)))

    x, module = batch[0].clone(), Trained()
    y = module.eval()(x.clone()).argmax(1)
    module.train()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    adversary = quick(module, version="custom", attacks_to_run=["apgd-ce"], eps=0.01)
    x_adv, labels = adversary.run_standard_evaluation(x, y, return_labels=True)
    robust = torch.tensor([verdict == "robust" for verdict in adversary.verdicts])
    assert torch.equal(labels == y, robust) and robust.any()
    assert adversary.clean_accuracy(x, y) == 1
    assert torch.equal(x, batch[0]) and ((x_adv - x).abs() <= 0.01 + 1e-6).all()
    assert module.training and all(torch.equal(before[name], each) for name, each in module.state_dict().items())


def test_predictions_are_computed_by_the_kernels_of_the_verdicts(model: nn.Module, batch: Batch) -> None:
    """On a GPU another choice of kernels rounds otherwise, which decides an example at the boundary."""
    cudnn, seen = torch.backends.cudnn, set()

    def watched(x: Tensor) -> Tensor:
        seen.add((cudnn.benchmark, cudnn.deterministic))
        return model(x)

    before = cudnn.benchmark, cudnn.deterministic
    quick(watched).clean_accuracy(*batch)
    assert seen == {(False, True)} and (cudnn.benchmark, cudnn.deterministic) == before


def test_predictions_agree_with_the_verdicts_where_a_logit_is_nan(model: nn.Module, batch: Batch) -> None:
    def undefined(x: Tensor) -> Tensor:
        logits = model(x)
        return torch.where((logits.argmax(1) == 0)[:, None], torch.nan, logits)

    x, y = batch[0], model(batch[0]).argmax(1)
    assert 0 < (y == 0).sum() < len(y)
    adversary = quick(undefined, version="custom", attacks_to_run=["apgd-ce"], eps=1e-4)
    _, labels = adversary.run_standard_evaluation(x, y, return_labels=True)
    robust = torch.tensor([verdict == "robust" for verdict in adversary.verdicts])
    assert torch.equal(labels == y, robust)
    assert (labels[y == 0] == -1).all()
    assert adversary.clean_accuracy(x, y) == float((y != 0).float().mean())


def test_the_clean_accuracy_of_what_is_no_image_or_label_is_refused(model: nn.Module, batch: Batch) -> None:
    x, y = batch
    with pytest.raises(InputError, match=r"x_orig must be float \[N, C, H, W\] in \[0, 1\], not torch.uint8"):
        quick(model).clean_accuracy((255 * x).byte(), y)
    with pytest.raises(InputError, match=f"y_orig must be {len(x)} integers, not torch.int64"):
        quick(model).clean_accuracy(x, y[:3])
    with pytest.raises(InputError, match="x_orig must hold at least one image"):
        quick(model).clean_accuracy(x[:0], y[:0])


def test_the_batch_size_changes_no_verdict_and_the_seed_decides(model: nn.Module, batch: Batch) -> None:
    x, y = batch
    settings: dict[str, Any] = {"version": "custom", "attacks_to_run": ["square"]}
    found = []
    for seed, bs in ((0, 24), (0, 5), (1, 24)):
        adversary = quick(model, eps=0.3, seed=seed, **settings)
        x_adv = adversary.run_standard_evaluation(x, y, bs=bs)
        found.append((adversary.verdicts, x_adv))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert not torch.allclose(found[0][1], found[2][1], atol=1e-3)


def test_each_attack_alone(model: nn.Module, batch: Batch) -> None:
    adversary = quick(model, version="custom", attacks_to_run=["apgd-ce", "square"])
    alone = adversary.run_standard_evaluation_individual(*batch, bs=12)
    assert list(alone) == adversary.attacks_to_run == ["apgd-ce", "square"]
    assert all(x_adv.shape == batch[0].shape for x_adv in alone.values())


def test_a_function_is_attacked_like_its_module_and_under_no_grad(model: nn.Module, batch: Batch) -> None:
    x, y = batch[0][:8], batch[1][:8]
    settings: dict[str, Any] = {"version": "custom", "attacks_to_run": ["apgd-ce"]}
    with torch.no_grad():
        by_function = quick(lambda images: model(images), **settings).run_standard_evaluation(x, y)
    assert torch.equal(by_function, quick(model, **settings).run_standard_evaluation(x, y))


def test_a_damaged_note_of_whose_verdicts_a_folder_holds_is_named(
    model: nn.Module, batch: Batch, tmp_path: Path
) -> None:
    identity = tmp_path / "state.json.progress" / "identity.json"
    identity.parent.mkdir()
    identity.write_text("{")
    with pytest.raises(SamBenchError, match=r"identity\.json cannot be read .* delete "):
        quick(model, seed=None).run_standard_evaluation(*batch, state_path=tmp_path / "state.json")


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    model: nn.Module, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = batch
    whole = quick(model, seed=None)
    monkeypatch.setattr("time.time", lambda: 5.0)  # without a seed, the clock decides
    expected = whole.run_standard_evaluation(x, y)
    path = tmp_path / "state.json"
    quick(model, seed=None).run_standard_evaluation(x, y, state_path=path)
    (part,) = (tmp_path / "state.json.progress").glob("part-*.jsonl")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[: len(lines) // 2]))
    path.unlink()
    monkeypatch.setattr("time.time", lambda: 6.0)
    again = quick(model, seed=None)
    assert torch.equal(again.run_standard_evaluation(x, y, state_path=path), expected)
    assert again.verdicts == whole.verdicts
    state = EvaluationState.from_disk(path)
    assert state.run_attacks == set(again.attacks_to_run)
    assert state.robust_flags is not None
    assert state.robust_accuracy == pytest.approx(whole.verdicts.count("robust") / len(y))


@pytest.mark.parametrize("other", [{"eps": 0.09}, {"norm": "L2"}, {"seed": 1}])
def test_a_state_of_another_run_is_refused(
    model: nn.Module, batch: Batch, tmp_path: Path, other: dict[str, Any]
) -> None:
    x, y = batch[0][:4], batch[1][:4]
    settings: dict[str, Any] = {"version": "custom", "attacks_to_run": ["apgd-ce"]}
    quick(model, **settings).run_standard_evaluation(x, y, state_path=tmp_path / "state")
    for changed, images in (({**settings, **other}, x), (settings, x.flip(3))):
        with pytest.raises(InputError, match="cannot resume"):
            quick(model, **changed).run_standard_evaluation(images, y, state_path=tmp_path / "state")


def test_what_upstream_prints_is_printed_and_logged(
    model: nn.Module, batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    adversary = quick(model, verbose=True, log_path=str(log))
    adversary.run_standard_evaluation(*batch)
    printed = capfd.readouterr().out
    for line in (
        "using standard version including apgd-ce, apgd-t, fab-t, square.",
        "initial accuracy: ",
        "robust accuracy after APGD-CE: ",
        "max Linf perturbation: 0.08",
        f"robust accuracy: {adversary.verdicts.count('robust') / 24:.2%}",
    ):
        assert line in printed and line in log.read_text()


def accuracies_printed(printed: str) -> list[str]:
    return [
        line.split(" (")[0] for line in printed.splitlines() if line.startswith(("initial", "robust accuracy after"))
    ]


def accuracies_of(adversary: AutoAttack) -> list[str]:
    found = adversary.verdicts
    expected = [f"initial accuracy: {1 - found.count('misclassified') / len(found):.2%}"]
    for number, attack in enumerate(adversary.attacks_to_run):
        lost = sum(found.count(each) for each in ("misclassified", *adversary.attacks_to_run[: number + 1]))
        expected.append(f"robust accuracy after {attack.upper()}: {1 - lost / len(found):.2%}")
    return expected


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_run_that_goes_on_prints_the_accuracies_of_all_examples(
    model: nn.Module, batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str], share: float
) -> None:
    x, y = batch[0], torch.cat([9 - batch[1][:2], batch[1][2:]])  # two or fewer are misclassified
    path = tmp_path / "state.json"
    quick(model).run_standard_evaluation(x, y, state_path=path)
    (part,) = (tmp_path / "state.json.progress").glob("part-*.jsonl")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[: int(share * len(lines))]))
    again = quick(model, verbose=True)
    capfd.readouterr()
    again.run_standard_evaluation(x, y, state_path=path)
    assert accuracies_printed(capfd.readouterr().out) == accuracies_of(again)


@pytest.mark.parametrize("steps", [1, 2])
def test_so_few_steps_that_the_last_ball_in_l1_has_none_still_attack_its_start(
    model: nn.Module, batch: Batch, steps: int
) -> None:
    adversary = quick(model, norm="L1", eps=500.0)
    adversary.attacks_to_run, adversary.apgd.n_iter = ["apgd-ce"], steps
    adversary.run_standard_evaluation(*batch)
    assert adversary.apgd.use_largereps and "apgd-ce" in adversary.verdicts


def test_a_search_in_bf16_says_that_it_is_not_autoattack(model: nn.Module, batch: Batch) -> None:
    adversary = quick(model, search_precision="bf16")
    adversary.run_standard_evaluation(batch[0][:4], batch[1][:4])
    assert "bf16" in [each.code for each in adversary.warnings]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "standrad"}, "unknown AutoAttack version 'standrad'. Did you mean 'standard'"),
        ({"attacks_to_run": ["square"]}, "attacks_to_run goes with version='custom'"),
        ({"is_tf_model": True}, "TensorFlow models need the package autoattack itself"),
        ({"version": "custom", "attacks_to_run": ["apgd"]}, "unknown attack 'apgd'"),
        ({"version": "custom"}, "attacks_to_run names no attack"),
        ({"norm": "L3"}, "unknown norm 'L3'"),
    ],
)
def test_what_cannot_be_run_is_refused(model: nn.Module, batch: Batch, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        AutoAttack(model, **{"verbose": False, "device": "cpu", **settings}).run_standard_evaluation(*batch)
    assert message in str(error.value)


def test_a_setting_that_would_change_nothing_is_refused(model: nn.Module, batch: Batch) -> None:
    adversary = AutoAttack(model, verbose=False, device="cpu")
    with pytest.raises(InputError, match="n_restart cannot be set here"):
        adversary.apgd.n_restart = 2
    adversary.apgd_targeted.n_restarts = 2
    with pytest.raises(InputError, match="is 1 for the targeted APGD"):
        adversary.run_standard_evaluation(*batch)
    with pytest.raises(InputError, match="unknown search precision 'fp16'"):
        quick(model, search_precision="fp16").run_standard_evaluation(*batch)
    for call in (adversary.run_standard_evaluation, adversary.clean_accuracy):
        with pytest.raises(InputError, match="bs=0 must be at least 1"):
            call(*batch, bs=0)
    with pytest.raises(InputError, match="x_orig must be float"):
        adversary.run_standard_evaluation((batch[0] * 255).byte(), batch[1])


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("apgd", "n_target_classes", 3),
        ("apgd_targeted", "n_queries", 10),
        ("fab", "eot_iter", 2),
        ("fab", "n_queries", 1),
        ("fab", "use_largereps", True),
        ("square", "eot_iter", 2),
        ("square", "n_iter", 1),
    ],
)
def test_a_setting_that_an_attack_ignores_is_refused(model: nn.Module, part: str, name: str, value: Any) -> None:
    settings = getattr(AutoAttack(model, verbose=False, device="cpu"), part)
    with pytest.raises(InputError, match=f"{name} cannot be set here; what can be: n_restarts, "):
        setattr(settings, name, value)
    setattr(settings, name, getattr(settings, name))


def test_larger_balls_are_for_l1(model: nn.Module, batch: Batch) -> None:
    adversary = AutoAttack(model, verbose=False, device="cpu")
    adversary.apgd.use_largereps = True
    with pytest.raises(InputError, match="use_largereps is for norm 'L1' only"):
        adversary.run_standard_evaluation(*batch)


def test_benchmark_runs_on_it_when_asked(
    model: nn.Module, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM_BENCH_ENGINE", "fast")
    original = robustbench.eval.AutoAttack
    made: list[Any] = []

    def short(*args: Any, **kwargs: Any) -> Any:
        made.append(original(*args, **kwargs))
        made[-1].attacks_to_run = ["apgd-ce"]
        return made[-1]

    monkeypatch.setattr(robustbench.eval, "AutoAttack", short)
    asked: dict[str, Any] = {"n_examples": 16, "data_dir": str(data_dir), "eps": 0.08, "device": "cpu"}
    with autoattack_seed(0):
        clean, robust = robustbench.benchmark(model, **asked)
        stored = robustbench.benchmark(model, aa_state_path=tmp_path / "state.json", **asked)
    assert all(isinstance(each, AutoAttack) for each in made)
    assert stored == (clean, robust) and 0 < robust < clean
    monkeypatch.setenv("SAM_BENCH_ENGINE", "quick")
    with pytest.raises(InputError, match="SAM_BENCH_ENGINE must be upstream or fast, not 'quick'"):
        robustbench.benchmark(model, **asked)


SCRIPT = '''
"""How scripts call AutoAttack: the only line that changes is the import."""
import sys
import torch
from sam_bench import AutoAttack

folder = sys.argv[1]
model = torch.load(f"{folder}/model.pt", weights_only=False)
x, y = torch.load(f"{folder}/images.pt")
adversary = AutoAttack(model, norm="Linf", eps=0.08, log_path=f"{folder}/log.txt", version="custom", device="cpu")
adversary.attacks_to_run = ["apgd-ce", "fab"]
adversary.apgd.n_restarts = 2
adversary.fab.n_restarts = 2
adversary.fab.n_iter = 5
adversary.seed = 0
with torch.no_grad():
    adv_complete = adversary.run_standard_evaluation(x, y, bs=8, state_path=f"{folder}/state")
torch.save({"adv_complete": adv_complete}, f"{folder}/adv.pt")
'''


@pytest.mark.slow
def test_a_script_with_the_import_changed(model: nn.Module, batch: Batch, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    torch.save((batch[0][:8], batch[1][:8]), tmp_path / "images.pt")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    x_adv = torch.load(tmp_path / "adv.pt")["adv_complete"]
    assert 0 < (model(x_adv).argmax(1) == batch[1][:8]).sum() < 8
    assert json.loads((tmp_path / "state").read_text())["_run_attacks"] == ["apgd-ce", "fab"]


@pytest.mark.slow
def test_several_processes_give_and_print_the_same(
    model: nn.Module, batch: Batch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"version": "custom", "attacks_to_run": ["apgd-ce", "fab"]}
    alone, shared = quick(model, **settings), quick(model, workers=2, verbose=True, **settings)
    assert torch.equal(alone.run_standard_evaluation(*batch), shared.run_standard_evaluation(*batch))
    assert alone.verdicts == shared.verdicts
    assert accuracies_printed(capfd.readouterr().out) == accuracies_of(alone)
