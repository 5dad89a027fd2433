"""The Hugging Face Hub: a model with its card and records goes there by `push` and comes back by `pull`.

A repository holds

    model.safetensors                the weights, under the name that the Hub's tools look for
    sam-bench.json                   our card
    README.md                        the card for readers, with the Hub's model-index
    records/<name>.json              the evaluations, with a verdict for every example
    records/<name>.adversarial.npz   their adversarial examples, where they were kept
    .eval_results/sam-bench.yaml     their results in the Hub's Community Evals format

The only module that imports `huggingface_hub`. That keeps downloads in its cache, where a file that was cut short is
continued. Nothing enters the zoo before its checksum is that of the card.
"""

from __future__ import annotations

import filecmp
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sam_bench.errors import InputError, SamBenchError, shortened
from sam_bench.records import NAME_PATTERN, EvaluationRecord, ModelCard, adversarial_path, read_record, write_atomic
from sam_bench.zoo.names import full_name
from sam_bench.zoo.store import Zoo
from sam_bench.zoo.weights_check import read_weights, weights_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS, CARD, RECORDS = "model.safetensors", "sam-bench.json", "records"
RESULTS = ".eval_results/sam-bench.yaml"

HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "svhn": "ufldl-stanford/svhn",
}
"""Published data sets by their name on the Hub. Only their results have a Hub benchmark to be listed under."""

_LICENSES = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "gpl-3.0", "mit", "unknown")
"""Those that the Hub knows, as it writes them; it refuses a card with any other but "other"."""


@dataclass(frozen=True)
class Pulled:
    """What came from the Hub.

    Attributes:
        card: The model's card, as it is in the zoo now.
        path: Where the card is.
        records: Where the evaluations are.
    """

    card: ModelCard
    path: Path
    records: list[Path]


def push(
    store: Zoo, name: str, repo: str, *, records: Sequence[Path] = (), private: bool = False, replace: bool = False
) -> str:
    """Put a model of the zoo on the Hub, in one commit; large files that are there already are not sent again.

    Args:
        store: The zoo.
        name: The model's name there.
        repo: As for `sam_bench.push_model`, which says what is raised, like all that follow.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import EntryNotFoundError

    card = store.find(name)
    weights = read_weights(store.weights_path(card))
    _check_digest(card, weights, str(store.weights_path(card)))
    _refuse_twins(records)
    evaluations = {path.name: _record_of(card, path) for path in records}
    bundles = [bundle for bundle in map(adversarial_path, records) if bundle.is_file()]
    files: dict[str, str | bytes] = {
        WEIGHTS: weights,
        CARD: store.card_path(card).read_bytes(),
        "README.md": readme(card, repo, list(evaluations.values())),
        **{f"{RECORDS}/{path.name}": path.read_bytes() for path in (*records, *bundles)},
    }
    results = eval_results(card, repo, evaluations)
    if results:
        files[RESULTS] = yaml.safe_dump(results, sort_keys=False)
    with _told(f"put {full_name(card)} into {repo}"):
        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        there = [name for name in api.list_repo_files(repo) if name.startswith(f"{RECORDS}/") or name == RESULTS]
        try:
            other = read_record(Path(api.hf_hub_download(repo, CARD)), ModelCard)
        except (EntryNotFoundError, InputError):
            other = card
        if full_name(other) != full_name(card) and not replace:
            raise InputError(f"{repo} holds {full_name(other)}: name another repository, or give `replace=True`")
        operations: list[Any] = [
            CommitOperationAdd(path, content.encode() if isinstance(content, str) else content)
            for path, content in files.items()
        ]
        operations += [CommitOperationDelete(path) for path in there if path not in files]
        commit = api.create_commit(repo, operations, commit_message=f"sam-bench: {full_name(card)}")
    return str(commit.commit_url)


def pull(
    store: Zoo, repo: str, *, name: str | None = None, revision: str | None = None, evaluations: Path | None = None
) -> Pulled:
    """Fetch a model that `push` put on the Hub; asked again after a failure, it goes on where it was.

    Args:
        store: The zoo that it goes into.
        repo: As for `sam_bench.pull_model`, which says what is raised, like all that follow.
    """
    with _told(f"fetch {repo}"):
        api = _api()
        info = api.model_info(repo, revision=revision)
        files = [sibling.rfilename for sibling in info.siblings or []]
        missing = {CARD, WEIGHTS} - set(files)
        if missing:
            raise InputError(
                f"{repo} has no {min(missing)}: it was not pushed by sam-bench; a model of timm is evaluated as "
                f"timm:hf-hub:{repo}"
            )

        def fetched(path: str) -> Path:
            # Of one commit, whatever is pushed meanwhile.
            return Path(api.hf_hub_download(repo, path, revision=info.sha))

        with _cached(fetched(CARD)) as at:
            card = read_record(at, ModelCard)
        card = _renamed(card, name or card.name)
        store.check_place(card)
        with _cached(fetched(WEIGHTS)) as at:
            content = at.read_bytes()
            _check_digest(card, content, f"{repo}/{WEIGHTS}")
        found = {path: fetched(path) for path in files if re.fullmatch(rf"{RECORDS}/{NAME_PATTERN}\.json", path)}
        for path in found.values():
            with _cached(path) as at:
                _record_of(card, at)
        records = [Path(path).name for path in found]
        # Whoever wants to know replays them; here they are bytes.
        bundles = {str(adversarial_path(Path(path))) for path in found} & set(files)
        found |= {path: fetched(path) for path in sorted(bundles)}
        folder = evaluations or Path("evaluations") / card.name
        places = {folder / Path(path).name: at for path, at in found.items()}
        _check_places(places)
    store.adopt(card, content)
    for place, at in places.items():
        write_atomic(place, at.read_bytes())
    return Pulled(card, store.card_path(card), [folder / each for each in records])


@contextmanager
def _cached(path: Path) -> Iterator[Path]:
    """A file in the Hub's cache, taken out of it if the block refuses it: it would be the same bytes for ever."""
    try:
        yield path
    except SamBenchError:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise


def eval_results(card: ModelCard, repo: str, records: dict[str, EvaluationRecord]) -> list[dict[str, Any]]:
    """The records as the Hub's Community Evals: https://huggingface.co/docs/hub/eval-results.

    Args:
        card: The model's card.
        repo: `USER/REPO`, for the links to the records.
        records: By file name.

    Returns:
        One entry a record, accuracies in per cent; none if the Hub does not have the data set.
    """
    from huggingface_hub.constants import ENDPOINT

    dataset = HUB_DATASETS.get(card.dataset)
    if dataset is None:
        return []
    return [
        {
            "dataset": {"id": dataset, "task_id": _task(record)},
            "value": round(100 * record.robust_accuracy, 4),
            "date": record.created,
            "source": {"url": f"{ENDPOINT}/{repo}/blob/main/{RECORDS}/{name}", "name": "verdict of every example"},
            "notes": f"{_attack(record)}, {record.n_examples:,} examples, engine {record.engine}",
        }
        for name, record in sorted(records.items())
    ]


def readme(card: ModelCard, repo: str, records: Sequence[EvaluationRecord]) -> str:
    """The model card for readers, with the metadata that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    shared: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": HUB_DATASETS.get(card.dataset, card.dataset),
        "dataset_name": card.dataset,
        "dataset_split": "test",
    }
    measured: list[tuple[str, float, int | None]] = [("clean accuracy", card.clean_accuracy, None)]
    measured += [(f"robust accuracy, {_attack(each)}", each.robust_accuracy, each.n_examples) for each in records]
    metadata = ModelCardData(
        license=card.license.lower() if card.license.lower() in _LICENSES else "other",
        library_name="sam-bench",
        pipeline_tag="image-classification",
        tags=["adversarial-robustness", "sam-bench", card.recipe.name],
        datasets=[HUB_DATASETS[card.dataset]] if card.dataset in HUB_DATASETS else None,
        model_name=card.name,
        eval_results=[
            EvalResult(**shared, metric_type="accuracy", metric_name=name, metric_value=round(100 * value, 4))
            for name, value, _ in measured
        ],
    )
    rows = "\n".join(
        f"| {name} | {value:.2%} | {'whole test set' if count is None else f'{count:,}'} |"
        for name, value, count in measured
    )
    trained = (
        f"Trained elsewhere; imported from `{card.imported.file}`."
        if card.imported
        else f"{card.epochs} epochs on {card.train_examples:,} images, {card.cost.passes:.0f} forward-backward "
        f"passes an image, seed {card.seed}."
    )
    return f"""---
{metadata.to_yaml()}
---

# {card.name}

{card.recipe.summary}. {trained}

| measured on {card.dataset} | accuracy | test images |
| --- | --- | --- |
{rows}

Architecture: {card.architecture.name}, {card.parameters:,} parameters. Inputs are images in [0, 1]; the model
normalises them itself. `{CARD}` is the whole card, `{RECORDS}/` holds a verdict for every example.

    sam-bench zoo pull {repo}
    sam-bench evaluate {card.name}

{f"Made by `{card.command}`." if card.command else ""}
"""


def foreign(card: ModelCard, record: EvaluationRecord) -> str | None:
    """What a record is about that the card is not, as the rest of a sentence; None if it fits the card."""
    if record.checkpoint_sha256 != card.weights.sha256:
        return (
            f"is about weights {record.checkpoint_sha256[:12]}…, but {card.name} has {card.weights.sha256[:12]}…: "
            "give its own records"
        )
    if record.architecture_sha256 not in (None, card.architecture.sha256):
        return f"is about these weights in another architecture than the card of {card.name} has: evaluate it again"
    if record.dataset != card.dataset:
        return (
            f"was measured on {shortened(record.dataset)}, but {card.name} is a model of {card.dataset}: leave it out"
        )
    return None


def _record_of(card: ModelCard, path: Path) -> EvaluationRecord:
    record = read_record(path, EvaluationRecord)
    wrong = foreign(card, record)
    if wrong is not None:
        raise InputError(f"{path} {wrong}")
    return record


def _refuse_twins(records: Sequence[Path]) -> None:
    """Refuse two records of one file name: the repository has one folder for all."""
    seen: dict[str, Path] = {}
    for path in records:
        twin = seen.setdefault(path.name, path)
        if twin != path:
            raise InputError(f"{twin} and {path} would be one file in the repository: rename one, or leave one out")


def _check_places(places: dict[Path, Path]) -> None:
    """Refuse to write over a file of the user's, and to put a record beside another one's adversarial examples."""
    for place, fetched in places.items():
        bundle = adversarial_path(place)
        if place.exists():
            taken = None if filecmp.cmp(place, fetched, shallow=False) else place
        else:
            taken = bundle if bundle.exists() and bundle not in places else None
        if taken is not None:
            raise InputError(
                f"{taken} is there already and is not what this repository has: move it away, or choose another "
                "`evaluations` folder"
            )


def _renamed(card: ModelCard, name: str) -> ModelCard:
    """The card under this name, its weights' file named accordingly."""
    fields = card.model_dump(exclude={"name", "weights"})
    weights = {**card.weights.model_dump(), "file": weights_file(name, card.weights.sha256)}
    try:
        return ModelCard.model_validate({**fields, "name": name, "weights": weights})
    except ValueError as error:
        raise InputError(f"{shortened(name)!r} is not a usable name") from error


def _check_digest(card: ModelCard, content: bytes, source: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != card.weights.sha256:
        raise SamBenchError(
            f"{source} is not what the card of {card.name} names: SHA-256 expected {card.weights.sha256}, found "
            f"{found} ({card.weights.size} bytes expected, {len(content)} found)"
        )


def _attack(record: EvaluationRecord) -> str:
    return f"{record.attack} {record.version}".strip() + f", {record.norm} {record.eps}"


def _task(record: EvaluationRecord) -> str:
    text = f"{record.attack} {record.version} {record.norm} {record.eps}".replace("/", "over").lower()
    return re.sub(r"[^a-z0-9.]+", "_", text)


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="sam-bench")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The Hub's errors as one message each."""
    import requests
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise InputError(f"cannot {what}: {shortened(str(error), 200)}") from error
    except (requests.RequestException, OSError) as error:
        # The Hub's client says "check your connection" of whatever it met.
        met = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
        raise SamBenchError(f"cannot {what}: {_said(met)}") from error


def _said(error: BaseException) -> str:
    """What went wrong on the way to the Hub or back, and what to do."""
    import requests
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError

    again = "asked again, it goes on where it was"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else None
        login = "; log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else ""
        return f"the Hub says {_first_line(error.server_message or error)}{login}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection broke off; {again}"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        reason = type(getattr(error.args[0] if error.args else None, "reason", error)).__name__
        return f"{ENDPOINT} cannot be reached ({reason}): check the network, or what HF_ENDPOINT names; {again}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; HF_HOME names another folder for downloads"
    return _first_line(error)


def _first_line(said: object) -> str:
    return shortened(str(said).strip().partition("\n")[0], 200)
