"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690): its authors' algorithms and verdicts, in a fraction of the time.

One file an attack: `apgd` (in L1 `apgd_l1`), `fab`, `square`; each says what one pass of the model does
to a batch whose rows are examples at different trials and iterations. `pool` keeps that batch full, `rng` makes the
random numbers of an example independent of it, `engine` runs the attacks in order.
"""

from sam_bench.attacks.autoattack.attack import AutoAttack, AutoAttackBF16, AutoAttackScreen
from sam_bench.attacks.autoattack.engine import Engine
from sam_bench.attacks.autoattack.sampled import AutoAttackSampled

__all__ = ["AutoAttack", "AutoAttackBF16", "AutoAttackSampled", "AutoAttackScreen", "Engine"]
