"""A plan of two rows on the digits that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sam_bench.studies.jobs import Study
from sam_bench.studies.opening import open_study
from sam_bench.studies.plan import load_plan


def content() -> dict[str, Any]:
    """The plan as YAML has it; each call gives a new one."""
    return {
        "version": 1,
        "title": "Two rows",
        "source": "these tests",
        "rows": {
            "standard": {"recipe": "standard", "family": "standard", "strength": 0, "seeds": "main"},
            "sam-02": {
                "recipe": "sam",
                "settings": {"rho": 0.2},
                "family": "sam",
                "strength": 0.2,
                "epochs": 2,
                "seeds": "main",
            },
        },
        "evaluations": {
            "pgd-linf": {"attack": "pgd", "settings": {"steps": 2}, "norm": "Linf", "eps": ["1/255", "16/255"]},
        },
        "scales": {
            "mini": {
                "dataset": "digits",
                "width": 4,
                "epochs": 2,
                "limit_train": 256,
                "seeds": {"main": 2, "other": 1},
                "first": {"pgd-linf": 40},
            }
        },
        "statistics": {"draws": 200, "level": 0.95, "seed": 0},
        "claims": {
            "C1": {
                "text": "SAM is more robust.",
                "parts": [
                    {
                        "rule": "more",
                        "a": "sam-02",
                        "b": "standard",
                        "of": "pgd-linf",
                        "eps": ["1/255"],
                        "where": "all",
                        "least": 0,
                    }
                ],
            },
            "C4": {
                "text": "Twice the epochs of SAM take four times the passes.",
                "parts": [{"rule": "passes", "a": "sam-02", "b": "standard", "ratio": 4}],
            },
        },
    }


def written(folder: Path, plan: dict[str, Any]) -> Path:
    """The plan as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.yaml"
    path.write_text("# Rules.\n" + yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return path


def opened(
    folder: Path, plan: dict[str, Any] | None = None, *, dataset: str | None = None, read_only: bool = False
) -> Study:
    """The study in `folder`; the plan lies beside it."""
    path = written(folder.parent / f"{folder.name}-plan", plan or content())
    return open_study(load_plan(path), "mini", folder=folder, dataset=dataset, device="cpu", read_only=read_only)
