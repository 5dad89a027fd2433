"""A folder that one process works in at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sam_bench.errors import InputError

_TRIES = 100


@contextmanager
def claimed(folder: Path, *, otherwise: str | None = None) -> Iterator[None]:
    """Keep other processes out of a folder for the time of a block.

    The lock is the system's and ends with the process, however that ends. The file `in-use` in the folder,
    which is made if it is not there, says who has it.

    Args:
        folder: What is claimed; each that asks for it asks in this way.
        otherwise: What one who is refused can do: `choose another --name`; None: wait until it is free.

    Raises:
        InputError: Another process has it.
    """
    lock = folder / "in-use"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, otherwise)
    except OSError:  # what is to be written there first will say why not
        yield
        return
    with file:
        with suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path, otherwise: str | None) -> TextIO:
    """The file, open and locked, as far as its file system knows locks."""
    for _ in range(_TRIES):
        file = lock.open("a+", encoding="utf-8")
        try:
            # Not `flock`: the processes that load data would inherit that, and might outlive this one.
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if otherwise is None else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return file
            with file:
                file.seek(0)
                owner = file.read() or "another process"
            raise InputError(f"{lock.parent} is in use by {owner}; wait for it, or {otherwise}") from error
        with suppress(OSError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                break
        file.close()  # whoever had it has taken it away between our opening it and locking it
    return file
