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

from sam_bench.attacks.autoattack.hyperplane import project
from sam_bench.attacks.autoattack.rows import Rows, Search, norms, wide
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
class FABRows(Rows):
    """What a trial remembers.

    Attributes:
        target: int64: class aimed at; the label for the untargeted attack.
        point: Where the decision boundary is linearised next.
        nearest: Distance of the nearest misclassified point so far.
    """

    target: Tensor
    point: Tensor
    nearest: Tensor


class FAB(Search[FABRows]):
    """Steps to the linearised decision boundary, biased towards the clean input.

    Args:
        targeted: Look only at the boundary to the target class; else at the nearest of all.
        iterations: Steps of a trial.
    """

    def __init__(self, *args: Any, targeted: bool, iterations: int = 100, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._targeted, self._iterations = targeted, iterations

    @property
    def ticks(self) -> int:
        """Steps of a trial."""
        return self._iterations

    def begin(self, position: Tensor, trial: Tensor) -> FABRows:
        """At the clean input; restarts of the untargeted attack at half eps in a random direction."""
        common = self.fresh(position, trial)
        clean = common["clean"]
        point = clean.clone()
        again = (trial > 0).nonzero().flatten()
        if len(again) and not self._targeted:
            # Only rows that need noise draw it: upstream's first run draws none.
            index = again.to(clean.device)
            point[index] = self._start({name: each[index] for name, each in common.items()})
        return FABRows(
            **common,
            target=self.target(position, trial) if self._targeted else common["label"],
            point=point,
            nearest=torch.full((len(clean),), _FAR, dtype=clean.dtype, device=clean.device),
        )

    def _start(self, rows: dict[str, Tensor]) -> Tensor:
        clean = rows["clean"]
        where, shape = (rows["position"], rows["trial"], rows["iteration"]), tuple(clean.shape[1:])
        if self.ball.norm == "Linf":
            noise = 2.0 * self.draws.uniform(*where, shape, lane=0) - 1.0
        else:
            noise = self.draws.normal(*where, shape, lane=0)
        return (clean + self.ball.eps * noise / wide(norms(noise, self.ball.norm), noise) * 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def tick(self, rows: FABRows) -> None:
        """Linearise, step, look whether the other side was reached, step back."""
        gap, normal = self._targeted_plane(rows) if self._targeted else self._nearest_plane(rows)
        clean, point = rows.clean, rows.point
        w = normal.flatten(1)
        b = (w * point.flatten(1)).sum(1) - gap.to(w.dtype)
        change = project(
            torch.cat([point.flatten(1), clean.flatten(1)]),
            w.repeat(2, 1),
            b.repeat(2),
            norm=self.ball.norm,
            as_upstream=self.draws.in_step,
        )
        length = norms(change, self.ball.norm).clamp_min(1e-8)
        from_point, from_clean = (each.view_as(point) for each in change.chunk(2))
        near, far = length.chunk(2)
        bias = wide((near / (near + far)).clamp(0.0, _ALPHA_MAX), point)
        point = ((point + _OVERSHOOT * from_point) * (1.0 - bias) + (clean + from_clean * _OVERSHOOT) * bias).clamp(
            0.0, 1.0
        )
        if not self.draws.in_step:  # where the logits themselves are not finite, no plane leads anywhere
            point = torch.where(point.isfinite(), point, clean)
        wrong = self.wrong(self.oracle.logits(point), rows.label)
        distance = norms(point - clean, self.ball.norm)
        nearer = wrong & (distance < rows.nearest)
        rows.nearest = torch.where(nearer, distance, rows.nearest)
        rows.note(nearer & (distance <= self.ball.eps), point)
        rows.point = torch.where(wide(wrong, point), clean + (point - clean) * _BACKWARD, point)
        rows.iteration += 1

    def turned_down(self, rows: FABRows, which: Tensor) -> Tensor:
        """The distance was one of bfloat16 or TF32: an adversarial example of float32 may lie farther away."""
        if not self.draws.in_step:  # upstream keeps it
            rows.nearest[which] = _FAR
        return super().turned_down(rows, which)

    def _targeted_plane(self, rows: FABRows) -> tuple[Tensor, Tensor]:
        """Difference of the target's logit to the label's, and its gradient."""

        def objective(logits: Tensor) -> Tensor:
            own = logits.gather(1, rows.label[:, None])
            wanted = logits.gather(1, rows.target[:, None])
            return -(own - wanted).squeeze(1)

        _, gap, normal = self.oracle.gradient(rows.point, objective)
        return gap, self._usable(normal)

    def _nearest_plane(self, rows: FABRows) -> tuple[Tensor, Tensor]:
        """The same for the class whose linearised boundary is nearest in the dual norm."""
        logits, gradients = self.oracle.class_gradients(rows.point)
        each = torch.arange(len(logits), device=logits.device)
        gaps = logits - logits[each, rows.label, None]
        normals = gradients - gradients[each, rows.label, None]
        gaps[each, rows.label] = _FAR
        normals = self._usable(normals)
        flat = normals.flatten(2)
        dual = _DUALS[self.ball.norm](flat)
        nearest = (gaps.abs() / (1e-12 + dual)).min(dim=1)[1]
        return gaps[each, nearest], normals[each, nearest]

    def _usable(self, normals: Tensor) -> Tensor:
        """Normals, 0 where they are not finite: there a coordinate stays. Upstream takes them as they are."""
        self.note_slopes(normals)
        return normals if self.draws.in_step else normals.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
