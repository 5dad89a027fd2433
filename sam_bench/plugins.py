"""What other packages register through entry points: loaded when a name is wanted, and never in the way of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any


@dataclass
class PlugIns:
    """The plug-ins of one entry-point group.

    A package that cannot be imported, or registers something else than it says, costs a warning and its own names;
    everything else goes on working.

    Attributes:
        group: The entry-point group.
        used: Names of those that can be used.
        broken: What is wrong with those that cannot be used, by the name they would have.
    """

    group: str
    used: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def load(self, taken: Callable[[str], Any], check: Callable[[Any], str | None]) -> Iterator[tuple[str, Any]]:
        """Name and object of each that can be used; warns of the others.

        Args:
            taken: What a name stands for already; None where it is free.
            check: What is wrong with an object; None where nothing is.
        """
        for point in metadata.entry_points(group=self.group):
            try:
                found = point.load()
            except Exception as error:  # whatever is wrong with somebody's package
                problem: str | None = f"{type(error).__name__}: {error}"
            else:
                problem = check(found)
                other = taken(point.name)
                if problem is None and other is not None:
                    if other is found:  # it has registered itself, too
                        self.used.append(point.name)
                        continue
                    problem = "the name is taken"
            if problem is None:
                self.used.append(point.name)
                yield point.name, found
                continue
            whose = f" of the package {point.dist.name}" if point.dist else ""
            text = f"{point.name!r}{whose} ({self.group}: {point.value}) cannot be used: {problem}"
            if taken(point.name) is None:
                self.broken[point.name] = text
            else:
                self.broken[f"{point.name} ({point.value})"] = text
            warnings.warn(f"the plug-in {text}", stacklevel=4)


@cache
def version_of(module: str) -> str:
    """The package that a module belongs to, with its version: 'my-attacks 1.2'; a script's own name."""
    return " ".join(next(iter(packages_of(module).items()), (module.partition(".")[0],)))


def installed(package: str) -> bool:
    """Whether a package, or Python, is there under this name."""
    return package == "python" or any(True for _ in metadata.distributions(name=package))


def packages_of(*modules: str) -> dict[str, str]:
    """Other packages that modules belong to, with their versions."""
    tops = sorted({module.partition(".")[0] for module in modules} - {"sam_bench", ""})
    owners = metadata.packages_distributions() if tops else {}
    return {name: metadata.version(name) for top in tops for name in owners.get(top, [])[:1]}
