"""The verbs as Python callers use them: keywords or a spec. Their types and keywords are in `verbs.pyi`, made from the
specs by `make stubs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sam_bench.api.evaluation import prepared_evaluation
from sam_bench.api.specs import EvalSpec, SweepSpec, TrainSpec
from sam_bench.api.sweeping import SweepResult, run_sweep
from sam_bench.api.training import TrainResult, run_training
from sam_bench.errors import InputError
from sam_bench.progress import Reporter
from sam_bench.records import EvaluationRecord

if TYPE_CHECKING:
    from sam_bench.api.analyzing import AnalysisResult


def train(*given: Any, reporter: Reporter | None = None, command: str = "", **fields: Any) -> TrainResult:
    """Train a model and register it in the zoo.

    Started by `torchrun`, the processes share the run: each takes its part of every batch of the recipe's size, the
    first writes and speaks, and all return the same.

    Args:
        given: A `TrainSpec`; or the recipe and the data set.
        reporter: Where progress goes; default nowhere.
        command: The command line, for the card.
        fields: The fields of `TrainSpec`; with a spec, those that differ.

    Raises:
        InputError: Something given is wrong, or the zoo could not take the result; the message names it.
        SamBenchError: Training diverged, or a file could not be written.
    """
    return run_training(TrainSpec.of(*given, **fields), reporter=reporter, command=command)


def evaluate(
    model: str | Path | nn.Module, *given: Any, reporter: Reporter | None = None, command: str = "", **fields: Any
) -> EvaluationRecord:
    """Attack a model and write a record with a verdict for every example.

    Every verdict is on disk as soon as it is known, in a folder beside the record (`….progress`) that goes when the
    record is written. Started by `torchrun`, the processes share the examples.

    Args:
        model: A zoo name, a path, `robustbench:NAME` or `timm:NAME`; or a module that takes float32 [B, C, H, W] in
            [0, 1] and returns logits. A module is moved to the device, goes by its class and a SHA-256 of what it
            computes, and needs a `dataset`.
        given: An `EvalSpec`, if any.
        reporter: Where progress goes; default nowhere.
        command: The command line, for the record.
        fields: The fields of `EvalSpec`; with a spec, those that differ.

    Raises:
        InputError: Something given is wrong; the message names it.
        SamBenchError: The model returns NaN, a checksum differs, or a file could not be written.
    """
    eps = fields.get("eps")
    if isinstance(eps, Iterable) and not isinstance(eps, str):
        raise InputError(f"evaluate takes one `eps`, not {eps!r}; evaluate_curve(model, radii) takes several")
    spec = EvalSpec.of(*given, **fields)
    if len(spec.radii) > 1:
        raise InputError(f"evaluate takes one `eps`, not {eps!r}; evaluate_curve(model, radii) takes several")
    with prepared_evaluation(model, spec, reporter=reporter, command=command) as attack:
        (record,) = attack()
    return record


def evaluate_curve(
    model: str | Path | nn.Module,
    radii: Any = None,
    *,
    reporter: Reporter | None = None,
    command: str = "",
    **fields: Any,
) -> list[EvaluationRecord]:
    """Robust accuracy at several radii, from the smallest up: what is broken in a small ball is in a larger one.

    An example broken at one radius is not attacked again at a larger one; its verdict is carried over, and each
    record says how many were. The curve falls by construction. A stand-alone evaluation at a larger radius can leave
    a few examples more.

    Args:
        model: As for `evaluate`.
        radii: Any number, in any order; default as for `evaluate`. Or an `EvalSpec`.
        reporter: Where progress goes; default nowhere.
        command: The command line, for the records.
        fields: The fields of `EvalSpec`; `output` goes with one radius only.

    Returns:
        A record for each radius, the smallest first.
    """
    spec = EvalSpec.of(radii, **fields) if isinstance(radii, EvalSpec) else EvalSpec(**{"eps": radii, **fields})
    with prepared_evaluation(model, spec, reporter=reporter, command=command) as attack:
        return attack()


def sweep(*given: Any, reporter: Reporter | None = None, command: str = "", **fields: Any) -> SweepResult:
    """Train a model for every combination of values, and attack each if asked to.

    A run that is interrupted is continued when the same sweep is asked for again, one that is finished is not done
    again, and one that fails does not stop the others. Several machines share the folders of runs, zoo and
    evaluations.

    Args:
        given: Name to values: a field of `TrainSpec`, a setting (`rho`, `epochs`) or part (`weights`) of the recipe,
            or `width`. Or a `SweepSpec`.
        reporter: Where progress goes; default nowhere.
        command: The command line, for cards and records.
        fields: The fields of `SweepSpec`, those of `TrainSpec` that all runs share, and the attack: `attack`,
            `attack_norm`, `attack_eps`, `attack_settings` and `n_examples`.

    Raises:
        InputError: Something given is wrong, no run or more than 1,000 are asked for, or two would have one name;
            before anything is trained.
    """
    return run_sweep(SweepSpec.of(*given, **fields), reporter=reporter, command=command)


def analyze(
    analysis: str,
    subjects: str | Path | Sequence[str | Path] = (),
    *,
    reporter: Reporter | None = None,
    command: str = "",
    **fields: Any,
) -> AnalysisResult:
    """Ask something of models or records; write the numbers as JSON, and a figure.

    What was measured on a model is kept in the folder. Asked again with the same settings, it is read from there.

    Args:
        analysis: The analysis's name; see `sam-bench analyze --help`.
        subjects: Models, as `evaluate` takes them; default all of the zoo. Or files of records, where the analysis asks
            for them.
        reporter: Where progress goes; default nowhere.
        command: The command line, for the file of numbers.
        fields: The other fields of `AnalyzeSpec`.

    Raises:
        InputError: Something given is wrong; the message names it.
        SamBenchError: A file could not be written.
    """
    from sam_bench.api.analyzing import run_analysis  # the other verbs do without the analyses
    from sam_bench.api.specs.analyze import AnalyzeSpec

    several = (subjects,) if isinstance(subjects, (str, Path)) else subjects
    spec = AnalyzeSpec(analysis=analysis, subjects=tuple(map(str, several)), **fields)
    return run_analysis(spec, reporter=reporter, command=command)
