"""What `import sam_bench` does for timm and RobustBench: nothing until one of them is imported.

Then the default zoo's cards are read and registered. Nothing heavy is imported here. A problem with a
zoo is a warning: it never keeps timm or RobustBench from being imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_installed = False


def install_hooks() -> None:
    """Register the default zoo as soon as timm or RobustBench is imported, at once if one is already.

    Calling it again does nothing.
    """
    global _installed
    if _installed:
        return
    _installed = True
    from wrapt import register_post_import_hook

    register_post_import_hook(_on_timm, "timm")
    register_post_import_hook(_on_robustbench, "robustbench.model_zoo")


def _on_timm(_: ModuleType) -> None:
    with _only_warning():
        from sam_bench.zoo.register import register_zoo

        register_zoo()


def _on_robustbench(_: ModuleType) -> None:
    with _only_warning():
        from sam_bench.zoo.register import list_with_robustbench

        list_with_robustbench()


@contextmanager
def _only_warning() -> Iterator[None]:
    try:
        yield
    # This runs inside a user's import statement, which must not fail because of a zoo.
    except Exception as error:
        warnings.warn(f"the sam-bench zoo is not registered: {type(error).__name__}: {error}", stacklevel=2)
