"""Two processes of a team, as `torchrun` starts them, but without a start of Python and PyTorch for each.

A server is started once; it imports the packages that take seconds and forks what a test asks for.
sam_bench itself is imported by every process anew, in the folder and environment that it is given.
`torchrun` itself is run by the tests of the commands.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed

_SIZE = 2
_PATIENCE = 300.0  # seconds
_SLOW_TO_IMPORT = ["torch", "torch.distributed", "torchvision", "timm", "sklearn.datasets", "scipy", "rich.console"]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(_SLOW_TO_IMPORT)


@dataclass(frozen=True)
class Done:
    """What the processes printed, rank 0's first; the return code is 0 if all of them ended well."""

    returncode: int
    stdout: str
    stderr: str


def _work(script: str, arguments: Sequence[str], cwd: str, environment: dict[str, str], outputs: Sequence[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, path in zip((sys.stdout, sys.stderr), outputs, strict=True):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, stream.fileno())
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # the platform's; here it would be this server
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def run_as_team(script: Path, *arguments: str, cwd: Path) -> Done:
    """Run a script in two processes that share a process group.

    Args:
        script: What `torchrun` would be given.
        arguments: Of the script.
        cwd: The folder it runs in; what the processes print is kept in a folder `printed` there.
    """
    printed = cwd / "printed"
    printed.mkdir(exist_ok=True)
    # As under torchrun, the meeting place belongs to the process that starts the others.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": str(_SIZE), "LOCAL_WORLD_SIZE": str(_SIZE), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = []
    for rank in range(_SIZE):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        outputs = [str(printed / f"{rank}.out"), str(printed / f"{rank}.err")]
        process = _server.Process(target=_work, args=(str(script), arguments, str(cwd), environment, outputs))
        process.start()
        processes.append(process)
    try:
        _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    stdout, stderr = (
        "".join((printed / f"{rank}.{suffix}").read_text() for rank in range(_SIZE)) for suffix in ("out", "err")
    )
    return Done(max(abs(process.exitcode or 0) for process in processes), stdout, stderr)


def _wait(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Until all have ended, or one has failed and the other had time to say what it has to say."""
    end = time.monotonic() + _PATIENCE
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            end = min(end, time.monotonic() + 10)
        if time.monotonic() > end:
            return
        time.sleep(0.02)
