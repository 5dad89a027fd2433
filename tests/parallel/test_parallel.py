"""Jobs side by side: results in order, progress forwarded, errors and deaths told, nobody left behind."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import parallel_jobs
import pytest
import torch
from PIL import Image

from sam_bench.errors import InputError, SamBenchError, StoppedError
from sam_bench.parallel import Job, run_jobs, stream_jobs, usable_cores, why_not_sent
from sam_bench.progress import PlainReporter, SilentReporter


def squares(count: int) -> list[Job[tuple[int, int]]]:
    return [Job(f"job{number}", parallel_jobs.square, {"number": number}) for number in range(count)]


def test_results_come_in_the_jobs_order_from_processes_that_share_the_cores() -> None:
    stream = io.StringIO()
    results = run_jobs(squares(3), workers=2, reporter=PlainReporter(stream))
    assert [value for value, _ in results] == [0, 1, 4]
    assert len({pid for _, pid in results} | {os.getpid()}) == 4
    threads: list[Job[int]] = [Job(name, parallel_jobs.threads, {}) for name in "ab"]
    assert set(run_jobs(threads, workers=2, reporter=SilentReporter())) == {max(1, usable_cores() // 2)}
    lines = stream.getvalue().splitlines()
    assert {"squaring 0", "squaring 1", "squaring 2"} <= set(lines)
    assert any(line.startswith("job2 digits 2/2") and line.endswith("4") for line in lines)


def test_one_worker_means_this_process() -> None:
    assert {pid for _, pid in run_jobs(squares(2), workers=1, reporter=SilentReporter())} == {os.getpid()}


def test_a_refusal_in_a_worker_is_the_same_refusal_here_and_ends_the_others(tmp_path: Path) -> None:
    jobs = [Job("slow", parallel_jobs.linger, {"folder": tmp_path}), Job("bad", parallel_jobs.refuse, {})]
    with pytest.raises(InputError, match="--eps 8 is too large"):
        run_jobs(jobs, workers=2, reporter=SilentReporter())
    pid_file = tmp_path / "pid"
    if pid_file.exists():  # it may have been ended before it began
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (parallel_jobs.fail, "first failed: ZeroDivisionError: by hand"),
        (parallel_jobs.die, r"the process of first died \(exit code -9\); if it ran out of memory, use fewer workers"),
        (parallel_jobs.leave, r"the process of first died \(exit code 3\); with workers=1 its error is seen where it"),
    ],
)
def test_an_unforeseen_end_names_the_job(function: object, message: str) -> None:
    with pytest.raises(SamBenchError, match=message):
        run_jobs([Job("first", function, {})], workers=2, reporter=SilentReporter())  # type: ignore[arg-type]


def test_what_cannot_be_sent_is_known_without_a_copy_of_its_tensors() -> None:
    class Local(torch.nn.Linear):
        pass

    assert why_not_sent(torch.nn.Linear(3, 2)) is None
    assert why_not_sent(torch.nn.Sequential(Local(3, 2))) is None
    assert why_not_sent({"hook": lambda x: x}) is None
    assert "generator" in (why_not_sent({"hook": (x for x in "ab")}) or "")
    assert why_not_sent(torch.empty(1 << 40, device="meta")) is None


UNGUARDED = """
import sam_bench, torch
class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
    def forward(self, x):
        return self.layer(x.flatten(1))
record = sam_bench.evaluate(Linear(), attack="fgsm", eps="1/255", dataset="digits-8px", n_examples=8, workers=2)
print("ended", record.n_examples)
"""
# What is defined in a session is sent as what is defined in a script; this takes no PyTorch.
SESSION = """
from sam_bench.parallel import Job, run_jobs
from sam_bench.progress import SilentReporter
def double(number, *, reporter):
    return 2 * number
jobs = [Job(str(number), double, {"number": number}) for number in (1, 3)]
print("ended", sum(run_jobs(jobs, workers=2, reporter=SilentReporter())))
"""


@pytest.mark.parametrize("way", ["script", "-c", "-"])
def test_a_script_without_a_guard_and_a_session_may_have_workers(way: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    arguments, text = {"script": ([str(script)], None), "-c": (["-c", SESSION], None), "-": (["-"], SESSION)}[way]
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (0, "ended 8\n"), ended.stderr


def test_what_jobs_yield_comes_as_it_is_yielded_and_an_error_after_it(tmp_path: Path) -> None:
    def count(first: int, to: int) -> Iterator[tuple[int, torch.Tensor]]:
        for number in range(first, to):
            yield number, torch.full((3,), number)
        if to == 9:
            raise InputError("9 is too many")

    def wait_for_me(go: Path) -> Iterator[str]:
        yield "waiting"
        while not go.exists():
            time.sleep(0.01)
        yield "done"

    for workers in (1, 2):
        jobs = [Job(name, count, {"first": 1, "to": to}) for name, to in (("a", 2), ("b", 3), ("c", 9))]
        found = []
        with pytest.raises(InputError, match="9 is too many"):
            for name, (number, tensor) in stream_jobs(jobs, workers=workers):
                assert torch.equal(tensor, torch.full((3,), number))
                found.append((name, number))
        assert {("a", 1), ("b", 1), ("b", 2), ("c", 8)} <= set(found) and ("a", 0) not in found
    told = stream_jobs([Job("a", wait_for_me, {"go": tmp_path / "go"})], workers=2)
    assert next(told) == ("a", "waiting")
    (tmp_path / "go").touch()
    assert list(told) == [("a", "done")]


def test_who_stops_listening_ends_the_workers(tmp_path: Path) -> None:
    def endless() -> Iterator[int]:
        while True:
            yield os.getpid()

    told = stream_jobs([Job("a", endless, {}), Job("b", endless, {})], workers=2)
    pids = {pid for _, (_, pid) in zip(range(200), told, strict=False)}
    told.close()  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_death_that_is_provided_for_does_not_end_the_others() -> None:
    jobs = [Job("first", parallel_jobs.die, {}), Job("second", parallel_jobs.square, {"number": 3})]
    results = run_jobs(jobs, workers=1 + 1, reporter=SilentReporter(), died=lambda name, why: (name, why))  # type: ignore[arg-type, list-item]
    assert results[0][0] == "first" and "exit code -9" in results[0][1]  # type: ignore[index]
    assert results[1][0] == 9  # type: ignore[index]


def test_a_run_that_was_stopped_says_so_across_processes_with_its_exit_code() -> None:
    error = pickle.loads(pickle.dumps(StoppedError("stopped by SIGTERM", 15)))
    assert isinstance(error, StoppedError) and (str(error), error.exit_code) == ("stopped by SIGTERM", 143)


def test_what_a_worker_has_goes_from_job_to_job_and_never_to_two_at_a_time(tmp_path: Path) -> None:
    # The first is at work until all others are done: the only other worker does them, one after the other.
    done = [tmp_path / str(number) for number in range(4)]
    arguments = [{"done": each, "wait_for": done[1:] if each == done[0] else []} for each in done]
    jobs = [Job(each["done"].name, parallel_jobs.tell_place, each) for each in arguments]  # type: ignore[attr-defined]
    places = run_jobs(jobs, workers=2, reporter=SilentReporter(), own=lambda worker: {"place": worker})
    assert places == [0, 1, 1, 1]
    assert run_jobs(jobs[1:], workers=1, reporter=SilentReporter(), own=lambda worker: {"place": worker}) == [0, 0, 0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six test images of two classes."""
    for number in range(6):
        for part in ("train", "test"):
            path = tmp_path / "images" / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "images"


@pytest.mark.slow
def test_a_worker_may_have_its_images_read_by_a_process_of_its_own(images: Path) -> None:
    jobs = [Job(name, parallel_jobs.read_images, {"images": images}) for name in ("first", "second")]
    assert run_jobs(jobs, workers=2, reporter=SilentReporter()) == [[0, 0, 0, 1, 1, 1]] * 2


def test_a_worker_that_is_told_to_stop_may_write_what_it_has_but_not_go_on(tmp_path: Path) -> None:
    jobs: list[Job[None]] = [
        Job("late", parallel_jobs.stop_late, {"folder": tmp_path}),
        Job("bad", parallel_jobs.refuse_later, {"wait_for": tmp_path / "pid"}),
    ]
    started = time.monotonic()
    with pytest.raises(InputError, match="--eps 8 is too large"):
        run_jobs(jobs, workers=2, reporter=SilentReporter())
    assert (tmp_path / "written").exists() and time.monotonic() - started < 300
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


LINGERING = """
import signal, sys
from pathlib import Path
import parallel_jobs
from sam_bench.parallel import Job, run_jobs
from sam_bench.progress import SilentReporter

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
folders = [Path(each) for each in sys.argv[2:]]
jobs = [Job(each.name, getattr(parallel_jobs, sys.argv[1]), {"folder": each}) for each in folders]
run_jobs(jobs, workers=2, reporter=SilentReporter())
"""


@contextmanager
def lingering(function: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose two workers are at work; left with all of them ended, or the test has failed."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    paths = [str(Path(__file__).parent), *sys.path]
    parent = subprocess.Popen(
        [sys.executable, "-c", LINGERING, function, *map(str, folders)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    pids = [folder / "pid" for folder in folders]
    until = time.monotonic() + 300
    while not all(each.exists() and each.read_text() for each in pids):
        assert parent.poll() is None and time.monotonic() < until, "the workers have not begun"
        time.sleep(0.05)
    yield parent
    try:
        # The workers have its stdout, too, and so has who reads for them: that comes to its end with the last of them.
        parent.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        for each in pids:
            os.kill(int(each.read_text()), signal.SIGKILL)
        pytest.fail("the workers went on without their parent")


@pytest.mark.slow
@pytest.mark.parametrize("function", ["linger", "linger_while_images_are_read"])
def test_workers_end_when_their_parent_is_killed(function: str, tmp_path: Path, images: Path) -> None:
    with lingering(function, tmp_path) as parent:
        parent.kill()


@pytest.mark.slow
def test_workers_end_with_what_reads_for_them_at_ctrl_c(tmp_path: Path, images: Path) -> None:
    with lingering("linger_while_images_are_read", tmp_path) as parent:
        parent.send_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_second_ctrl_c_waits_for_no_worker(tmp_path: Path) -> None:
    with lingering("never_stop", tmp_path) as parent:
        parent.send_signal(signal.SIGINT)
        time.sleep(2)
        assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
