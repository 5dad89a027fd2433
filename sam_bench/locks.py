"""A folder that one process works in at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sam_bench.errors import InputError


@contextmanager
def claimed(folder: Path, *, otherwise: str) -> Iterator[None]:
    """Keep other processes out of a folder for the time of a block.

    The lock is the system's and ends with the process, however that ends. The file `in-use` in the folder,
    which is made if it is not there, says who has it.

    Args:
        folder: What is claimed; each that asks for it asks in this way.
        otherwise: What one who is refused can do: `choose another --name`.

    Raises:
        InputError: Another process has it.
    """
    lock = folder / "in-use"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
    except OSError:  # what is to be written there first will say why not
        yield
        return
    with file:
        try:
            # Not `flock`: the processes that load data would inherit that, and might outlive this one.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # else the file system knows no locks
                file.seek(0)
                owner = file.read() or "another process"
                raise InputError(f"{folder} is in use by {owner}; wait for it, or {otherwise}") from error
        with suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
