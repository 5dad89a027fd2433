"""Mutation testing: change one place of the code, run the tests that run it, see whether one of them fails.

    make mutants                                        # 40 mutants, seed 0
    make mutants MUTANTS='--count 200 --seed 1'
    make mutants MUTANTS='--count 200 --seed 1 --again' # the survivors once more, after tests were added
    make mutants MUTANTS='--count 200 --seed 1 --report'

First, every test file is run once without a mutation, to see which lines each test runs and how long it takes.
`build/mutants-tests.json` keeps that until code or test change. Every outcome is a line of `build/mutants.jsonl`. A run
that was stopped goes on where it was: start it again. If a file has changed since, its mutants are new ones. The work
is done in a copy of the tree, at the lowest priority.
"""

from __future__ import annotations

import argparse
import compileall
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from mutants_made import ROOT, Mutant, sample
from mutants_tests import Traced, chosen_for, room_tests, run_tests, warm

RESULTS = ROOT / "build" / "mutants.jsonl"


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of the tree, with its environment."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        (copy / ".venv").symlink_to((ROOT / ".venv").resolve())
        # Compiled once; what is changed is seen by its hash and compiled anew.
        compileall.compile_dir(copy / "sam_bench", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        yield copy


def known() -> dict[str, dict[str, Any]]:
    """What is in the file of results, by key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def _write(result: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:  # one write: what is stopped leaves whole lines
        file.write(json.dumps(result) + "\n")


def judge(copy: Path, mutant: Mutant, traced: Mapping[str, Traced], most: float) -> dict[str, Any]:
    """Run the tests of a mutant, for at most so many seconds; the copy of the tree is as before afterwards."""
    target, began = copy / mutant.file, time.monotonic()
    source = target.read_text()
    lots = chosen_for(mutant, source, traced)
    target.write_text(mutant.applied(source))
    try:
        outcome, test = "passed", "" if lots else "no test runs this line"
        for tests in _within(lots, most):
            outcome, test = run_tests(copy, tests)
            if outcome != "passed":
                break
    finally:
        target.write_text(source)
    return {
        "key": mutant.key,
        "room": mutant.room,
        "where": f"{mutant.file}:{source.count(chr(10), 0, mutant.start) + 1}",
        "diff": mutant.diff(source),
        "outcome": "survived" if outcome == "passed" else "timeout" if outcome == "timeout" else "caught",
        "test": test or f"{sum(map(len, _within(lots, most)))} of {sum(map(len, lots))} tests pass",
        "seconds": round(time.monotonic() - began, 1),
    }


def _within(lots: list[dict[str, Traced]], most: float) -> list[dict[str, Traced]]:
    """The first tests, as many as take so many seconds without a mutation."""
    found: list[dict[str, Traced]] = []
    for lot in lots:
        found.append({})
        for name, test in lot.items():
            most -= test.seconds
            if most >= 0:
                found[-1][name] = test
    return [lot for lot in found if lot]


def show(result: Mapping[str, Any]) -> None:
    """One row of the table."""
    print(f"{result['outcome']:8} {result['seconds']:6.1f} s  {result['where']:50} {result['test']}", flush=True)


def report(results: list[dict[str, Any]]) -> None:
    """The score, room by room, and the survivors."""
    print()
    for room in [*dict.fromkeys(result["room"] for result in results), "all"]:
        of_room = [result for result in results if room in (result["room"], "all")]
        caught = sum(result["outcome"] != "survived" for result in of_room)
        print(f"{room:45} {caught:4} of {len(of_room):4} caught ({caught / len(of_room):.0%})")
    for result in results:
        # A timeout counts as caught, but on a busy machine it may be none: look at each.
        if result["outcome"] != "caught":
            print(f"\n{result['outcome']}, {result['test']}: {result['where']}\n{result['diff']}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="mutants to sample (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="decides which (default 0)")
    parser.add_argument("--only", default="", help="only files whose path contains this")
    parser.add_argument("--most", type=float, default=math.inf, help="seconds of tests for a mutant (default: all)")
    parser.add_argument("--again", action="store_true", help="judge those again that survived or ran out of time")
    parser.add_argument("--report", action="store_true", help="print what is known and stop")
    args = parser.parse_args()
    os.nice(19)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tests under way end, too
    chosen = list(islice((mutant for mutant in sample(args.seed) if args.only in mutant.file), args.count))
    judged = {key for key, result in known().items() if result["outcome"] == "caught" or not args.again}
    todo = [] if args.report else [mutant for mutant in chosen if mutant.key not in judged]
    print(f"{len(chosen)} mutants; to do: {len(todo)}", flush=True)
    if todo:
        warm()
        with copied_tree() as copy:
            of_room: dict[str, dict[str, Traced]] = {}
            for mutant in todo:
                if mutant.room not in of_room:
                    of_room[mutant.room] = room_tests(copy, mutant.room)
                result = judge(copy, mutant, of_room[mutant.room], args.most)
                _write(result)
                show(result)
    done = known()
    report([done[mutant.key] for mutant in chosen if mutant.key in done])


if __name__ == "__main__":
    main()
