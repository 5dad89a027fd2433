"""Which tests run a line and how long each takes; and running them in a fork that has PyTorch imported."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import json
import multiprocessing.forkserver
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from coverage import Coverage
from mutants_made import ROOMS, ROOT, Mutant, files

MAP = ROOT / "build" / "mutants-tests.json"

_SLOW_TO_IMPORT = [
    *("torch.distributed", "torchvision", "timm", "scipy.stats", "sklearn.datasets", "pandas"),
    *("hypothesis", "pytorch_optimizer", "tensorboard", "rich.console"),
]
_CONTEXT = "MUTANTS_CONTEXT"  # the test that runs, for its child processes
_FIRST = 20  # tests of the first lot
_PATIENCE = 300  # seconds for what is no test: imports, the end


@dataclass(frozen=True)
class Traced:
    """One test without a mutation."""

    seconds: float
    lines: Mapping[str, Sequence[int]]  # by file, of the mutated files only


# --- Running tests ---


def warm() -> None:
    """Import here what takes seconds; every fork has it then."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    for name in _SLOW_TO_IMPORT:
        importlib.import_module(name)


def _be_pytest(copy: Path, arguments: Sequence[str], plugin: object, out: int) -> NoReturn:
    """What the forked process does."""
    code = 3
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(_PATIENCE)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path[:] = [str(copy), *(path for path in sys.path if Path(path) not in (ROOT, ROOT / "tests"))]
        sys.modules["__main__"] = ModuleType("__main__")  # child processes would import the file of the old one
        for stream in (1, 2):
            os.dup2(out, stream)
        code = pytest.main(["-q", "-p", "no:cacheprovider", "--durations=0", *arguments], plugins=[plugin])
        sys.stdout.flush()
    finally:
        os._exit(code)


def _fork(copy: Path, arguments: Sequence[str], plugin: object) -> tuple[int, str]:
    """Run pytest in a fork; its exit code, negative for a signal, and what it printed."""
    with tempfile.TemporaryFile("w+") as out:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _be_pytest(copy, arguments, plugin, out.fileno())
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            with suppress(ProcessLookupError):  # with all the processes that the tests have started
                os.killpg(child, signal.SIGKILL)
        out.seek(0)
        return code, out.read()


class _Clock:
    """Says which test runs, and ends the process if one takes far longer than without a mutation."""

    def __init__(self, path: Path, seconds: Mapping[str, float]) -> None:
        self._path, self._seconds = path, seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._path.write_text(item.nodeid)
        limit = 30 + round(10 * self._seconds.get(item.nodeid, 10))
        signal.setitimer(signal.ITIMER_PROF, limit)  # of the processor, which an endless loop needs
        signal.alarm(5 * limit)  # of the clock, which a busy machine needs
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(_PATIENCE)


def run_tests(copy: Path, tests: Mapping[str, Traced]) -> tuple[str, str]:
    """Run tests until one fails, in the order given.

    Returns:
        "passed", "failed" or "timeout"; and the test that failed.
    """
    running = copy / "build" / "running"
    running.parent.mkdir(exist_ok=True)
    running.write_text("")
    clock = _Clock(running, {name: test.seconds for name, test in tests.items()})
    code, text = _fork(copy, ["-x", *tests], clock)
    if code == pytest.ExitCode.USAGE_ERROR:  # the names of some tests have a setting's default in them
        code, text = _fork(copy, ["-x", "-m", "not slow", *dict.fromkeys(map(_file_of, tests))], clock)
    if code == pytest.ExitCode.OK:
        return "passed", ""
    lines = [line for line in text.splitlines() if line.strip()] or [f"exit code {code}"]
    return "timeout" if -code in (signal.SIGALRM, signal.SIGPROF) else "failed", running.read_text() or lines[-1]


# --- Which tests run which lines ---


def _file_of(test: str) -> str:
    return test.split("::")[0]


class _Recorder:
    """Tells coverage which test runs, and keeps each test's time."""

    def __init__(self, config: Path, path: Path) -> None:
        self._config, self._path = config, path
        self.seconds: dict[str, float] = defaultdict(float)
        self.fixtures: dict[str, list[str]] = {}
        self.failed: list[str] = []

    def pytest_configure(self) -> None:
        """Start coverage, here and in every process that is started from here."""
        self.coverage = Coverage(config_file=str(self._config))
        self.coverage.start()
        os.environ["COVERAGE_PROCESS_START"] = str(self._config)
        os.register_at_fork(after_in_child=_name_context)
        self._under("")

    def _under(self, context: str) -> None:
        os.environ[_CONTEXT] = context
        self.coverage.switch_context(context)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, Any, Any]:
        signal.alarm(0)
        definitions = [each for found in item._fixtureinfo.name2fixturedefs.values() for each in found]
        self.fixtures[item.nodeid] = [_fixture(each) for each in definitions]
        _forget()
        self._under(item.nodeid)
        try:
            return (yield)
        finally:
            self._under("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What a fixture runs for a whole file counts for every test that uses it, not for the first only."""
        if fixturedef.scope == "function":
            return (yield)
        before = os.environ[_CONTEXT]
        self._under(_fixture(fixturedef))
        try:
            return (yield)
        finally:
            self._under(before)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        kept = {"seconds": self.seconds, "fixtures": self.fixtures, "failed": self.failed}
        self._path.write_text(json.dumps(kept))


def _fixture(definition: Any) -> str:
    return f"fixture {definition.argname} of {definition.baseid}"


def _forget() -> None:
    """Let the next test run itself what an earlier one has left in a cache or in a waiting process."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    names = ("tests.", *(path.removesuffix(".py").replace("/", ".") for path in ROOMS))
    for module in [module for name, module in sys.modules.items() if name.startswith(names)]:
        for value in vars(module).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


def _name_context() -> None:
    """Coverage starts anew in a forked process, without the test's name."""
    if coverage := Coverage.current():
        coverage.switch_context(os.environ[_CONTEXT])


def record(copy: Path, test_file: str) -> dict[str, Traced]:
    """Run a test file without a mutation, and see which of the mutated files' lines each test runs."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        config, kept = Path(folder) / "coveragerc", Path(folder) / "kept.json"
        config.write_text(
            f"[run]\ndata_file = {folder}/data\nparallel = true\ncore = ctrace\npatch = fork, _exit\n"
            f"context = ${{{_CONTEXT}-}}\ndisable_warnings = no-data-collected, module-not-measured\n"
            "include =\n" + "".join(f"    {copy / file}\n" for file in files())
        )
        code, text = _fork(copy, ["-m", "not slow", test_file], _Recorder(config, kept))
        ran = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)  # all are slow
        if not kept.exists() or code not in ran:
            sys.exit(f"{text}\n{test_file} does not run without a mutation: mend that first")
        found = json.loads(kept.read_text())
        if found["failed"]:
            print(f"left out, as they fail without a mutation: {found['failed']}\n{text}", flush=True)
        lines = _lines_by_context(copy, config)
    return {
        test: Traced(round(seconds, 3), _union([lines[each] for each in [test, *found["fixtures"][test]]]))
        for test, seconds in found["seconds"].items()
        if test not in found["failed"]
    }


def _lines_by_context(copy: Path, config: Path) -> dict[str, dict[str, list[int]]]:
    coverage = Coverage(config_file=str(config))
    coverage.combine()
    data, found = coverage.get_data(), defaultdict[str, dict[str, list[int]]](lambda: defaultdict(list))
    for path in data.measured_files():
        for line, contexts in data.contexts_by_lineno(path).items():
            for context in contexts:
                found[context][str(Path(path).relative_to(copy))].append(line)
    return found


def _union(parts: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    names = {file for part in parts for file in part}
    return {file: sorted({line for part in parts for line in part.get(file, ())}) for file in sorted(names)}


def room_tests(copy: Path, room: str) -> dict[str, Traced]:
    """The tests of a room with what they run: as it is kept, or anew if code or test have changed."""
    known, found = json.loads(MAP.read_text()) if MAP.exists() else {}, dict[str, Traced]()
    shared = _digest(sorted([*(copy / "sam_bench").rglob("*.py"), *_helpers(copy)]))
    for path in sorted(path for pattern in ROOMS[room] for path in (copy / "tests").glob(pattern)):
        name, digest = str(path.relative_to(copy)), shared + _digest([path])
        if known.get(name, {}).get("digest") != digest:
            tests = record(copy, name)
            known[name] = {"digest": digest, "tests": {test: asdict(each) for test, each in tests.items()}}
            MAP.parent.mkdir(exist_ok=True)
            MAP.write_text(json.dumps(known))
            print(f"{sum(test.seconds for test in tests.values()):6.1f} s  {len(tests):4} tests  {name}", flush=True)
        found |= {test: Traced(**each) for test, each in known[name]["tests"].items()}
    return found


def _helpers(copy: Path) -> Iterator[Path]:
    return (path for path in (copy / "tests").rglob("*.py") if not path.name.startswith(("test_", "mutants")))


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


# --- Which tests are run for a mutant ---


def chosen_for(mutant: Mutant, source: str, tests: Mapping[str, Traced]) -> list[dict[str, Traced]]:
    """The tests that run the mutant's statement, in lots: first the few that are likely to see it soon."""
    statement = _lines(mutant, source)
    chosen = {
        name: test
        for name, test in tests.items()
        if (lines := test.lines.get(mutant.file)) and (statement is None or not statement.isdisjoint(lines))
    }
    if statement is None and not chosen:
        chosen = dict(tests)
    order = sorted(chosen, key=lambda name: _cost(chosen[name], mutant.file))
    # What a file's tests share is made anew each time that its turn comes: file by file, in two lots.
    turns = {file: turn for turn, file in enumerate(dict.fromkeys(map(_file_of, order)))}
    lots = (sorted(lot, key=lambda name: turns[_file_of(name)]) for lot in (order[:_FIRST], order[_FIRST:]))
    return [{name: chosen[name] for name in lot} for lot in lots if lot]


def _cost(test: Traced, file: str) -> float:
    """Low for a quick test, and for one that runs hardly anything but the file: it is about the file."""
    here, everything = len(test.lines.get(file, ())), sum(map(len, test.lines.values()))
    return (test.seconds + 0.05) * (1 + everything) / (1 + here)


def _lines(mutant: Mutant, source: str) -> set[int] | None:
    """The lines of the statement that is changed, without those of its body; None if it runs at import."""
    line = source.count("\n", 0, mutant.start) + 1
    statements = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))
    within = [node for node in statements if node.lineno <= line <= (node.end_lineno or 0)]
    if not any(isinstance(node, ast.FunctionDef) for node in within[:-1]):  # they come from the outermost inwards
        return None
    innermost = within[-1]
    body = [child.lineno for child in ast.iter_child_nodes(innermost) if isinstance(child, ast.stmt)]
    return set(range(innermost.lineno, min(body, default=(innermost.end_lineno or 0) + 1)))
