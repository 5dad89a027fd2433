"""Every verdict is on disk when it is known: a killed evaluation goes on, and ends as if it had not been killed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import CPU, Nearest, digits, evaluation_of
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import interrupted_after

from sam_bench import api
from sam_bench.attacks import Attack, Verdict
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation import Evaluation, Journal, Known, run_evaluation
from sam_bench.evaluation.journal import write_witnesses
from sam_bench.evaluation.shards import Workplace, search
from sam_bench.progress import SilentReporter
from sam_bench.records import Radius

SUITE = AutoAttack(version="custom", suite=("apgd-ce", "apgd-dlr"))


@pytest.fixture(scope="module")
def nearest() -> Nearest:
    return Nearest()


def finish(evaluation: Evaluation, path: Path, **options: Any) -> Known:
    given: dict[str, Any] = {"resume": False, "workers": 1, "device": CPU, "reporter": SilentReporter()}
    return run_evaluation(evaluation, Journal(path), **{**given, **options})


def names(known: Known) -> dict[int, str | None]:
    return {place: verdict.verdict for place, verdict in sorted(known.verdicts.items())}


def stop_after(count: int, evaluation: Evaluation, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation, interrupted when it has written so many lines."""
    with interrupted_after(count, monkeypatch), pytest.raises(KeyboardInterrupt):
        finish(evaluation, path, resume=True)


def settled(path: Path) -> list[int]:
    """The examples that the lines of a journal settle, in their order."""
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
    attacks_survived=st.integers(0, 4),
)


@given(written=st.lists(verdicts, max_size=20), cut=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_read_whatever_a_kill_cut_off(
    written: list[Verdict], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal"))
    journal.open({}, resume=False)
    with journal.writer("0001") as writer:
        for verdict in written:
            writer.verdict(verdict)
    (part,) = journal.path.glob("part-*")
    whole = part.read_bytes()
    part.write_bytes(whole[: max(0, len(whole) - cut)])
    left = part.read_bytes().count(b"\n")
    expected: dict[int, Verdict] = {}
    for verdict in written[:left]:
        if verdict.example not in expected or expected[verdict.example].verdict is None:
            expected[verdict.example] = verdict
    assert journal.read().verdicts == expected


def test_a_line_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.writer("0001") as writer:
        writer.verdict(Verdict(0, "robust"))
        writer.verdict(Verdict(1, "robust"))
    (part,) = tmp_path.glob("part-*")
    part.write_text(part.read_text().replace('"example": 0', '"example": '))
    with pytest.raises(SamBenchError, match=r"part-0001-0000\.jsonl, line 1, is damaged"):
        journal.read()


def test_a_journal_is_read_and_a_bundle_written_without_holding_all_of_them(tmp_path: Path) -> None:
    count, image = 64, torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    journal = Journal(tmp_path)
    with journal.writer("0001") as writer:
        for place in range(count):
            writer.verdict(Verdict(place, "pgd", 0, image + place), witness=True)
    (part,) = tmp_path.glob("part-*")
    size = count * image.nbytes
    assert part.stat().st_size > size / 2
    plain, peak = _peak(lambda: journal.read(witnesses=False))
    assert len(plain.verdicts) == count and peak < size / 4

    known = journal.read()
    _, peak = _peak(lambda: write_witnesses(tmp_path / "bundle.npz", known, {"norm": "Linf"}))
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
    evaluation = evaluation_of(nearest, digits(40), attack, batch_size=16)
    whole = finish(evaluation, tmp_path / "whole")
    path = tmp_path / "parts"
    for after in (0, 7, 12):
        stop_after(after, evaluation, path, monkeypatch)
    again = finish(evaluation, path, resume=True)
    assert names(again) == names(whole) and again.doubts == whole.doubts
    assert sorted(settled(path)) == list(range(40)), "no example is settled twice"


def test_stopped_while_it_tells_verdicts_that_depend_on_the_batch_it_begins_anew(
    nearest: Nearest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = AutoAttack(version="custom", suite=("apgd-ce",), rng="upstream")
    evaluation = evaluation_of(nearest, digits(40), attack, batch_size=16)
    whole = finish(evaluation, tmp_path / "whole")
    stop_after(25, evaluation, tmp_path / "parts", monkeypatch)
    before = settled(tmp_path / "parts")
    again = finish(evaluation, tmp_path / "parts", resume=True)
    assert len(before) > 20 and settled(tmp_path / "parts") == settled(tmp_path / "whole")
    assert names(again) == names(whole)
    # Stopped when all was told, it has nothing more to do.
    before = settled(tmp_path / "parts")
    assert names(finish(evaluation, tmp_path / "parts", resume=True)) == names(whole)
    assert settled(tmp_path / "parts") == before


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from evaluation_samples import CPU, Nearest, digits, evaluation_of
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.evaluation import Journal, run_evaluation
from sam_bench.progress import SilentReporter

folder, kills = Path(sys.argv[2]), int(sys.argv[3])
suite = AutoAttack(version="custom", suite=("apgd-ce", "apgd-dlr"))
evaluation = evaluation_of(Nearest(), digits(16), suite, batch_size=8)

def work(path):
    return run_evaluation(evaluation, Journal(path), resume=True, workers=1, device=CPU, reporter=SilentReporter())

def forked(path):
    child = os.fork()
    if child == 0:
        try:
            work(path)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return child

def verdicts(path):
    return {place: each.verdict for place, each in Journal(path).read().verdicts.items()}

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
        ({"eps": Radius("8/255")}, "eps = '16/255' and this command gives '8/255'"),
        ({"seed": 4}, "seed = 3 and this command gives 4"),
        ({"attack": PGDAttack(steps=6)}, "settings = "),
        ({"attack": FGSMAttack()}, "attack = 'pgd' and this command gives 'fgsm'"),
        ({"test": digits(20)}, "dataset_fingerprint = "),
        ({"norm": "L2"}, "norm = 'Linf' and this command gives 'L2'"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_an_evaluation_of_something_else_is_not_continued(
    changes: dict[str, Any], field: str, nearest: Nearest, tmp_path: Path
) -> None:
    begun = evaluation_of(nearest, digits(30))
    finish(begun, tmp_path)
    given = {"attack": begun.attack, "norm": begun.norm, "eps": begun.eps, "seed": begun.seed, "test": begun.test}
    given |= changes
    other = evaluation_of(nearest, given.pop("test"), given.pop("attack"), **given)
    with pytest.raises(InputError, match=rf"cannot resume .*it was begun with {field}"):
        finish(other, tmp_path, resume=True)
    with pytest.raises(InputError, match=r"holds an evaluation that was not finished: add --resume"):
        finish(begun, tmp_path)


HOLDS = """
import sys
from pathlib import Path
from sam_bench.evaluation import Journal

with Journal(Path(sys.argv[1])).claimed():
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_an_evaluation_under_way_is_refused_to_another_process_until_it_ends(nearest: Nearest, tmp_path: Path) -> None:
    evaluation, folder = evaluation_of(nearest, digits(4)), tmp_path / "a.progress"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match=rf"a.progress is in use by process {holder.pid} on .*; wait for it, or"):
            finish(evaluation, folder, resume=True)
        assert [file.name for file in folder.iterdir()] == ["in-use"]
        holder.kill()
        holder.wait()
    assert len(finish(evaluation, folder).verdicts) == 4
    assert not (folder / "in-use").exists()


@pytest.mark.slow
def test_processes_that_share_the_examples_find_what_one_finds(nearest: Nearest, tmp_path: Path) -> None:
    evaluation = evaluation_of(nearest, digits(40), SUITE, batch_size=16)
    alone = finish(evaluation, tmp_path / "alone")
    shared = finish(evaluation, tmp_path / "shared", workers=2)
    assert names(shared) == names(alone)
    assert len(list((tmp_path / "shared").glob("part-*"))) == 2


def test_a_module_that_cannot_be_pickled_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    class Local(Nearest):
        pass

    evaluation = evaluation_of(Local(), digits(10))
    with pytest.raises(InputError, match=r"workers=2 needs a module that can be pickled, and nearest cannot \(.*Local"):
        finish(evaluation, tmp_path / "journal", workers=2)
    assert not (tmp_path / "journal").exists()
    assert len(finish(evaluation, tmp_path / "journal").verdicts) == 10


def test_a_missing_compiler_is_told_before_anything_is_begun(
    nearest: Nearest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    evaluation = evaluation_of(nearest, digits(10), AutoAttack(compile="on"))
    with pytest.raises(InputError, match=r"compile='on': there is no C\+\+ compiler"):
        finish(evaluation, tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_what_depends_on_the_batch_is_not_shared(nearest: Nearest, tmp_path: Path) -> None:
    reference = evaluation_of(nearest, digits(10), AutoAttack(engine="reference"))
    with pytest.raises(InputError, match=r"\(pyautoattack .*\) cannot be shared among processes"):
        finish(reference, tmp_path, workers=2)


@pytest.mark.parametrize("setting", [{"engine": "reference"}, {"rng": "upstream"}], ids=str)
def test_verdicts_that_depend_on_the_batch_are_told_at_the_end(
    setting: dict[str, Any], nearest: Nearest, tmp_path: Path
) -> None:
    evaluation = evaluation_of(nearest, digits(30), AutoAttack(version="custom", suite=("apgd-ce",), **setting))
    place = Workplace(evaluation.model.module, evaluation.attack, tmp_path, "0001", keep_witnesses=False)
    (shard,) = evaluation.shards({}, list(range(30)), 1)
    told: list[Verdict] = []
    early: list[int] = []
    early_or_late = {"told": told.append, "doubted": lambda _: None, "progress": lambda _: early.append(len(told))}
    search(shard, place, device=CPU, **early_or_late)
    assert {each.verdict for each in told} > {"apgd-ce"} and len({each.example for each in told}) == 30
    assert set(early) == {0}


def test_witnesses_are_kept_where_they_are_asked_for(nearest: Nearest, tmp_path: Path) -> None:
    evaluation = evaluation_of(nearest, digits(30))
    known = finish(evaluation, tmp_path, keep_witnesses=True)
    x = digits(30).images.float() / 255
    broken = [place for place, verdict in known.verdicts.items() if verdict.verdict == "pgd"]
    assert broken
    for place in broken:
        witness = known.verdicts[place].witness
        assert witness is not None and witness.dtype == torch.float32
        assert float((witness - x[place]).abs().max()) <= 16 / 255 + 1e-6
        assert int(nearest(witness[None]).argmax(1)) != int(digits(30).labels[place])


@pytest.mark.slow
def test_the_curve_falls_carries_over_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    api.train(
        "standard",
        "digits",
        arch="preactresnet10",
        arch_options={"width": 4},
        image_size=8,
        settings={"epochs": 2, "crop_padding": 0, "flip": False},
        name="tiny",
        limit_train=400,
    )
    options: dict[str, Any] = {"attack": "pgd", "settings": {"steps": 3}, "n_examples": 80, "save_adversarial": True}
    radii = ["0.1", "4/255", "16/255"]
    curve = api.evaluate_curve("tiny", radii, **options)
    assert [str(record.eps) for record in curve] == ["4/255", "16/255", "0.1"]
    robust = [record.robust_accuracy for record in curve]
    assert robust == sorted(robust, reverse=True) and robust[0] > robust[-1]
    for smaller, larger in itertools.pairwise(curve):
        broken = {place for place, verdict in enumerate(smaller.verdicts) if verdict == "pgd"}
        assert larger.carried == len(broken)
        assert all(larger.verdicts[place] == "pgd" for place in broken)
    alone = api.evaluate("tiny", eps="4/255", **options, output=tmp_path / "alone.json")
    assert alone.verdicts == curve[0].verdicts and alone.carried == curve[0].carried == 0
    folder = tmp_path / "evaluations" / "tiny"
    assert not list(folder.glob("*.progress"))
    bundle = np.load(folder / "pgd-steps3-Linf-4over255-n80.adversarial.npz")
    assert len(bundle["index"]) == len(bundle["x_adv"]) == alone.verdicts.count("pgd")
    # The second of three is missing: resumed, the others are taken as they are.
    before = (folder / "pgd-steps3-Linf-4over255-n80.json").read_bytes()
    (folder / "pgd-steps3-Linf-16over255-n80.json").unlink()
    again = api.evaluate_curve("tiny", radii, **options, resume=True)
    assert [record.verdicts for record in again] == [record.verdicts for record in curve]
    assert (folder / "pgd-steps3-Linf-4over255-n80.json").read_bytes() == before
    # What is in the way at the second is said before anything is done at the first.
    bundle_file = folder / "pgd-steps3-Linf-4over255-n80.adversarial.npz"
    bundle_file.unlink()
    with pytest.raises(InputError, match=r"^--save-adversarial: .*4over255-n80\.json is finished, and .* not kept"):
        api.evaluate_curve("tiny", radii, **options, resume=True)
    (folder / "pgd-steps3-Linf-16over255-n80.progress").mkdir()
    (folder / "pgd-steps3-Linf-16over255-n80.progress" / "part-0001-0000.jsonl").write_text("")
    with pytest.raises(InputError, match=r"16over255-n80\.progress holds an evaluation that was not finished"):
        api.evaluate_curve("tiny", radii, **options)
    assert not bundle_file.exists() and not list(folder.glob("*4over255*.progress"))


@pytest.mark.slow
def test_torchrun_shares_an_evaluation_and_writes_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    api.train(
        "standard",
        "digits",
        arch="preactresnet10",
        arch_options={"width": 2},
        image_size=8,
        settings={"epochs": 1, "crop_padding": 0, "flip": False},
        name="tiny",
        limit_train=200,
    )
    alone = api.evaluate("tiny", attack="pgd", eps="16/255", n_examples=51, output=tmp_path / "alone.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sam_bench"]
    command += ["evaluate", "tiny", "--attack", "pgd", "--eps", "16/255", "--n-examples", "51", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # one object: one of the processes prints
    assert printed["verdicts"] == alone.verdicts
    assert done.stderr.count("record written to") == 1
    folder = tmp_path / "evaluations" / "tiny"
    assert [path.name for path in folder.iterdir()] == ["pgd-Linf-16over255-n51.json"]
