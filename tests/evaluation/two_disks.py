"""An evaluation by `torchrun` on machines that share no disk: every process works in a folder of its own.

torchrun --nproc-per-node=2 two_disks.py FOLDER EPS [--resume]
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from evaluation_samples import CPU, Nearest, digits, evaluation_of

from sam_bench.distributed import joined
from sam_bench.errors import InputError
from sam_bench.evaluation import Recording, run_evaluation
from sam_bench.progress import SilentReporter
from sam_bench.records import Radius


def main() -> None:
    """Evaluate; rank 0 prints the verdicts."""
    folder, eps, resume = Path(sys.argv[1]) / os.environ["RANK"], Radius(sys.argv[2]), "--resume" in sys.argv
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    with joined() as team:
        recording = Recording(
            run=partial(
                run_evaluation, resume=resume, workers=1, device=CPU, reporter=SilentReporter(), team=team,
                keep_witnesses=True,
            ),
            team=team,
            reporter=SilentReporter(),
            second=None,
            resume=resume,
            keep_witnesses=True,
            place="",
            ran_on=lambda: "a CPU",
            spelled="nearest",
            command="",
        )  # fmt: skip
        try:
            record = recording.record(evaluation_of(Nearest(), digits(40), eps=eps), Path("r.json"), None)
        except InputError as error:
            sys.exit(f"InputError: {error}")
        if team.is_main:
            print(json.dumps(record.verdicts))


if __name__ == "__main__":
    main()
