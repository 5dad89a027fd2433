"""Every verdict is on disk when it is known: a killed evaluation goes on, and ends as if it had not been killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import CPU, Nearest, attacked, digits, log_of, problem_of
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import interrupted_after

from sam_bench.attacks import Attack
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.events import AttackWarning, Event, Verdict
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.data import Split
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation import Executor, Local, Log, Problem, Processes, evaluate_curve_of
from sam_bench.evaluation.adversarial import write_adversarial
from sam_bench.evaluation.executors.base import dealt
from sam_bench.progress import SilentReporter
from sam_bench.records import Radius

SUITE = AutoAttack(version="custom", suite=("apgd-ce", "apgd-dlr"))


@pytest.fixture(scope="module")
def nearest() -> Nearest:
    return Nearest()


def stop_after(count: int, problem: Problem, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation, interrupted when it has written so many lines."""
    with interrupted_after(count, monkeypatch), pytest.raises(KeyboardInterrupt):
        attacked(problem, path, resume=True)


def settled(path: Path) -> list[int]:
    """The examples that the lines of a log settle, in their order."""
    return [
        entry["example"]
        for part in sorted(path.glob("part-*"))
        for entry in map(json.loads, part.read_text().splitlines())
        if entry.get("verdict") is not None
    ]


verdicts = st.builds(
    Verdict,
    example=st.integers(0, 50),
    outcome=st.sampled_from(["robust", "misclassified", "pgd", None]),
    attacks_survived=st.integers(0, 1),
)


@given(written=st.lists(verdicts, max_size=20), cut=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_read_whatever_a_kill_cut_off(
    written: list[Verdict], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is settled stays, and what arrives twice is dropped."""
    folder, problem = tmp_path_factory.mktemp("log"), problem_of(torch.nn.Identity(), digits(51))
    log = Log(folder, problem)
    log.open(resume=False)
    expected: list[dict[int, Verdict]] = [{}]
    with log.session():
        for verdict in written:
            log.add(verdict)
            if log.verdicts != expected[-1]:
                expected.append(dict(log.verdicts))
    for place, verdict in log.verdicts.items():
        told = [each for each in written if each.example == place]
        final = [each for each in told if each.outcome is not None]
        assert verdict == (final[0] if final else max(told, key=lambda each: each.attacks_survived))
    (part,) = folder.glob("part-*")
    whole = part.read_bytes()
    part.write_bytes(whole[: max(0, len(whole) - cut)])
    assert log_of(problem, folder).verdicts == expected[part.read_bytes().count(b"\n")]


def sealed(entry: dict[str, Any]) -> str:
    """A line with the right checksum, whatever it says."""
    text = json.dumps(entry)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


_LINE: dict[str, Any] = {"example": 9, "verdict": "pgd", "withstood": 0, "seconds": 0.5}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (sealed(_LINE).replace('"pgd"', '"robust"'), "its checksum is another one"),
        (json.dumps(_LINE) + "\n", "its checksum is another one"),
        ("\n", "its checksum is another one"),
        ("[1, 2]\n", "its checksum is another one"),
        (sealed(_LINE | {"withstood": 99}), "withstood cannot be 99"),
        (sealed(_LINE | {"withstood": -1}), "withstood cannot be -1"),
        (sealed(_LINE | {"example": 10}), "example cannot be 10"),
        (sealed(_LINE | {"example": True}), "example cannot be True"),
        (sealed(_LINE | {"example": "x" * 1000}), f"example cannot be '{'x' * 198}…"),
        (sealed(_LINE | {"verdict": "fgsm"}), "verdict cannot be 'fgsm'"),
        (sealed(_LINE | {"verdict": 7}), "verdict cannot be 7"),
        (sealed(_LINE | {"seconds": "long"}), "seconds cannot be 'long'"),
        (sealed(_LINE | {"seconds": float("nan")}), "seconds cannot be nan"),
        (sealed({key: value for key, value in _LINE.items() if key != "withstood"}), "it has no withstood"),
        (sealed({"doubt": 5, "seconds": 0}), "doubt cannot be 5"),
        (sealed(_LINE | {"witness": {"shape": [8], "float32": "AAAA"}}), "its adversarial example cannot be read"),
    ],
)
def test_a_line_that_makes_no_sense_is_named_and_costs_its_example_alone(
    line: str, why: str, nearest: Nearest, tmp_path: Path
) -> None:
    problem = problem_of(nearest, digits(10), eps=Radius("64/255"), save_adversarial=True)
    whole = attacked(problem, tmp_path)
    (part,) = tmp_path.glob("part-*")
    lines = part.read_text().splitlines(keepends=True)
    *_, place = (number for number, each in enumerate(lines) if json.loads(each).get("example") == 9)
    assert whole.verdicts[9] == "pgd"
    part.write_text("".join([*lines[:place], line, *lines[place + 1 :]]))
    reporter = Heard()
    again = attacked(problem, tmp_path, resume=True, reporter=reporter)
    assert again.verdicts == whole.verdicts
    (damaged,) = (said for said in reporter.said if "damaged" in said)
    assert f"attacked again: {part}, line {place + 1}: {why}" in damaged and len(damaged) < 700
    assert sum(len(each.read_text().splitlines()) for each in tmp_path.glob("part-*")) == len(lines) + 1
    with np.load(tmp_path.with_suffix(".npz")) as bundle:
        assert bundle["index"].tolist() == [index for index, verdict in enumerate(whole.verdicts) if verdict == "pgd"]


class Heard(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_an_identity_that_cannot_be_read_is_refused_in_a_sentence(nearest: Nearest, tmp_path: Path) -> None:
    problem = problem_of(nearest, digits(4))
    attacked(problem, tmp_path)
    for content in ("[]", "{", "7"):
        (tmp_path / "identity.json").write_text(content)
        with pytest.raises(SamBenchError, match=r"identity.json cannot be read .*; delete"):
            attacked(problem, tmp_path, resume=True)


@given(data=st.data(), size=st.integers(1, 40), count=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_example_goes_on_with_its_own_images_label_and_attacks_behind_it(
    data: st.DataObject, size: int, count: int
) -> None:
    behind = data.draw(st.dictionaries(st.integers(0, size - 1), st.integers(0, 1)))
    final = data.draw(st.dictionaries(st.integers(0, size - 1), st.sampled_from(["robust", "pgd"]), max_size=size - 1))
    places = torch.arange(size)
    split = Split(places.to(torch.uint8).view(size, 1, 1, 1), places + 100)
    problem = problem_of(torch.nn.Identity(), split)
    log = Log(Path("nowhere"), problem)
    log.verdicts = {place: Verdict(place, None, survived) for place, survived in behind.items()}
    log.verdicts |= {place: Verdict(place, outcome) for place, outcome in final.items()}
    left = [place for place in range(size) if place not in final]
    parts = [problem.stored(part) for part in dealt(log.todo(), count)]
    assert sorted(place for part in parts for place in part.index.tolist()) == left
    for part in parts:
        assert part.x.flatten().tolist() == part.index.tolist() == (part.y - 100).tolist()
        assert part.attacks_survived.tolist() == [behind.get(place, 0) for place in part.index.tolist()]


def test_a_log_is_read_and_a_bundle_written_without_holding_all_of_them(tmp_path: Path) -> None:
    count, image = 64, torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    problem = problem_of(torch.nn.Identity(), digits(count), save_adversarial=True)
    log = Log(tmp_path, problem)
    with log.session():
        for place in range(count):
            log.add(Verdict(place, "pgd", 0, image + place))
    (part,) = tmp_path.glob("part-*")
    size = count * image.nbytes
    assert part.stat().st_size > size / 2
    again, peak = _peak(lambda: log_of(problem, tmp_path))
    assert len(again.verdicts) == count and peak < size / 4

    found = again.adversarial()
    _, peak = _peak(lambda: write_adversarial(tmp_path / "bundle.npz", found, problem))
    assert peak < size / 4
    with np.load(tmp_path / "bundle.npz") as bundle:
        assert bundle["index"].tolist() == list(range(count)) and bundle["index"].dtype == np.int64
        assert bundle["x_adv"].dtype == np.float32 and str(bundle["norm"]) == "Linf"
        assert torch.equal(torch.from_numpy(bundle["x_adv"]), torch.stack([image + place for place in range(count)]))


def _peak(do: Callable[[], Any]) -> tuple[Any, int]:
    """What comes out of a call, and the bytes of Python's and NumPy's that it held at once."""
    tracemalloc.start()
    try:
        return do(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("attack", [SUITE, PGDAttack(steps=3, restarts=2), FGSMAttack()], ids=lambda each: each.method)
def test_stopped_after_any_number_of_verdicts_it_ends_the_same_and_does_nothing_twice(
    attack: Attack, nearest: Nearest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(nearest, digits(40), attack, batch_size=16)
    whole = attacked(problem, tmp_path / "whole")
    path = tmp_path / "parts"
    for after in (0, 7, 12):
        stop_after(after, problem, path, monkeypatch)
    again = attacked(problem, path, resume=True)
    assert again.verdicts == whole.verdicts and again.warnings == whole.warnings
    assert sorted(settled(path)) == list(range(40)), "no example is settled twice"


class Cut(Executor):
    """Another executor whose stream of events ends somewhere, and which says some of them twice."""

    def __init__(self, inner: Executor, after: int) -> None:
        self.inner, self.after = inner, after

    def check(self, problem: Problem) -> None:
        self.inner.check(problem)

    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        seen: list[Event] = []
        for number, event in enumerate(self.inner.run(problem, todo)):
            if number == self.after:
                raise KeyboardInterrupt
            yield event
            seen.append(event)
            yield from seen[-3::2]

    def describe(self) -> str:
        return "cut"

    def ran_on(self) -> str:
        return "cut"


@pytest.mark.slow
@pytest.mark.parametrize("attack", [SUITE, PGDAttack(steps=3, restarts=2)], ids=lambda each: each.method)
def test_the_stream_of_events_cut_anywhere_and_resumed_with_any_executor_gives_the_uninterrupted_result(
    attack: Attack, nearest: Nearest, tmp_path: Path
) -> None:
    problem = problem_of(nearest, digits(30), attack, batch_size=16)
    whole = attacked(problem, tmp_path / "whole")
    here, there, draws = Local(CPU), Processes(2, CPU), random.Random(0)
    orders: list[list[Executor]] = [[here, here, here, here], [here, there, here]]
    if attack is SUITE:  # a process takes seconds to begin
        orders.append([there, here, there])
    for number, executors in enumerate(orders):
        path = tmp_path / str(number)
        for executor in executors[:-1]:
            with suppress(KeyboardInterrupt):
                attacked(problem, path, Cut(executor, draws.randrange(30)), resume=True)
        again = attacked(problem, path, executors[-1], resume=True)
        assert again.verdicts == whole.verdicts and sorted(again.warnings) == sorted(whole.warnings)
        assert sorted(settled(path)) == list(range(30)), "no example is settled twice"


def test_an_executor_that_forgets_examples_is_not_believed(nearest: Nearest, tmp_path: Path) -> None:
    class Forgetful(Local):
        def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
            yield AttackWarning("dynamic", "made up")
            yield from super().run(problem, dict(list(todo.items())[:7]))

    problem = problem_of(nearest, digits(10))
    with pytest.raises(SamBenchError, match=r"3 examples came back without a verdict; .* keeps the others"):
        attacked(problem, tmp_path, Forgetful(CPU))
    assert len(settled(tmp_path)) == 7 and log_of(problem, tmp_path).warnings == ["dynamic: made up"]


def test_stopped_while_it_tells_verdicts_that_depend_on_the_batch_it_begins_anew(
    nearest: Nearest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = AutoAttack(version="custom", suite=("apgd-ce",), rng="upstream")
    problem = problem_of(nearest, digits(40), attack, batch_size=16)
    whole = attacked(problem, tmp_path / "whole")
    stop_after(25, problem, tmp_path / "parts", monkeypatch)
    before = settled(tmp_path / "parts")
    again = attacked(problem, tmp_path / "parts", resume=True)
    assert len(before) > 20 and settled(tmp_path / "parts") == settled(tmp_path / "whole")
    assert again.verdicts == whole.verdicts
    # Stopped when all was told, it has nothing more to do.
    before = settled(tmp_path / "parts")
    assert attacked(problem, tmp_path / "parts", resume=True).verdicts == whole.verdicts
    assert settled(tmp_path / "parts") == before


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from evaluation_samples import CPU, Nearest, attacked, digits, log_of, problem_of
from sam_bench.attacks.autoattack import AutoAttack

folder, kills = Path(sys.argv[2]), int(sys.argv[3])
suite = AutoAttack(version="custom", suite=("apgd-ce", "apgd-dlr"))
problem = problem_of(Nearest(), digits(16), suite, batch_size=8)

def work(path):
    return attacked(problem, path, resume=True)

def forked(path):
    child = os.fork()
    if child == 0:
        try:
            work(path)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return child

def verdicts(path):
    return {place: each.outcome for place, each in log_of(problem, path).verdicts.items()}

work(folder / "warm")
started = time.monotonic()
work(folder / "whole")
took = time.monotonic() - started
draws, ended, early = random.Random(0), [], 0
while len(ended) < kills:
    path = folder / f"{len(ended)}-{early}"
    child = forked(path)
    time.sleep(draws.uniform(0.02, 0.98) * took)
    os.kill(child, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        # It had ended: the machine is quicker now than when the time was taken.
        early, took = early + 1, 0.9 * took
        continue
    again = os.waitpid(forked(path), 0)[1]
    ended.append(again == 0 and verdicts(path) == verdicts(folder / "whole"))
print(json.dumps(ended))
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_an_evaluation_ends_with_the_same_verdicts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(Path(__file__).parent), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True] * 20


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"eps": Radius("8/255")}, "eps = 16/255 and this command gives 8/255"),
        ({"seed": 4}, "seed = 3 and this command gives 4"),
        ({"attack": PGDAttack(steps=6)}, "settings = "),
        ({"attack": FGSMAttack()}, "attack = pgd and this command gives fgsm"),
        ({"test": digits(20)}, "n_examples = 30 and this command gives 20"),
        ({"norm": "L2"}, "norm = Linf and this command gives L2"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_an_evaluation_of_something_else_is_not_continued(
    changes: dict[str, Any], field: str, nearest: Nearest, tmp_path: Path
) -> None:
    begun = problem_of(nearest, digits(30))
    attacked(begun, tmp_path)
    given = {"attack": begun.attack, "norm": begun.norm, "eps": begun.eps, "seed": begun.seed, "test": begun.test}
    given |= changes
    other = problem_of(nearest, given.pop("test"), given.pop("attack"), **given)
    with pytest.raises(InputError, match=rf"cannot resume .*it was begun with {field}"):
        attacked(other, tmp_path, resume=True)
    with pytest.raises(InputError, match=r"holds an evaluation that was not finished: add resume=True"):
        attacked(begun, tmp_path)


HOLDS = """
import sys
from pathlib import Path
from sam_bench.locks import claimed

with claimed(Path(sys.argv[1]), otherwise="wait"):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_an_evaluation_under_way_is_not_called_unfinished_and_not_to_be_deleted(
    nearest: Nearest, tmp_path: Path
) -> None:
    problem, folder = problem_of(nearest, digits(4)), tmp_path / "a.progress"
    folder.mkdir()
    (folder / "part-0001.jsonl").touch()
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match=rf"a.progress is in use by process {holder.pid} on .*; wait for it, or"):
            evaluate_curve_of(problem, [problem.eps], [tmp_path / "a.json"], executor=Local(CPU))
        holder.kill()
        holder.wait()


def test_an_evaluation_under_way_is_refused_to_another_process_until_it_ends(nearest: Nearest, tmp_path: Path) -> None:
    problem, folder = problem_of(nearest, digits(4)), tmp_path / "a.progress"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match=rf"a.progress is in use by process {holder.pid} on .*; wait for it, or"):
            attacked(problem, folder, resume=True)
        assert [file.name for file in folder.iterdir()] == ["in-use"]
        holder.kill()
        holder.wait()
    assert len(attacked(problem, folder).verdicts) == 4
    assert not (folder / "in-use").exists()
