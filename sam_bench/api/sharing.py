"""`push_model` and `pull_model`: the zoo and the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sam_bench import zoo as zoos
from sam_bench.api.record_files import default_record_folder
from sam_bench.api.specs.checks import StrPath
from sam_bench.errors import InputError
from sam_bench.records import EvaluationRecord, ModelCard, read_record
from sam_bench.zoo.hub import Pulled, foreign, pull, push


def push_model(
    model: str,
    repo: str,
    *,
    records: Sequence[StrPath] | None = None,
    zoo: StrPath | None = None,
    private: bool = False,
    replace: bool = False,
) -> str:
    """Put a model of the zoo on the Hugging Face Hub, with its card and its records.

    Asked again after a failure, it sends no large file twice.

    Args:
        model: A name in the zoo.
        repo: `USER/REPO`; made if it is not there.
        records: Evaluations of this model on its card's data set; default those in `evaluations/<model>`.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        private: Make a repository that only its owner sees.
        replace: Let the model replace another one in the repository.

    Returns:
        The address of the commit.

    Raises:
        InputError: There is no such model, a record does not fit its card, two have one name, or the repository holds
            another model.
        SamBenchError: The weights are damaged, or the Hub refuses.
    """
    store = _store(zoo)
    card = store.find(model)
    paths = own_records(card) if records is None else [Path(each) for each in records]
    return push(store, zoos.full_name(card), repo, records=paths, private=private, replace=replace)


def pull_model(
    repo: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    zoo: StrPath | None = None,
    evaluations: StrPath | None = None,
) -> Pulled:
    """Fetch a model that `push_model` put on the Hugging Face Hub, checked against its card.

    Asked again after a failure, it goes on where it was.

    Args:
        repo: `USER/REPO`.
        name: What the zoo calls it; default as on its card.
        revision: A commit, tag or branch; default the newest.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        evaluations: Folder for its records; default `evaluations/<name>`.

    Raises:
        InputError: The repository holds no model of sam-bench, the zoo has another one of that name, or the folder
            another record.
        SamBenchError: A checksum is not the card's, or the Hub cannot be reached; nothing is in the zoo then.
    """
    folder = None if evaluations is None else Path(evaluations)
    return pull(_store(zoo), repo, name=name, revision=revision, evaluations=folder)


def _store(zoo: StrPath | None) -> zoos.Zoo:
    return zoos.Zoo(zoos.zoo_dir(zoo))


def own_records(card: ModelCard) -> list[Path]:
    """The records that fit the card where `evaluate` writes them; those of other data are left out."""
    found = []
    for path in sorted(default_record_folder(card.name).glob("*.json")):
        try:
            record = read_record(path, EvaluationRecord)
        except InputError:
            continue  # another file that the user keeps there
        if foreign(card, record) is None:
            found.append(path)
    return found
