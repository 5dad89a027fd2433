"""`export_robustbench`: what RobustBench needs to list a model and to load it, as files in a folder."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sam_bench import zoo as zoos
from sam_bench.api.boards import first_examples_of
from sam_bench.api.record_files import check_folder
from sam_bench.api.sharing import own_records
from sam_bench.api.specs.checks import StrPath
from sam_bench.errors import InputError, unknown_name
from sam_bench.leaderboard import Submission, submit_entry
from sam_bench.leaderboard.entries import listed_dataset
from sam_bench.records import ModelCard, write_atomic, write_record

PAPER = ("authors", "paper_title", "paper_link", "venue", "license", "additional_data")
"""Fields of the card that may be given anew."""

_FOR_IMAGENET = "from collections import OrderedDict\n\nfrom torch import nn\n\n"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        checkpoint: The weights as a `.pt`, whose link goes into the issue.
        model_info: RobustBench's file of the numbers.
        snippet: Python text for RobustBench's model zoo.
        issue: The text of its "New Model" issue, the title first.
        submission: The entry behind it, with RobustBench's conditions and notes.
        missing: Fields of the card that RobustBench asks for and that are empty.
    """

    checkpoint: Path
    model_info: Path
    snippet: Path
    issue: Path
    submission: Submission
    missing: list[str]


def export_robustbench(
    model: str,
    folder: StrPath,
    *,
    records: Sequence[StrPath] | None = None,
    zoo: StrPath | None = None,
    dataset: StrPath | None = None,
    data_dir: StrPath = Path("data"),
    **paper: Any,
) -> Exported:
    """Write what RobustBench wants to be sent: checkpoint, `model_info`, code and the issue's text.

    Args:
        model: A name in the zoo.
        folder: Where the files go.
        records: Evaluations of exactly that model; default those in `evaluations/<model>`.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        dataset: The model's data, FILE.npz or FOLDER, to hold records over its first examples against.
        data_dir: Where torchvision's data sets are kept; nothing is downloaded.
        paper: Fields of the card that are given anew: those in `PAPER`.

    Raises:
        InputError: As for `submit`: a record is of other weights, or there is none by AutoAttack.
        SamBenchError: The weights are damaged, or a file cannot be written.
    """
    unknown = sorted(set(paper) - set(PAPER))
    if unknown:
        raise unknown_name("field of the paper", unknown[0], PAPER)
    folder = Path(folder)
    check_folder(folder, what="nothing")
    store = zoos.Zoo(zoos.zoo_dir(zoo))
    found = store.find(model)
    card = found.model_copy(update={name: value for name, value in paper.items() if value})
    if listed_dataset(card) == "imagenet" and "Standard" in card.name:
        raise InputError(
            f"{card.name} cannot be exported under this name: of a model of imagenet with 'Standard' in its name, "
            "RobustBench's load_model reads no weights and returns random ones; save it under another"
        )
    paths = own_records(card) if records is None else [Path(each) for each in records]
    if not paths:
        raise InputError(f"{card.name} has no records on {card.dataset} in evaluations/{card.name}: evaluate it first")
    module = store.load(found)
    with tempfile.TemporaryDirectory() as scratch:
        card_path = Path(scratch, "zoo", card.dataset, card.threat, f"{card.name}.json")
        card_path.parent.mkdir(parents=True)
        write_record(card_path, card)
        submission = submit_entry(
            card,
            card_path,
            paths,
            folder=Path(scratch, "leaderboards"),
            fingerprint_of_first=first_examples_of(card, dataset, Path(data_dir)),
        )
    exported = Exported(
        checkpoint=folder / f"{card.name}.pt",
        model_info=folder / "model_info" / listed_dataset(card) / card.threat / f"{card.name}.json",
        snippet=folder / "model_zoo.py",
        issue=folder / "issue.md",
        submission=submission,
        missing=[name for name in ("authors", "paper_title", "paper_link") if not getattr(card, name).strip()],
    )
    content = io.BytesIO()
    torch.save(module.state_dict(), content)
    write_atomic(exported.checkpoint, content.getvalue())
    write_atomic(exported.model_info, submission.model_info)
    write_atomic(exported.snippet, snippet(card))
    write_atomic(exported.issue, f"{submission.issue_title}\n\n{submission.issue}")
    return exported


def snippet(card: ModelCard) -> str:
    """Python text that adds the model to RobustBench's tables; its `load_model` then reads the `.pt`."""
    architecture = json.dumps(card.architecture.model_dump(mode="json"), indent=1)
    listed = listed_dataset(card)
    made, imports = "create_model(Architecture.model_validate_json(ARCHITECTURE))", ""
    if listed == "imagenet":  # there, RobustBench puts "model." before every key of the `.pt`
        made, imports = f"nn.Sequential(OrderedDict(model={made}))", _FOR_IMAGENET
    return f'''"""For the {card.threat} table of robustbench/model_zoo/{listed}.py; it needs `pip install sam-bench`."""

{imports}from sam_bench.models import create_model
from sam_bench.records import Architecture

ARCHITECTURE = """
{architecture}
"""

ENTRY = (
    "{card.name}",
    {{
        "model": lambda: {made},
        "gdrive_id": "the ID of {card.name}.pt on Google Drive",
    }},
)
'''
