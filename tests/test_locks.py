"""A claimed folder: free as soon as its process is gone, also where a process that it started lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sam_bench.errors import InputError
from sam_bench.locks import claimed

# The child is what a data loader's process is: forked, and for some seconds alive when its parent was killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from sam_bench.locks import claimed

with claimed(Path(sys.argv[1]), otherwise="choose another"):
    child = os.fork()
    if not child:
        time.sleep(600)
    print(child, flush=True)
    time.sleep(600)
"""


def test_a_process_that_loads_data_does_not_inherit_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(
            InputError, match=f"is in use by process {holder.pid} on .*; wait for it, or choose another"
        ):
            claimed(tmp_path, otherwise="choose another").__enter__()
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        with claimed(tmp_path, otherwise="choose another"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
