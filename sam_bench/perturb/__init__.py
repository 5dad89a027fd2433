"""The two axes: perturb the input (`inputs`), perturb the weights (`weights`). Both work in your own training loop.

    from sam_bench.perturb import PGD, SAM

    pgd, sam = PGD(eps="8/255", steps=10), SAM(rho=0.1)

    for x, y in loader:                                     # x in [0, 1]: the model normalises
        x_adv = pgd(model, x, y)                            # adversarial training; leave it out for SAM alone
        loss = sam.step_gradients(model, loss_fn, x_adv, y) # for loss_fn(model(x_adv), y).backward()
        optimizer.step()

`step_gradients` replaces `.grad`, so `zero_grad` is not needed, and returns the loss at the unperturbed weights for
your log. BatchNorm's running statistics move once a step. Dropout has the same masks in all passes of a step.

Mixed precision: put both calls inside `with torch.autocast("cuda", dtype=torch.bfloat16):`. Every pass casts the
weights that it sees; a hand-written SAM inside one autocast region takes its second pass at cached weights.

Several GPUs: wrap the model in `DistributedDataParallel` and pass it on. The ascent follows each device's own
gradient, as in the paper, unless `sync_ascent=True`; the gradient for the optimizer is averaged.

Methods that depend on the step (LookSAM, ESAM, sparse SAM, LE-SAM, noise, RWP, Entropy-SGD; `interval`,
`start_epoch`) ask for it. MSAM and WSAM ask for the optimizer: one follows its momentum, one its step:

    at = StepContext.at(step, epochs=epochs, steps_per_epoch=len(loader), seed=0)
    loss = looksam.step_gradients(model, loss_fn, x, y, at=at)
    loss = msam.step_gradients(model, loss_fn, x, y, optimizer=optimizer)
"""

from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import FGSM, INPUT_PERTURBATIONS, NFGSM, PGD, GaussianNoise, InputPerturbation
from sam_bench.perturb.inputs.free import Free
from sam_bench.perturb.inputs.prior import FGSMPGI
from sam_bench.perturb.weights import (
    WEIGHT_PERTURBATIONS,
    Backward,
    BatchLoss,
    StepContext,
    WeightPerturbation,
)
from sam_bench.perturb.weights.aace import AACE
from sam_bench.perturb.weights.asam import ASAM
from sam_bench.perturb.weights.awp import AWP
from sam_bench.perturb.weights.entropy_sgd import EntropySGD
from sam_bench.perturb.weights.esam import ESAM
from sam_bench.perturb.weights.friendly import FriendlySAM
from sam_bench.perturb.weights.fsam import FisherSAM
from sam_bench.perturb.weights.gsam import GSAM
from sam_bench.perturb.weights.lesam import LESAM
from sam_bench.perturb.weights.looksam import LookSAM
from sam_bench.perturb.weights.msam import MSAM
from sam_bench.perturb.weights.noise import Noise
from sam_bench.perturb.weights.rwp import RWP
from sam_bench.perturb.weights.sam import SAM
from sam_bench.perturb.weights.ssam import SSAM
from sam_bench.perturb.weights.ssam_dynamic import DynamicSSAM
from sam_bench.perturb.weights.usam import USAM
from sam_bench.perturb.weights.vasso import VaSSO
from sam_bench.perturb.weights.wsam import WSAM

__all__ = [
    "AACE",
    "ASAM",
    "AWP",
    "ESAM",
    "FGSM",
    "FGSMPGI",
    "GSAM",
    "INPUT_PERTURBATIONS",
    "LESAM",
    "MSAM",
    "NFGSM",
    "PGD",
    "RWP",
    "SAM",
    "SSAM",
    "USAM",
    "WEIGHT_PERTURBATIONS",
    "WSAM",
    "Backward",
    "Ball",
    "BatchLoss",
    "DynamicSSAM",
    "EntropySGD",
    "FisherSAM",
    "Free",
    "FriendlySAM",
    "GaussianNoise",
    "InputPerturbation",
    "LookSAM",
    "Noise",
    "StepContext",
    "VaSSO",
    "WeightPerturbation",
]
