"""`submit`: from a model and its records to an entry of the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sam_bench import zoo as zoos
from sam_bench.leaderboard import Submission, submit_entry


def submit(
    model: str,
    records: Sequence[Path],
    *,
    zoo: Path | None = None,
    folder: Path = Path("leaderboards"),
    replace: bool = False,
) -> Submission:
    """Make a leaderboard entry from a model's card and its records; no number is typed.

    Args:
        model: A name in the zoo.
        records: EvaluationRecords of exactly that checkpoint.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        folder: Folder of the leaderboards.
        replace: Let a record take the place of a row over more or other test examples, too.

    Returns:
        Where the entry is, RobustBench's `model_info` and the text of its "New Model" issue.

    Raises:
        InputError: A record is of another checkpoint or data set, it would replace a row over more or other test
            examples, or there is none by AutoAttack.
    """
    store = zoos.Zoo(zoos.zoo_dir(zoo))
    card = store.find(model)
    return submit_entry(card, store.card_path(card), list(records), folder=folder, replace=replace)
