"""FAB (Croce and Hein 2020, arXiv 1907.02044), untargeted and targeted, until it is inside the ball.

FAB looks for the nearest misclassified point. Only whether that lies in the ball matters here, and its
best distance never grows: a row stops at the first misclassified point within eps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.fab_projection import project
from sam_bench.attacks.autoattack.model_calls import Objective
from sam_bench.attacks.autoattack.state import AttackState, Search, norms, wide
from sam_bench.records import Norm

_ALPHA_MAX = 0.1
_OVERSHOOT = 1.05  # eta
_BACKWARD = 0.9  # beta
_FAR = 1e10

_DUALS: dict[Norm, Callable[[Tensor], Tensor]] = {
    "Linf": lambda flat: flat.abs().sum(2),
    "L2": lambda flat: (flat**2).sum(2).sqrt(),
    "L1": lambda flat: flat.abs().max(dim=2)[0],
}


@dataclass
class FABState(AttackState):
    """What a trial remembers.

    Attributes:
        target: int64: class aimed at; the label for the untargeted attack.
        point: Where the decision boundary is linearised next.
        nearest: Distance of the nearest misclassified point so far.
    """

    target: Tensor
    point: Tensor
    nearest: Tensor


class FAB(Search[FABState]):
    """Steps to the linearised decision boundary, biased towards the clean input.

    Args:
        targeted: Look only at the boundary to the target class; else at the nearest of all.
        iterations: Steps of a trial.
    """

    def __init__(self, *args: Any, targeted: bool, iterations: int = 100, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._targeted, self._iterations = targeted, iterations

    @property
    def steps(self) -> int:
        """Steps of a trial."""
        return self._iterations

    def init(self, row: Tensor, trial: Tensor) -> FABState:
        """At the clean input; restarts of the untargeted attack at half eps in a random direction."""
        common = self.initial(row, trial)
        clean = common["clean"]
        point = clean.clone()
        again = (trial > 0).nonzero().flatten()
        if len(again) and not self._targeted:
            # Only rows that need noise draw it: upstream's first run draws none.
            index = again.to(clean.device)
            point[index] = self._start({name: each[index] for name, each in common.items()})
        return FABState(
            **common,
            target=self.target(row, trial) if self._targeted else common["label"],
            point=point,
            nearest=torch.full((len(clean),), _FAR, dtype=clean.dtype, device=clean.device),
        )

    def _start(self, state: dict[str, Tensor]) -> Tensor:
        clean = state["clean"]
        where, shape = (state["row"], state["trial"], state["iteration"]), tuple(clean.shape[1:])
        if self.ball.norm == "Linf":
            noise = 2.0 * self.rng.uniform(*where, shape, stream=0) - 1.0
        else:
            noise = self.rng.normal(*where, shape, stream=0)
        return (clean + self.ball.eps * noise / wide(norms(noise, self.ball.norm), noise) * 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def step(self, state: FABState) -> None:
        """Linearise, step, look whether the other side was reached, step back."""
        if self._targeted:
            _, gap, normal = self.model.gradient(state.point, self._gap(state))
            normal = self._usable(normal)
        else:
            gap, normal = self._nearest_plane(state, *self.model.class_gradients(state.point))
        clean, point = state.clean, state.point
        w = normal.flatten(1)
        b = (w * point.flatten(1)).sum(1) - gap.to(w.dtype)
        change = project(
            torch.cat([point.flatten(1), clean.flatten(1)]),
            w.repeat(2, 1),
            b.repeat(2),
            norm=self.ball.norm,
            as_upstream=self.rng.in_step,
        )
        length = norms(change, self.ball.norm).clamp_min(1e-8)
        from_point, from_clean = (each.view_as(point) for each in change.chunk(2))
        near, far = length.chunk(2)
        bias = wide((near / (near + far)).clamp(0.0, _ALPHA_MAX), point)
        point = ((point + _OVERSHOOT * from_point) * (1.0 - bias) + (clean + from_clean * _OVERSHOOT) * bias).clamp(
            0.0, 1.0
        )
        if not self.rng.in_step:  # where the logits themselves are not finite, no plane leads anywhere
            point = torch.where(point.isfinite(), point, clean)
        wrong = self.wrong(self.model.logits(point), state.label)
        distance = norms(point - clean, self.ball.norm)
        nearer = wrong & (distance < state.nearest)
        state.nearest = torch.where(nearer, distance, state.nearest)
        state.note(nearer & (distance <= self.ball.eps), point)
        state.point = torch.where(wide(wrong, point), clean + (point - clean) * _BACKWARD, point)
        state.iteration += 1

    def on_rejected(self, state: FABState, which: Tensor) -> Tensor:
        """The distance was one of bfloat16 or TF32: an adversarial example of float32 may lie farther away."""
        if not self.rng.in_step:  # upstream keeps it
            state.nearest[which] = _FAR
        return super().on_rejected(state, which)

    def _gap(self, state: FABState) -> Objective:
        """Difference of the target's logit to the label's."""

        def objective(logits: Tensor) -> Tensor:
            own = logits.gather(1, state.label[:, None])
            wanted = logits.gather(1, state.target[:, None])
            return -(own - wanted).squeeze(1)

        return objective

    def _nearest_plane(self, state: FABState, logits: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The same and its gradient, for the class whose linearised boundary is nearest in the dual norm."""
        each = torch.arange(len(logits), device=logits.device)
        gaps = logits - logits[each, state.label, None]
        normals = gradients - gradients[each, state.label, None]
        gaps[each, state.label] = _FAR
        normals = self._usable(normals)
        flat = normals.flatten(2)
        dual = _DUALS[self.ball.norm](flat)
        nearest = (gaps.abs() / (1e-12 + dual)).min(dim=1)[1]
        return gaps[each, nearest], normals[each, nearest]

    def _usable(self, normals: Tensor) -> Tensor:
        """Normals, 0 where they are not finite: there a coordinate stays. Upstream takes them as they are."""
        self.count_not_finite(normals)
        return normals if self.rng.in_step else normals.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
