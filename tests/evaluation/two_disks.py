"""An evaluation by `torchrun` on machines that share no disk: every process works in a folder of its own.

torchrun --nproc-per-node=2 two_disks.py FOLDER EPS [--resume] [--fail]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from evaluation_samples import CPU, Nearest, digits, problem_of
from torch import Tensor

from sam_bench.distributed import joined
from sam_bench.errors import SamBenchError
from sam_bench.evaluation import Torchrun, evaluate_curve_of
from sam_bench.records import Radius


class Failing(Nearest):
    """Fails in the second process."""

    def forward(self, x: Tensor) -> Tensor:
        if os.environ["RANK"] == "1":
            raise SamBenchError("it failed on rank 1")
        return super().forward(x)


def main() -> None:
    """Evaluate; rank 0 prints the verdicts, which all have."""
    folder, eps, resume = Path(sys.argv[1]) / os.environ["RANK"], Radius(sys.argv[2]), "--resume" in sys.argv
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    module = Failing() if "--fail" in sys.argv else Nearest()
    with joined() as team:
        problem = problem_of(module, digits(40), eps=eps, save_adversarial=True)
        try:
            (record,) = evaluate_curve_of(problem, [eps], [Path("r.json")], executor=Torchrun(team, CPU), resume=resume)
        except SamBenchError as error:
            sys.exit(f"{type(error).__name__}: {error}")
        if team.is_main:
            print(json.dumps(record.verdicts))


if __name__ == "__main__":
    main()
