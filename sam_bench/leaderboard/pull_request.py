"""`check_pull_request`: verify the entries that a branch adds or changes, and refuse everything else that it touches.

The branch's files are read as data; nothing of it is run.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sam_bench.errors import InputError, shortened
from sam_bench.leaderboard.cards import check_weights, find_card
from sam_bench.leaderboard.entries import StoredEntry, read_entries, read_entry
from sam_bench.leaderboard.evidence import evidence_files
from sam_bench.leaderboard.files import read_checked, shown
from sam_bench.leaderboard.labels import percent
from sam_bench.leaderboard.verification import manifest_path, report_path
from sam_bench.leaderboard.verify import Verification
from sam_bench.records import NAME_PATTERN, ModelCard

_PLAIN_FILE = "100644"
_BOARDS = "leaderboards"
_ENTRY = re.compile(rf"{_BOARDS}/{NAME_PATTERN}/{NAME_PATTERN}/{NAME_PATTERN}\.json")


@dataclass(frozen=True)
class PullRequestCheck:
    """What checking a branch found.

    Attributes:
        entries: What verifying each entry that it adds or changes found.
        refused: Path to reason, of files that it must not touch.
    """

    entries: tuple[Verification, ...]
    refused: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every entry passed and nothing else was touched."""
        return not self.refused and all(entry.passed for entry in self.entries)

    def markdown(self) -> str:
        """A table for a comment; texts that others wrote cannot leave their cell."""
        lines = [
            "| entry | verdict | clean | robust, claimed | at most | at least | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [line for entry in self.entries for line in _rows(entry)]
        lines += [f"| {_cell(path)} | **refused** | | | | | {_cell(why)} |" for path, why in self.refused.items()]
        if not self.entries and not self.refused:
            return "This branch touches no entry of the leaderboard.\n"
        refuted = self.refused or any(entry.refuted for entry in self.entries)
        unshown = (
            "**Refused**, for the reasons below." if refuted else "Nothing is refuted, but not everything is shown."
        )
        verdict = "Every entry was verified." if self.passed else unshown
        return "\n".join([verdict, "", *lines]) + "\n"


def _rows(entry: Verification) -> list[str]:
    name = _cell(entry.path.name.removesuffix(".json"))
    if entry.refuted:
        return [f"| {name} | **refused** | | | | | {_cell(entry.reason)} |"]
    rows = {row.record: row for row in read_entry(entry.path).entry.sam_bench.rows}
    lines = []
    for shown_row in entry.rows:
        row = rows[shown_row.record]
        at_most = "" if shown_row.at_most is None else percent(shown_row.at_most)
        at_least = "" if shown_row.audit is None else percent(shown_row.audit.at_least)
        what = _cell(f"{row.attack} {row.norm} {row.eps}, {row.n_examples:,} examples")
        numbers = f"{percent(row.clean_accuracy)} | {percent(row.robust_accuracy)} | {at_most} | {at_least}"
        lines.append(f"| {name} | {shown_row.state} | {numbers} | {what} |")
    if not entry.passed:
        lines.append(f"| {name} | not shown | | | | | {_cell(entry.reason)} |")
    return lines


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table: as code, so that neither markup nor a mention is acted on."""
    plain = re.sub(r"\s+", " ", shown(shortened(text, 600))).replace("`", "'").replace("|", "¦")
    return f"`{plain}`"


def check_pull_request(repository: Path, base: str, verify: Callable[[Path], Verification]) -> PullRequestCheck:
    """Verify the entries that the checked-out branch adds or changes against `base`.

    It may add and change entries, with their records, adversarial examples and manifests, and the cards and weights of
    their models. It must not touch anything else, verification reports and tables least of all.

    Args:
        repository: A clean checkout of the branch, with `leaderboards` and `model_zoo`.
        base: The commit or branch that it is to be merged into.
        verify: Verifies an entry.

    Raises:
        InputError: Not a git repository, no such base, or the checkout differs from its commit.
    """
    changed = _changed(repository, base)
    refused = {path: why for path, why in changed.items() if why}
    if refused:  # a link, for one: nothing is opened
        return PullRequestCheck((), refused)
    entries = [path for path in changed if _ENTRY.fullmatch(path)]
    # A new manifest alone changes an entry, too: it has more evidence.
    entries += [path for path in _entries(repository) if path not in changed and _manifest(path) in changed]
    allowed = set(entries)
    for path in entries:
        try:
            allowed |= _files_of(repository, repository / path)
            _check_identity(repository, base, path)
        except InputError as error:
            refused[path] = str(error)
    for path in changed.keys() - allowed:
        refused[path] = (
            "belongs to no entry that this branch adds or changes: a submission holds entries, their records, "
            "adversarial examples and manifests, and their models in model_zoo"
        )
    for name, files in _left_alone(repository, entries):
        for path in files & changed.keys():
            refused[path] = f"belongs to {name}, whose entry this branch leaves as it is"
    if refused:
        return PullRequestCheck((), dict(sorted(refused.items())))
    return PullRequestCheck(tuple(verify(repository / path) for path in entries), {})


def _git(repository: Path, *arguments: str) -> str:
    """What git prints; no hook, filter or helper of the repository is run."""
    command = ["git", "-C", str(repository), "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"git cannot be run in {repository}: {error}") from error
    if done.returncode:
        raise InputError(f"git {arguments[0]} in {repository}: {shown(done.stderr.decode(errors='replace').strip())}")
    return done.stdout.decode("utf-8", "surrogateescape")


def _changed(repository: Path, base: str) -> dict[str, str]:
    """Each path that the branch changes, and why it must not; '' where that is for others to say."""
    if base.startswith("-"):
        raise InputError("must be a commit or a branch", field="base", value=base)
    if _git(repository, "rev-parse", "HEAD:./") != _git(repository, "rev-parse", "HEAD^{tree}"):
        raise InputError(
            "is a folder inside a checkout; give the checkout itself", field="repository", value=str(repository)
        )
    if _git(repository, "status", "-s", "-uno"):
        raise InputError(f"{repository} has changes that are not committed: check a clean checkout")
    listed = _git(repository, "diff-tree", "-r", "-z", _merge_base(repository, base), "HEAD")
    changed = {}
    parts = listed.split("\0")
    for about, path in zip(parts[::2], parts[1::2], strict=False):
        _, mode, _, _, status = about.split(" ")
        why = ""
        if status == "D":
            why = "was deleted"
        elif mode != _PLAIN_FILE:
            why = f"is not a plain file (mode {mode})"
        changed[path] = why
    return changed


def _merge_base(repository: Path, base: str) -> str:
    """The last commit that the branch shares with what it is to be merged into."""
    return _git(repository, "merge-base", base, "HEAD").strip()


def _entries(repository: Path) -> list[str]:
    return [path.relative_to(repository).as_posix() for path in sorted((repository / _BOARDS).glob("*/*/*.json"))]


def _manifest(entry: str) -> str:
    return manifest_path(Path(entry)).as_posix()


def _left_alone(repository: Path, changed: Sequence[str]) -> Iterator[tuple[str, set[str]]]:
    """Each entry that a branch does not change, with its report and the files that it rests on, if its card is here."""
    for name in _entries(repository):
        if name not in changed:
            path = repository / name
            with suppress(InputError, ValueError):  # of another repository
                report = report_path(path).resolve().relative_to(repository.resolve()).as_posix()
                yield path.stem, {report, *_files_of(repository, path)}


def _files_of(repository: Path, file: Path) -> set[str]:
    """Every path that may come with an entry: what it rests on, and its manifest."""
    stored = read_entry(file)
    card_file, root = stored.card_path(), repository.resolve()
    if not (card_file.is_file() and card_file.resolve().is_relative_to(root)):
        raise InputError(f"its card {shown(stored.entry.sam_bench.card)!r} is not in the repository")
    card, _ = read_checked(card_file, ModelCard)
    found = set()
    for path in (manifest_path(file), *evidence_files(stored, card).values()):
        real = path.resolve()
        if real.is_relative_to(root):
            found.add(real.relative_to(root).as_posix())
    return found


def _same_weights(one: StoredEntry, other: StoredEntry, zoo: Path) -> bool:
    """Whether two entries are of the same weights, also where these were saved again in another file."""
    if one.entry.sam_bench.checkpoint_sha256 == other.entry.sam_bench.checkpoint_sha256:
        return True
    own, others = (find_card(each, zoo).card for each in (one, other))
    if own is None or others is None or own.parameters != others.parameters:
        return False  # most differ in this: their weights need not be read
    digest = check_weights(own, one.card_path())
    return digest != "" and digest == check_weights(others, other.card_path())


def _check_identity(repository: Path, base: str, path: str) -> None:
    """Refuse an entry that takes the place of another model, or that is another model under a new name."""
    file = repository / path
    stored = read_entry(file)
    own = stored.entry.sam_bench
    folder = repository / _BOARDS
    for other in read_entries(folder):
        there = other.entry.sam_bench
        if other.path != file and _same_weights(stored, other, repository / "model_zoo"):
            raise InputError(f"has the weights of {there.name}, which is on the board already: a model is listed once")
    merge_base = _merge_base(repository, base)
    if not _git(repository, "ls-tree", merge_base, "--", path):
        return
    before = json.loads(_git(repository, "show", f"{merge_base}:{path}"))
    if before["sam_bench"]["checkpoint_sha256"] != own.checkpoint_sha256:
        raise InputError("is the entry of another model than before: list a new model under a name of its own")
