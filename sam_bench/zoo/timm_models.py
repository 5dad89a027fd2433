"""The module in which timm finds the zoo's entry points; `sam_bench.zoo.register` fills it.

timm keeps an entry point's module with it: it extends that module's `__all__` and looks there for
`default_cfgs`, so these have a module of their own.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []

default_cfgs: dict[str, Any] = {}
