"""The finder that serves shims for modules RobustBench imports and no package provides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parent / "shims"


class ShimFinder(MetaPathFinder):
    """Finds `autoattack` and `pkg_resources` among our shims.

    It has to stand last in `sys.meta_path`: Python then asks it only for what no installed package
    provides.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The shim for `fullname`, or None, which makes the import fail as it would without us."""
        if fullname == "autoattack":
            folder = _FOLDER / "autoattack"
            return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])
        if fullname == "pkg_resources" and _robustbench_asks_for_pkg_resources():
            return spec_from_file_location(fullname, _FOLDER / "pkg_resources.py")
        return None


def _robustbench_asks_for_pkg_resources() -> bool:
    # Many packages choose their way by whether `import pkg_resources` succeeds; for them it must go
    # on failing. RobustBench asks in `robustbench.loaders`, which has begun and has not got it yet.
    loaders = sys.modules.get("robustbench.loaders")
    return loaders is not None and not hasattr(loaders, "pkg_resources")


def is_shim(spec: ModuleSpec | None) -> bool:
    """Whether a module's spec leads to one of our shims."""
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(_FOLDER)
