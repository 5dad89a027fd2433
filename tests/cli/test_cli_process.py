"""The installed program as a process of its own: what it loads, how it exits, what it does with a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = "{'torch', 'timm', 'robustbench', 'pyautoattack', 'matplotlib', 'sklearn', 'numpy'}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tran"]])
def test_help_answers_without_loading_pytorch(arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['sam-bench', *{arguments!r}]\n"
        "from sam_bench.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print(sorted({_HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stderr.splitlines()[-1] == "[]"
    assert ran.returncode == (2 if arguments == ["tran"] else 0)


@pytest.mark.parametrize(
    "program", [[sys.executable, "-m", "sam_bench"], [str(Path(sys.executable).with_name("sam-bench"))]]
)
def test_the_program_exits_with_2_and_one_sentence_for_bad_usage(program: list[str]) -> None:
    ran = subprocess.run([*program, "tran"], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("sam-bench: unknown command 'tran'. Did you mean 'train'?")
    assert len(ran.stderr.splitlines()) == 1


def test_a_reader_that_stops_reading_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "sam_bench", "--help"]
        ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_what_fails_in_one_process_of_a_team_only_is_said_with_its_number() -> None:
    command = [sys.executable, "-m", "sam_bench", "zoo", "show", "nowhere"]
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("sam-bench: process 1: unknown model in the zoo ")
