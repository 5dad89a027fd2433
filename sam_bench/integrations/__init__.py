"""What other packages need from us to work: RobustBench, and AutoAttack under either of its names.

`install` runs when sam_bench is imported. It changes nothing by itself; it waits for the packages
to be imported. A module that is there always wins over a stand-in of ours; `AutoAttack`, `EvaluationState`
and `benchmark` of `robustbench.eval` are wrapped wherever it is imported.
"""

from __future__ import annotations

import sys

import wrapt

from sam_bench.integrations.finder import StandinFinder
from sam_bench.integrations.overwritten import warn_if_overwritten
from sam_bench.integrations.robustbench import mend_eval, mend_loaders

__all__ = ["install"]


def install() -> None:
    """Let RobustBench be imported and used on a machine where it is broken.

    Puts a finder at the very end of Python's search for modules, so that its stand-ins are reached
    only where nothing else provides the module, and registers what is to be mended in RobustBench
    once that is imported (at once, if it is already). Does nothing when called again; imports
    neither torch nor RobustBench.
    """
    if any(isinstance(finder, StandinFinder) for finder in sys.meta_path):
        return
    sys.meta_path.append(StandinFinder())
    wrapt.register_post_import_hook(warn_if_overwritten, "robustbench")
    wrapt.register_post_import_hook(mend_loaders, "robustbench.loaders")
    wrapt.register_post_import_hook(mend_eval, "robustbench.eval")
