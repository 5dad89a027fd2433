"""What AutoAttack on a sample says beside AutoAttack on all examples: estimate, bound, truth, and the time of both.

    python benchmarks/sampled.py digits-standard digits-sam --zoo quickstart/model_zoo --dataset digits \\
        --image-size 8 --n 500 --eps 16/255 --json out.json

A MODEL is what `sam-bench evaluate` takes. `--levels 16` adds the first of them with its inputs rounded to multiples
of 1/16: its gradients are zero, so that APGD leaves what Square breaks. Both attacks run one after the other in this
process; compare CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from square_seeds import Quantised
from torch import nn

import sam_bench
from sam_bench.device import device_name
from sam_bench.records import EvaluationRecord
from sam_bench.versions import package_versions


def measured(model: str | nn.Module, attack: str, settings: dict[str, Any], **given: Any) -> tuple[Any, float]:
    """The record of an attack and its CPU seconds, of all threads."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        record = sam_bench.evaluate(model, attack=attack, settings=settings, output=Path(folder) / "r.json", **given)
    return record, time.process_time() - began


def compared(name: str, model: str | nn.Module, sample: float, **given: Any) -> dict[str, Any]:
    """A row: the sampled attack beside the whole one."""
    short, quick = measured(model, "autoattack-sampled", {"sample": sample}, **given)
    whole, slow = measured(model, "autoattack", {}, **given)
    assert isinstance(whole, EvaluationRecord) and short.sampled is not None
    left = short.sampled
    return {
        "model": name,
        "dataset": whole.dataset,
        "eps": str(whole.eps),
        "n": whole.n_examples,
        "left by APGD": left.of,
        "sample": len(left.examples),
        "broken of the sample": left.broken,
        "at least": left.at_least,
        "estimate": left.estimate,
        "at most": short.robust_accuracy,
        "truth": whole.robust_accuracy,
        "cpu seconds": quick,
        "cpu seconds of the whole": slow,
    }


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--zoo")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--n", type=int)
    parser.add_argument("--eps", default="8/255", help="radius in Linf")
    parser.add_argument("--sample", type=float, default=0.25)
    parser.add_argument("--levels", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {
        "dataset": options.dataset,
        "image_size": options.image_size,
        "n_examples": options.n,
        "eps": options.eps,
        "device": "cpu",
    }
    rows = []
    for name in options.models:
        rows.append(compared(name, name, options.sample, zoo=options.zoo, **given))
        print(json.dumps(rows[-1]), flush=True)
    if options.levels:
        first = options.models[0]
        rounded = Quantised(sam_bench.load_model(first, zoo=options.zoo), options.levels).eval()
        rows.append(compared(f"{first}, inputs rounded", rounded, options.sample, **given))
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        conditions = {"device": device_name(torch.device("cpu")), "threads": 1, "packages": package_versions()}
        options.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
