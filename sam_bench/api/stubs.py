"""Write `verbs.pyi`: the keywords of the verbs with types, defaults and help, for editors and type checkers.

python -m sam_bench.api.stubs
"""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sam_bench.api import verbs
from sam_bench.api.specs import EvalSpec, Spec, SweepSpec, TrainSpec
from sam_bench.api.specs.analyze import AnalyzeSpec
from sam_bench.api.specs.sweep import attack_fields
from sam_bench.records import Radius

STUB = Path(__file__).with_name("verbs.pyi")

_GIVEN: dict[Any, str] = {Radius: "str | float", Path: "StrPath", Any: "Any"}
"""What a caller may give, where that is more than what the field holds."""

_HEAD = '''"""Made from the specs by `make stubs`. Do not edit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sam_bench.api.analyzing import AnalysisResult
from sam_bench.api.specs import EvalSpec, SweepSpec, TrainSpec
from sam_bench.api.specs.checks import StrPath
from sam_bench.api.sweeping import SweepResult
from sam_bench.api.training import TrainResult
from sam_bench.progress import Reporter
from sam_bench.records import EvaluationRecord, Recipe
'''


def stub() -> str:
    """The text of `verbs.pyi`."""
    train, evaluate = _keywords(TrainSpec), _keywords(EvalSpec)
    shared = {name: line for name, line in train.items() if TrainSpec.options()[name].sweep is not None}
    attack = {own: _keyword(own, EvalSpec, name) for own, name in attack_fields().items()}
    attack["attack"] = "attack: str | None = None"
    swept = {**shared, **attack, **_keywords(SweepSpec)}
    del train["recipe"], train["dataset"]
    curve = {name: line for name, line in evaluate.items() if name != "eps"}
    model = "model: StrPath | nn.Module"
    analyzed = _keywords(AnalyzeSpec)
    del analyzed["analysis"], analyzed["subjects"]
    return "\n\n".join(
        [
            _HEAD.rstrip(),
            _function(
                verbs.train,
                ['recipe: str | Path | Recipe | TrainSpec = "standard"', 'dataset: StrPath = "cifar10"'],
                train,
                TrainSpec,
            ),
            _function(verbs.evaluate, [model, "spec: EvalSpec | None = None"], evaluate, EvalSpec),
            _function(
                verbs.evaluate_curve,
                [model, "radii: str | float | Sequence[str | float] | EvalSpec | None = None"],
                curve,
                EvalSpec,
            ),
            _function(verbs.sweep, ["grid: Mapping[str, Sequence[Any]] | SweepSpec"], swept, SweepSpec),
            _function(
                verbs.analyze, ["analysis: str", "subjects: StrPath | Sequence[StrPath] = ()"], analyzed, AnalyzeSpec
            )
            + "\n",
        ]
    )


def _keywords(spec: type[Spec]) -> dict[str, str]:
    return {name: _keyword(name, spec, name) for name in spec.options()}


def _keyword(called: str, spec: type[Spec], name: str) -> str:
    """A parameter as the stub declares it."""
    hint, default = get_type_hints(spec)[name], spec.model_fields[name].default
    text = "str | torch.device" if name == "device" else _text(hint)
    told = _quoted(default) if default is None or isinstance(default, (bool, int, float, str)) else "..."
    return f"{called}: {text} = {told}"


def _text(hint: Any) -> str:
    """A type as it is written, the same in every version of Python; where a caller may give more, that."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_text(each) for each in inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(_quoted, inner))}]"
    if origin is tuple:
        return f"{_text(inner[0])} | Sequence[{_text(inner[0])}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_text, inner))}]"
    return "None" if hint is type(None) else _GIVEN.get(hint, hint.__name__)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _function(verb: Callable[..., Any], positional: list[str], keywords: dict[str, str], spec: type[Spec]) -> str:
    """A verb's signature, and what its keywords mean."""
    returned = inspect.signature(verb).return_annotation
    rest = ["reporter: Reporter | None = None", 'command: str = ""']
    parameters = ",\n".join(f"    {line}" for line in [*positional, "*", *keywords.values(), *rest])
    summary = (inspect.getdoc(verb) or "").split("\n\n")[0]
    described = {name: each for name, each in spec.options().items() if name in keywords}
    told = [
        textwrap.fill(
            f"{name}: {each.help}" + (f" Default: {each.default}." if each.default else ""),
            width=112,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
        )
        for name, each in described.items()
    ]
    documented = "\n".join([f'    """{summary}', "", "    Args:", *told, '    """'])
    return f"def {verb.__name__}(\n{parameters},\n) -> {returned}:\n{documented}"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
