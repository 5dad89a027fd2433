"""`add_evidence`: adversarial examples for rows of the leaderboard that were evaluated without keeping them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sam_bench import zoo as zoos
from sam_bench.api.specs.checks import StrPath
from sam_bench.api.verifying import images_of
from sam_bench.device import choose_device
from sam_bench.errors import InputError
from sam_bench.evaluation.adversarial import packed
from sam_bench.evaluation.refinding import find_again
from sam_bench.evaluation.replay import tested_by
from sam_bench.leaderboard.checks import CheckedEntry, check_entries
from sam_bench.leaderboard.entries import read_entry
from sam_bench.leaderboard.evidence import check_places, write_manifest
from sam_bench.leaderboard.examples import own_examples, share_with_larger, stored_examples
from sam_bench.leaderboard.verification import digest_of, report_path
from sam_bench.locks import claimed
from sam_bench.records import adversarial_path, write_atomic


def add_evidence(
    entry: StrPath,
    records: Sequence[str] = (),
    *,
    dataset: StrPath | None = None,
    data_dir: StrPath = Path("data"),
    zoo: StrPath | None = None,
    device: str = "auto",
) -> list[Path]:
    """Attack what rows call broken again, by AutoAttack, and keep the adversarial examples beside their records.

    What a row has already stays, and is not attacked.

    Args:
        entry: The entry's file, `<folder>/<dataset>/<threat>/<name>.json`.
        records: Rows, by the path of their record as the entry has it. Default all that lack adversarial examples.
        dataset: As for `verify_entry`, like all that follow.

    Returns:
        The files written. The entry has to be verified anew.

    Raises:
        InputError: The entry is not sound, it has no such row, an example is not broken again, or the entry
            has changed meanwhile.
    """
    stored = read_entry(Path(entry).absolute())
    begun = digest_of(stored.path)
    check_places(stored)
    (checked,) = check_entries([stored], None if zoo is None else Path(zoo))
    card = checked.found.card
    if card is None:
        raise InputError(f"{entry} has no card: {checked.found.missing}")
    _check_names(checked, records)
    where = choose_device(device)[0]
    module = zoos.load_model(stored.card_path(), device=where).module
    images = images_of(dataset, Path(data_dir))(card)
    found = stored_examples(checked.evidence, images)
    files = {}
    for at in sorted(range(len(found)), key=lambda at: checked.rows[at][1].eps):
        row, record = checked.rows[at]
        if record.broken.keys() <= found[at].keys() or (records and row.record not in records):
            continue
        test = tested_by(record, images)
        again = find_again(module, test, record, known=found[at], device=where)
        share_with_larger(checked.evidence, found, at, again.x_adv)
        own = own_examples(checked.evidence[at], images)
        path = adversarial_path(checked.evidence[at].path)
        files[path] = packed(replace(again, x_adv={**again.x_adv, **own}), test)
    if not files:
        return []
    with claimed(stored.path.parent):  # another process may be adding a row to the same entry
        if digest_of(stored.path) != begun:
            raise InputError(f"{entry} has changed since it was attacked: do it again")
        for path, content in files.items():
            write_atomic(path, content)
        write_manifest(stored, card)
        report_path(stored.path).unlink(missing_ok=True)  # it was about the entry as it was
    return list(files)


def _check_names(checked: CheckedEntry, records: Sequence[str]) -> None:
    names = [row.record for row, _ in checked.rows]
    strange = [name for name in records if name not in names]
    if strange:
        raise InputError(f"{checked.stored.path} has no row {strange[0]!r}, but {', '.join(names)}")
