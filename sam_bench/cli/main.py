"""The entry point: commands that are loaded when asked for, and errors in one sentence."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import click

from sam_bench._version import __version__
from sam_bench.cli.groups import CommandFailedError, Group
from sam_bench.cli.speaking import speaks
from sam_bench.cli.spelling import spelling_of
from sam_bench.errors import SamBenchError, StoppedError

_COMMANDS = {
    "quickstart": "sam_bench.cli.quickstart",
    "train": "sam_bench.cli.train",
    "evaluate": "sam_bench.cli.evaluate",
    "sweep": "sam_bench.cli.sweep",
    "reproduce": "sam_bench.cli.reproduce",
    "recommend": "sam_bench.cli.recommend",
    "analyze": "sam_bench.cli.analyze",
    "recipes": "sam_bench.cli.recipes",
    "zoo": "sam_bench.cli.zoo",
    "leaderboard": "sam_bench.cli.leaderboard",
    "doctor": "sam_bench.cli.doctor",
}

_SUMMARIES = {
    "quickstart": "Train standard, SAM and AT on real images, evaluate, build the leaderboard: two minutes.",
    "train": "Train a model by a recipe and register it in the zoo.",
    "evaluate": "Attack a model and write a record with a verdict for every example.",
    "sweep": "Train a model for every combination of settings, here or on a Ray cluster, and attack each.",
    "reproduce": "Train, attack and compare what a study's plan says; a report with a verdict for each claim.",
    "recommend": "Say which method and setting to start with, for a radius, a clean accuracy and a budget.",
    "analyze": "Ask something of models or records: numbers as JSON, and a figure.",
    "recipes": "The training methods that come with sam-bench.",
    "zoo": "The models: listed, checked, brought in and given away.",
    "leaderboard": "Tables and a page of what the records say.",
    "doctor": "What is installed, what device, what is wrong and how to fix it.",
}


_PATIENCE = 2.0  # seconds in which torchrun notices that a process has failed


class _ReaderGoneError(Exception):
    """A broken pipe, under a name that click does not turn into exit code 1."""


@contextmanager
def _reader_gone() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGoneError from error


class LazyGroup(Group):
    """Imports a command's module only when it runs: `--help` answers without loading PyTorch."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click does; it is here that `--help` is printed."""
        with _reader_gone():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does."""
        with _reader_gone():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded now; click suggests the nearest when there is none."""
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries, without loading anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sam-bench")
def cli() -> None:
    """How much adversarial robustness does a training method buy, at what clean accuracy and cost?

    A method is a point on two axes: perturb the inputs (adversarial training) or the weights (SAM).
    `train` turns a recipe into a checkpoint with a card, `evaluate` turns a checkpoint into a record,
    `leaderboard` shows the records.
    """


def main() -> NoReturn:
    """Run the command line; exit with 0 when done, 1 when it failed, 2 for bad usage or input."""
    try:
        with _told_to_stop(), warnings.catch_warnings():
            # What other packages tell their developers is of no use here; the rest is said in one line.
            for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
                warnings.simplefilter("ignore", category)
            warnings.showwarning = _show_warning
            result = cli.main(prog_name="sam-bench", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except CommandFailedError as failed:
        _fail(failed.error.render(spelling_of(failed.command)), failed.error.exit_code)
    except (SamBenchError, StoppedError) as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 128 + signal.SIGINT)
    except (_ReaderGoneError, BrokenPipeError):
        # Whoever read our output has stopped reading (`| head`): that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", SamBenchError.exit_code)


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM stops the block as Ctrl-C does: what was begun is put in order, and the message says what is kept."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
        raise StoppedError(f"stopped by {signal.Signals(number).name}", number)

    # torchrun ends its processes by it, and those that wait for another one would not end at once.
    if "RANK" in os.environ or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    with suppress(OSError):
        click.echo(f"warning: {message}", err=True)


def _fail(message: str, code: int) -> NoReturn:
    if not speaks():
        if code not in (1, 2):
            sys.exit(code)
        # What went wrong in all of them, rank 0 says; torchrun then ends this process before it says it again.
        time.sleep(_PATIENCE)
        message = f"process {os.environ['RANK']}: {message}"
    with suppress(OSError):
        click.echo(f"sam-bench: {message}", err=True)
    sys.exit(code)
