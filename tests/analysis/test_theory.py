"""The simplified model, against root-finding on log densities, Monte Carlo, and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from sam_bench.analysis import ANALYSES, simplified_model
from sam_bench.analysis.simplified_model import Learner, SimplifiedModel, learn, ratio, recalled_rho, recalled_sam_ratio
from sam_bench.analysis.theory import OPEN, Theory
from sam_bench.errors import InputError
from sam_bench.records import ComponentSpec

MODELS = [SimplifiedModel(0.9, 20, 0.3), SimplifiedModel(0.6, 3, 1.5), SimplifiedModel(0.99, 1000, 0.05)]


def most_accurate(model: SimplifiedModel, eps: float) -> float:
    """W_R where the two log densities of the score cross, which is where accuracy is stationary."""
    eta, d = model.eta - eps, model.d
    score = norm(d * eta, math.sqrt(d))

    def slope(w: float) -> float:
        at = math.log(model.p) + score.logpdf(-w)
        return at - math.log(1 - model.p) - score.logpdf(w)

    w: float = brentq(slope, 0, 1e4, xtol=1e-13)
    return w / d


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_closed_forms_are_the_most_accurate_classifiers(model: SimplifiedModel, share: float) -> None:
    eps = share * model.eta
    assert model.adversarial_ratio(eps) == pytest.approx(most_accurate(model, eps), rel=1e-10)
    best = model.accuracy(model.classifier(model.adversarial_ratio(eps)), eps)
    for factor in (0.9, 1.1):
        assert model.accuracy(model.classifier(factor * model.adversarial_ratio(eps)), eps) <= best
    assert model.standard_ratio() == model.adversarial_ratio(0.0)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_accuracy_is_what_sampling_gives(eps: float) -> None:
    model = MODELS[0]
    weights = torch.randn(model.d + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    examples = model.sample(200_000, torch.Generator().manual_seed(1))
    examples[:, 1:] -= eps * weights[1:].sign()
    right = (examples @ weights > 0).double()
    error = float(right.std() / math.sqrt(len(right)))
    assert float(model.accuracy(weights, eps)) == pytest.approx(float(right.mean()), abs=4 * error)


def test_noise_in_the_weights_raises_the_ratio_as_derived() -> None:
    # Given the noise, the score is normal: only the noise is sampled, and the slope of the accuracy is smooth.
    model, spread = SimplifiedModel(0.9, 100, 0.3), 0.5
    noise = 1 + spread * torch.randn(20_000, model.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, deviation = model.eta * noise.sum(1).numpy(), noise.norm(dim=1).numpy()

    def slope(w: float) -> float:
        up, down = (norm.pdf((mean + sign * w) / deviation) / deviation for sign in (1, -1))
        return float((model.p * up - (1 - model.p) * down).mean())

    sampled = brentq(slope, 0.0, 20.0) / model.d
    assert model.noise_ratio(spread) == pytest.approx(sampled, rel=0.05)
    assert model.noise_ratio(spread) > 1.2 * model.standard_ratio()


@pytest.mark.parametrize(
    "model",
    [MODELS[0], SimplifiedModel(0.9, 8, 1.0), SimplifiedModel(0.9, 20, 0.5), SimplifiedModel(0.9, 200, 0.1)],
    ids=["defaults", "large eta", "eta 0.5", "large d"],
)
def test_learning_agrees_with_scikit_learn(model: SimplifiedModel) -> None:
    examples = model.sample(10_000, torch.Generator().manual_seed(0))
    labels = torch.arange(10_000) % 2 * 2 - 1  # the sign of an example and its label is free
    oracle = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-8, max_iter=1000)
    oracle.fit((examples * labels[:, None]).numpy(), labels.numpy())
    found = learn(examples, [Learner()])[:, 0]
    assert torch.allclose(found, torch.from_numpy(oracle.coef_[0]), atol=1e-4)


@pytest.mark.parametrize(("d", "eta"), [(20, 1.0), (200, 0.5)])
def test_trained_against_an_attack_it_agrees_where_standard_training_has_no_end(d: int, eta: float) -> None:
    # Without the attack a classifier gets every example right, and the loss has no lowest point.
    model, eps = SimplifiedModel(0.9, d, eta), eta - 1.5 / math.sqrt(d)
    runs = [model.sample(10_000, torch.Generator().manual_seed(seed)) for seed in range(2)]
    found = torch.stack([ratio(learn(each, [Learner(eps=eps)])) for each in runs])
    assert float(found.mean()) == pytest.approx(model.adversarial_ratio(eps), rel=0.05)
    with pytest.raises(InputError, match=r"^samples=10000 is too few: .*; give more, or a smaller d or eta$"):
        learn(runs[0], [Learner()])


@pytest.mark.parametrize("seed", range(3))
def test_under_an_attack_some_weights_end_at_zero(seed: int) -> None:
    # The loss has a kink there: its slope from either side must point away from zero.
    model, eps = SimplifiedModel(0.9, 100, 0.1), 0.09
    examples = model.sample(2000, torch.Generator().manual_seed(seed))
    weights = learn(examples, [Learner(eps=eps)])[:, 0]
    pull = torch.sigmoid(eps * weights[1:].abs().sum() - examples @ weights) / len(examples)
    slope, kink = -pull @ examples, eps * pull.sum()
    zero = weights == 0
    zero[0] = False
    assert 0 < int(zero.sum()) < 100
    assert float(slope[zero].abs().max()) <= float(kink)
    away = slope + kink * weights.sign()
    away[0] = slope[0]
    assert float(away[~zero].abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("learner", "loss"),
    [
        (Learner(eps=0.1), lambda u, w: u @ w - 0.1 * w[1:].abs().sum()),
        (Learner(rho_each=0.1), lambda u, w: u @ w - 0.1 * u.norm(dim=1)),
    ],
    ids=["adversarial", "SAM of each example"],
)
def test_a_learner_ends_where_its_loss_is_lowest(
    learner: Learner, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    examples = MODELS[0].sample(1000, torch.Generator().manual_seed(0))
    weights = learn(examples, [learner])[:, 0].requires_grad_()
    # The worst case over each feature's interval, and over the weights within rho, is linear in the margin.
    torch.nn.functional.softplus(-loss(examples, weights)).mean().backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-5


def test_the_simulation_agrees_and_sam_on_the_whole_batch_changes_nothing() -> None:
    found = Theory(samples=1000, runs=3, radii=(0.15,), rhos=(0.5,)).combine(seed=0)
    for each in (found["standard"], *found["adversarial"]):
        simulated = each["simulated"]
        assert len(set(simulated["values"])) == 3
        assert simulated["mean"] == pytest.approx(each["closed_form"], abs=4 * simulated["standard_error"])
    (sam,) = found["sam"]
    assert sam["whole_batch_factor"]["mean"] == pytest.approx(1.0, abs=1e-3)
    assert sam["recalled_factor"] == pytest.approx(1 + 2 / 3 * 0.25)
    assert found["open"] == list(OPEN)
    curves = found["robust_accuracy"]["curves"]
    assert curves["standard"][0] > curves["adversarial training, eps 0.15"][0]
    assert curves["standard"][-1] < curves["adversarial training, eps 0.15"][-1]


def test_the_seed_decides_the_simulation_and_sam_that_did_not_come_to_rest_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simplified_model, "STEPS", 5)
    one, same, other = (Theory(samples=1000, runs=2, rhos=(0.5, 0.2)).combine(seed) for seed in (0, 0, 1))
    assert one == same
    assert one["standard"]["simulated"] != other["standard"]["simulated"]
    assert one["open"][-1].startswith("SAM on the whole batch was still moving at its last step for rho 0.2, 0.5:")


def test_the_recalled_rule_is_where_the_recalled_ratio_meets_adversarial_training() -> None:
    model = MODELS[0]
    rho = recalled_rho(0.1, model.eta)
    assert 2 + 3 / rho**2 == pytest.approx(2 * model.eta / 0.1)
    assert recalled_sam_ratio(model.standard_ratio(), rho) == pytest.approx(model.adversarial_ratio(0.1))


def test_the_ratio_is_of_the_robust_weight_to_the_others_together() -> None:
    assert ratio(torch.tensor([[3.0], [1.0], [2.0]])).tolist() == [1.0]


@pytest.mark.parametrize("settings", [{"radii": (0.3,)}, {"radii": ()}, {"rhos": (0.0,)}, {"p": 0.5}])
def test_a_model_without_an_answer_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ANALYSES.build(ComponentSpec(method="theory", **settings))
