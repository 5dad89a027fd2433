"""Mutation testing: change one place of the code, run the tests of its room, see whether one of them fails.

    make mutants                                        # 40 mutants, seed 0
    make mutants MUTANTS='--count 200 --seed 1'
    make mutants MUTANTS=--report                       # what is known so far

Every outcome is a line of `build/mutants.jsonl`. A run that was stopped goes on where it was: start it again. If a file
has changed since, its mutants are new ones. The work is done in a copy of the tree, at the lowest priority.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "build" / "mutants.jsonl"

# Which tests belong to which code.
ROOMS = {
    "sam_bench/perturb": ["tests/perturb"],
    "sam_bench/attacks": ["tests/attacks"],
    "sam_bench/evaluation": ["tests/evaluation"],
    "sam_bench/integrations/state.py": ["tests/integrations"],
    "sam_bench/integrations/state_identity.py": ["tests/integrations"],
    "sam_bench/training/step.py": ["tests/training"],
    "sam_bench/training/schedules.py": ["tests/training"],
}

_COMPARISONS = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"},
}
_OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "%", ast.Mod: "//", ast.Pow: "*"}
_OPERATOR = re.compile(r"not\s+in|is\s+not|in|is|//|\*\*|[<>=!]=|[<>+*/%-]")


@dataclass(frozen=True)
class Mutant:
    """One change: the characters from `start` to `end` of a file become `new`."""

    file: str
    start: int
    end: int
    new: str
    digest: str  # of the file: a mutant of another version is another mutant

    @property
    def key(self) -> str:
        """Tells it from every other mutant."""
        return f"{self.file}:{self.start}:{self.end}:{self.new}:{self.digest}"

    @property
    def room(self) -> str:
        """The entry of ROOMS it belongs to."""
        return next(room for room in ROOMS if self.file == room or self.file.startswith(f"{room}/"))

    def applied(self, source: str) -> str:
        """The file's text with the change."""
        return source[: self.start] + self.new + source[self.end :]

    def diff(self, source: str) -> str:
        """The lines that change, old and new."""
        lines = difflib.unified_diff(source.splitlines(), self.applied(source).splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


class _Finder(ast.NodeVisitor):
    """Collects (start, end, new) for every change that can be made to a source."""

    def __init__(self, source: str) -> None:
        self.source, self.found = source, list[tuple[int, int, str]]()
        # The parser counts bytes, a string has characters.
        lines = source.splitlines(keepends=True)
        self._lines = [line.encode() for line in lines]
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        def place(line: int, column: int) -> int:
            return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def _replace(self, node: ast.AST, pattern: str) -> None:
        start, end = self._span(node)
        self.found.append((start, end, pattern.format(self.source[start:end])))

    def _replace_between(self, left: ast.AST, right: ast.AST, new: str) -> None:
        begin, end = self._span(left)[1], self._span(right)[0]
        match = _OPERATOR.search(self.source, begin, end)
        if match:
            self.found.append((*match.span(), new))

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            self._replace_between(left, right, _COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right))
        if type(node.op) in _OPERATORS and not text:
            self._replace_between(node.left, node.right, _OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in _OPERATORS:
            self._replace_between(node.target, node.value, _OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values:  # leave one out
            rest = [self.source[slice(*self._span(other))] for other in node.values if other is not value]
            joined = (" and " if isinstance(node.op, ast.And) else " or ").join(f"({each})" for each in rest)
            self.found.append((*self._span(node), joined))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value))
        elif isinstance(node.value, int):
            self._replace(node, str(node.value + 1))
        elif isinstance(node.value, float):
            self._replace(node, "({} * 2 + 0.1)")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                self._replace(bound, "({}) + 1")
        self.generic_visit(node)

    def _condition(self, node: ast.If | ast.IfExp | ast.While) -> None:
        if not isinstance(node.test, ast.Compare):  # whose operator is changed
            self._replace(node.test, "not ({})")
        self.generic_visit(node)

    visit_If = visit_IfExp = visit_While = _condition  # noqa: N815

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self._replace(node.value, "None")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._replace(node, "None")
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Messages are left alone, and so are the next three: nothing that runs depends on them."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """See `visit_Raise`."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Only the value: the annotation is a type."""
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Defaults and body: the rest are types and decorators."""
        defaults = [each for each in node.args.kw_defaults if each is not None]
        for each in [*node.args.defaults, *defaults, *node.body]:
            self.visit(each)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Every mutant of a file; one in a thousand is no Python any more."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    return [Mutant(file, start, end, new, digest) for start, end, new in dict.fromkeys(finder.found)]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def files() -> list[str]:
    """The files that are mutated."""
    return sorted(
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
        if path.exists()
    )


def sample(seed: int) -> Iterator[Mutant]:
    """All mutants there are, in random order."""
    found = [mutant for file in files() for mutant in mutants_of((ROOT / file).read_text(), file)]
    random.Random(seed).shuffle(found)
    return (mutant for mutant in found if _parses(mutant.applied((ROOT / mutant.file).read_text())))


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
        yield copy


def room_tests(room: str, module: str) -> list[str]:
    """A room's test files, those first whose names have most words in common with the module's."""
    words = set(re.split(r"[_.]", Path(module).stem))
    found = [path for folder in ROOMS[room] for path in sorted((ROOT / folder).rglob("test_*.py"))]
    found.sort(key=lambda path: -len(words & set(path.stem.split("_"))))
    return [str(path.relative_to(ROOT)) for path in found]


def run_tests(copy: Path, tests: list[str], timeout: float) -> tuple[str, str]:
    """Run tests until one fails.

    Returns:
        "passed", "failed" or "timeout"; and the test that failed.
    """
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--durations=0", "--durations-min=9999"]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [str(copy / ".venv/bin/python"), "-m", "pytest", *options, *tests],
            cwd=copy,
            env={**os.environ, **threads},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except BaseException as error:
            if isinstance(error, subprocess.TimeoutExpired):
                return "timeout", ""
            raise
        finally:
            _end(process)
        out.seek(0)
        text = out.read()
    if code == 0:
        return "passed", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    return "failed", failed[1] if failed else text.strip().splitlines()[-1]


def _end(process: subprocess.Popen[Any]) -> None:
    """End the tests with all the processes that they have started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def known() -> dict[str, dict[str, Any]]:
    """What is in the file of results, by key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def _write(result: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:  # one write: what is stopped leaves whole lines
        file.write(json.dumps(result) + "\n")


def judge(copy: Path, mutant: Mutant, timeout: float) -> dict[str, Any]:
    """Run the tests on a mutant in a copy of the tree, which is as before afterwards."""
    target = copy / mutant.file
    source, began = target.read_text(), time.monotonic()
    target.write_text(mutant.applied(source))
    try:
        outcome, test = run_tests(copy, room_tests(mutant.room, mutant.file), timeout)
    finally:
        target.write_text(source)
    return {
        "key": mutant.key,
        "room": mutant.room,
        "where": f"{mutant.file}:{source.count(chr(10), 0, mutant.start) + 1}",
        "diff": mutant.diff(source),
        "outcome": "survived" if outcome == "passed" else "caught",
        "test": test or outcome,
        "seconds": round(time.monotonic() - began, 1),
    }


def check_green(copy: Path, rooms: list[str], longest: float) -> None:
    """Stop if a test fails without any mutation: it would catch them all."""
    for room in rooms:
        began = time.monotonic()
        outcome, test = run_tests(copy, room_tests(room, ""), longest)
        print(
            f"{room}: without a mutation its tests have {outcome} {test} ({time.monotonic() - began:.0f} s)", flush=True
        )
        if outcome != "passed":
            sys.exit("mend that first, or give more time with --timeout")


def show(result: dict[str, Any]) -> None:
    """One row of the table."""
    print(f"{result['outcome']:8} {result['seconds']:6.1f} s  {result['where']:50} {result['test']}", flush=True)


def report(results: list[dict[str, Any]]) -> None:
    """The score, room by room, and the survivors."""
    print()
    for room in [*dict.fromkeys(result["room"] for result in results), "all"]:
        of_room = [result for result in results if room in (result["room"], "all")]
        caught = sum(result["outcome"] == "caught" for result in of_room)
        print(f"{room:45} {caught:4} of {len(of_room):4} caught ({caught / len(of_room):.0%})")
    for result in results:
        # A timeout counts as caught, but on a busy machine it may be none: look at each.
        if "survived" in result["outcome"] or result["test"] == "timeout":
            print(f"\n{result['outcome']}, {result['test']}: {result['where']}\n{result['diff']}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="mutants to sample (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="decides which (default 0)")
    parser.add_argument("--part", default="1/1", help="2/3: the second of three processes that share the mutants")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one room's tests (default 1800)")
    parser.add_argument("--only", default="", help="only files whose path contains this")
    parser.add_argument("--no-check", action="store_true", help="do not run the tests without a mutation first")
    parser.add_argument("--report", action="store_true", help="print what is known and stop")
    args = parser.parse_args()
    os.nice(19)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tests under way end, too
    chosen = list(islice((mutant for mutant in sample(args.seed) if args.only in mutant.file), args.count))
    number, parts = map(int, args.part.split("/"))
    done = known()
    todo = [] if args.report else [mutant for mutant in chosen[number - 1 :: parts] if mutant.key not in done]
    print(f"{len(chosen)} mutants; to do here: {len(todo)}", flush=True)
    if todo:
        with copied_tree() as copy:
            if not args.no_check:
                check_green(copy, sorted({mutant.room for mutant in todo}), args.timeout)
            for mutant in todo:
                result = judge(copy, mutant, args.timeout)
                _write(result)
                show(result)
    done = known()
    report([done[mutant.key] for mutant in chosen if mutant.key in done])


if __name__ == "__main__":
    main()
