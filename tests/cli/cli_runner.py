"""Running `sam-bench` as a user does, and what must hold whenever it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sam_bench.cli.main import main

SMALL: dict[str, Any] = {"crop_padding": 0, "flip": False}

DIGITS = [
    *("train", "--dataset", "digits", "--image-size", "8", "--arch", "preactresnet10", "--width", "2"),
    *("--limit-train", "32", "--epochs", "1", "--validation", "0", "--crop-padding", "0", "--no-flip"),
    *("--precision", "fp32"),
]
"""A training run of a fraction of a second; later options win over these."""


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; fails when there is anything else."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


class CommandLine:
    """`sam-bench` in one folder, in this process: the real entry point with its own argv.

    Args:
        folder: The working directory.
        monkeypatch: Sets argv.
        capfd: Reads both streams at the level of file descriptors, so that no library prints unseen.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd

    def __call__(self, *arguments: str | Path) -> Outcome:
        """Run a command to its end, whatever that is."""
        self._monkeypatch.setattr(sys, "argv", ["sam-bench", *map(str, arguments)])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = self._capfd.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return Outcome(code, out, err)

    def done(self, *arguments: str | Path) -> Outcome:
        """Run a command that must succeed."""
        outcome = self(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome

    def refused(self, *arguments: str | Path, code: int = 2, leaves: tuple[str, ...] = ()) -> str:
        """Run a command that must be refused, and leave no trace of itself.

        Args:
            arguments: The command.
            code: The exit code it must have.
            leaves: Files under the folder that it may write or change.

        Returns:
            The message: the last line on stderr.
        """
        before = self.files()
        outcome = self(*arguments)
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        after = self.files()
        assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= set(leaves)
        message = outcome.err.strip().splitlines()[-1]
        assert message.startswith(("sam-bench: ", "Error: "))
        return message

    def files(self) -> dict[str, bytes]:
        """Every file under the folder with its content."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}
