"""What other packages need from us to work: RobustBench, and AutoAttack under either of its names.

`install` runs when sam_bench is imported. It changes nothing by itself; it waits for the packages
to be imported. A module that is there always wins over a shim of ours; `AutoAttack`, `EvaluationState`
and `benchmark` of `robustbench.eval` are wrapped wherever it is imported.
"""

from __future__ import annotations

import sys

import wrapt

from sam_bench.integrations.finder import ShimFinder
from sam_bench.integrations.robustbench import patch_eval, patch_loaders
from sam_bench.integrations.shadowing import warn_if_shadowed

__all__ = ["install"]


def install() -> None:
    """Let RobustBench be imported and used on a machine where it is broken.

    Puts a finder at the very end of Python's search for modules, so that its shims are reached
    only where nothing else provides the module, and registers the patches of RobustBench
    once that is imported (at once, if it is already). Does nothing when called again; imports
    neither torch nor RobustBench.
    """
    if any(isinstance(finder, ShimFinder) for finder in sys.meta_path):
        return
    sys.meta_path.append(ShimFinder())
    wrapt.register_post_import_hook(warn_if_shadowed, "robustbench")
    wrapt.register_post_import_hook(patch_loaders, "robustbench.loaders")
    wrapt.register_post_import_hook(patch_eval, "robustbench.eval")
