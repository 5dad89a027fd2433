"""`sam-bench leaderboard check` on a git repository: one honest pull request passes, forged ones are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_board
import yaml
from planted_forgeries import PLANTED, turned
from tiny_board import Planted, class_means
from torch import Tensor

from sam_bench import api
from sam_bench.cli.main import main
from sam_bench.leaderboard.verification import report_path
from sam_bench.records import ROBUST

ROOT = Path(__file__).parents[2]
Check = Callable[..., tuple[int, str]]


class Repository:
    """A git repository with a board of one entry on `main`, in which pull requests are made as branches."""

    def __init__(self, root: Path, board: Planted) -> None:
        self.root = root
        self.board = board.copy(root)
        (root / "data").rename(root.with_name("data"))  # not part of the repository
        self.git("init", "--quiet", "--initial-branch=main")
        (root / "README.md").write_text("a board\n")
        (root / "evaluations").rename(root.with_name("evaluations"))
        self.commit("the board")
        self.git("checkout", "--quiet", "-b", "pull-request")

    def git(self, *arguments: str) -> None:
        who = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        subprocess.run(["git", "-C", str(self.root), *arguments], check=True, env={**os.environ, **who, **alone})

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)

    def submit(self, name: str = "n", scale: float = 0.9, **card: Any) -> Planted:
        """A new model's honest entry, not committed yet."""
        added = Planted(self.root, name).make(class_means() * scale, **card)
        for folder in ("data", "evaluations"):
            shutil.rmtree(self.root / folder)
        return added


@pytest.fixture
def repository(honest_board: Planted, tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository", honest_board)


@pytest.fixture
def check(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command on the branch: its exit code and its table."""

    def run(*options: str, commit: bool = True) -> tuple[int, str]:
        if commit:
            repository.commit("a pull request")
        where = ["--repository", str(repository.root), "--data-dir", str(repository.root.with_name("data"))]
        command = ["sam-bench", "leaderboard", "check", "--base", "main", *where, "--device", "cpu", *options]
        monkeypatch.setattr(sys, "argv", command)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out + err

    return run


def test_an_honest_pull_request_passes_and_gets_a_table(repository: Repository, check: Check) -> None:
    repository.submit()
    code, table = check("--audit", "1", "--beacon", "a later commit")
    assert code == 0, table
    lines = table.splitlines()
    assert lines[0] == "Every entry was verified." and len(lines) == 6
    assert lines[4].startswith("| `n` | audited | ") and "`autoattack Linf 24/255, 60 examples`" in lines[4]
    assert lines[5].startswith("| `n` | replayed | ") and "`pgd-20 Linf 12/255, 60 examples`" in lines[5]


def test_rows_may_be_added_to_an_entry(repository: Repository, check: Check) -> None:
    repository.board.edit(repository.board.card, lambda fields: fields.update(authors="Ada Lovelace"))
    repository.board.seal()
    assert check()[0] == 0


def test_adversarial_examples_alone_may_be_added_to_an_entry(repository: Repository, check: Check) -> None:
    board = repository.board
    bundle = board.pgd.with_suffix(".adversarial.npz")
    bundle.unlink()
    board.seal()
    repository.commit("a board with a row that is claimed")
    repository.git("branch", "--quiet", "--force", "main")
    api.add_evidence(
        board.entry, data_dir=repository.root.with_name("data"), zoo=board.root / "model_zoo", device="cpu"
    )
    code, table = check()
    assert code == 0 and bundle.exists(), table
    assert [line.split("|")[2].strip() for line in table.splitlines()[4:]] == ["replayed", "replayed"]


def _forged_claims(repository: Repository) -> None:
    board = repository.submit()
    board.judge(board.aa, turned("misclassified", ROBUST, 2))
    board.seal()


def _outside_the_ball(repository: Repository) -> None:
    PLANTED["perturbations half as large again"][0](repository.submit())


def _with_a_report(repository: Repository) -> None:
    board = repository.submit()
    (board.entry.parent / "records" / "n.verification.json").write_text("{}")


def _with_code(repository: Repository) -> None:
    repository.submit()
    (repository.root / "conftest.py").write_text("raise SystemExit\n")


def _another_entrys_record(repository: Repository) -> None:
    repository.submit()
    repository.board.edit(repository.board.aa, lambda fields: fields.update(seed=5))


def _deleted(repository: Repository) -> None:
    repository.submit()
    repository.board.entry.unlink()


def _link(repository: Repository) -> None:
    board = repository.submit()
    bundle = board.aa.with_suffix(".adversarial.npz")
    bundle.rename(repository.root.with_name("outside.npz"))
    bundle.symlink_to(repository.root.with_name("outside.npz"))


def _taken_over(repository: Repository) -> None:
    repository.submit("m", scale=0.8)


def _copied_model(repository: Repository) -> None:
    repository.submit("n", scale=1.0)


def _saved_again(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Repository], None]:
    """The same model, its weights in another file."""

    def forge(repository: Repository) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_board, "pack", lambda state: safetensors.torch.save(change(dict(state)), {"by": "n"}))
            repository.submit("n", scale=1.0)

    return forge


def _tables(repository: Repository) -> None:
    repository.submit()
    (repository.root / "leaderboards" / "leaderboard.md").write_text("| `n` | 100.00 |\n")


def _weights_over_anothers(repository: Repository) -> None:
    board, other = repository.submit(), repository.board.weights
    board.weights.rename(other)
    board.edit(board.card, lambda fields: fields["weights"].update(file=other.name))
    board.seal()


def _record_over_anothers(repository: Repository) -> None:
    board, other = repository.submit(), repository.board.aa
    for suffix in (".json", ".adversarial.npz"):
        board.aa.with_suffix(suffix).rename(other.with_suffix(suffix))
    board.aa = other
    board.seal()


def _record_over_a_report(repository: Repository) -> None:
    board = repository.submit()
    report = report_path(repository.board.entry)
    board.aa = board.aa.rename(report)
    board.seal()


def _climbing_card(repository: Repository) -> None:
    board = repository.submit()
    board.edit(board.entry, lambda fields: fields["sam_bench"].update(card="../" * 30 + "etc/passwd"))


def _markup(repository: Repository) -> None:
    repository.submit()
    (repository.root / "leaderboards" / "a|b`@all <b>.md").write_text("x")


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (_forged_claims, "has clean accuracy"),
        (_outside_the_ball, "lies outside ball or box"),
        (_with_a_report, "n.verification.json` | **refused** | | | | | `belongs to no entry"),
        (_with_code, "`conftest.py` | **refused** | | | | | `belongs to no entry"),
        (_another_entrys_record, "belongs to m, whose entry this branch leaves as it is"),
        (_deleted, "was deleted"),
        (_link, "is not a plain file (mode 120000)"),
        (_taken_over, "is the entry of another model than before"),
        (_copied_model, "has the weights of m, which is on the board already"),
        (_saved_again(dict), "has the weights of m, which is on the board already"),
        (
            _saved_again(lambda state: {key: value.double() for key, value in state.items()}),
            "has the weights of m, which is on the board already",
        ),
        (_weights_over_anothers, "belongs to m, whose entry this branch leaves as it is"),
        (_record_over_anothers, "belongs to m, whose entry this branch leaves as it is"),
        (_record_over_a_report, "belongs to m, whose entry this branch leaves as it is"),
        (_climbing_card, "is not in the repository"),
        (_tables, "leaderboard.md` | **refused**"),
        (_markup, "`leaderboards/a¦b'@all <b>.md` | **refused**"),
    ],
)
def test_a_forged_pull_request_is_refused_with_the_reason(
    repository: Repository, check: Check, forge: Callable[[Repository], None], reason: str
) -> None:
    forge(repository)
    code, table = check()
    assert code == 1 and table.startswith("**Refused**") and reason in table


def test_a_branch_without_entries_is_let_through_and_bad_usage_is_not(repository: Repository, check: Check) -> None:
    assert check(commit=False) == (0, "This branch touches no entry of the leaderboard.\n")
    (repository.root / "README.md").write_text("changed\n")
    code, message = check(commit=False)
    assert code == 2 and "has changes that are not committed" in message
    code, message = check("--base", "--output=x")
    assert code == 2 and "must be a commit or a branch" in message
    code, message = check("--repository", str(repository.root / "leaderboards"), commit=False)
    assert code == 2 and "is a folder inside a checkout; give the checkout itself" in message
    code, message = check("--base", "nowhere", commit=False)
    assert code == 2 and "git merge-base" in message


def test_the_workflow_runs_nothing_of_the_pull_request() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/leaderboard.yml").read_text())
    steps = workflow["jobs"]["verify"]["steps"]
    assert "ref" not in steps[0].get("with", {}) and steps[1]["with"]["path"] == "submission"
    scripts = [step["run"] for step in steps if "run" in step]
    assert any("leaderboard check --base" in script for script in scripts)
    # What others write is never put into a script's text, and their code is not installed.
    assert not any(
        "${{" in script or "pip install ./submission" in script or "cd submission" in script for script in scripts
    )
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
