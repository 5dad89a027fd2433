"""`python -m sam_bench`, which is what `torchrun -m` needs."""

import os
import sys

from sam_bench.cli.main import main
from sam_bench.distributed import team_size

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if team_size() > 1 and isinstance(end.code, int):
            # Threads of gloo outlive their group. One that wakes up while Python shuts down would abort the process.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise
