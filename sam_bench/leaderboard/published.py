"""RobustBench's published entries: read where the user has them, and shown beside ours. Nothing of them is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from sam_bench.errors import InputError, shortened
from sam_bench.leaderboard.boards import Board
from sam_bench.leaderboard.files import LARGEST_RECORD, read_bytes
from sam_bench.leaderboard.labels import AUTOATTACK, radius_key
from sam_bench.records import Radius, first_problem


class _ModelInfo(BaseModel):
    """What is shown of a file of RobustBench's `model_info`; its other fields are passed over."""

    name: str
    link: str = ""
    authors: str = ""
    venue: str = ""
    architecture: str = ""
    eps: Radius | None = None
    clean_acc: float = Field(ge=0, le=100)
    autoattack_acc: float | None = Field(default=None, ge=0, le=100)
    external: float | None = Field(default=None, ge=0, le=100)


@dataclass(frozen=True)
class Published:
    """One of RobustBench's entries.

    Attributes:
        name: Its name there, such as `Rice2020Overfitting`.
        dataset: RobustBench's name of the data set.
        threat: The norm.
        eps: The radius.
        clean: Clean accuracy in per cent.
        robust: Robust accuracy in per cent: the lowest that is known, as RobustBench ranks.
        paper: The paper's title.
        link: The paper's address; "" if it is none.
        architecture: The network.
    """

    name: str
    dataset: str
    threat: str
    eps: Radius
    clean: float
    robust: float
    paper: str
    link: str
    architecture: str


def read_published(folder: Path | None = None) -> list[Published]:
    """All entries with a radius and an AutoAttack accuracy.

    Args:
        folder: A `model_info` folder of RobustBench, or a checkout that has one; default: the one that the installed
            package ships, if it does.

    Raises:
        InputError: There is no such folder, it holds no entries, or a file there is none.
    """
    if folder is None:
        spec = find_spec("robustbench")
        homes = [Path(each) for each in (spec.submodule_search_locations or [])] if spec else []
        shipped = [path for home in homes for path in (home / "model_info", home.parent / "model_info")]
        return next((_read(path) for path in shipped if path.is_dir()), [])
    inside = folder / "model_info"
    found = _read(inside if inside.is_dir() else folder)
    if not found:
        raise InputError(
            f"{folder} holds no entries of RobustBench: name its `model_info` folder, "
            "<dataset>/<threat>/<name>.json inside",
            field="robustbench",
        )
    return found


def _read(folder: Path) -> list[Published]:
    found = []
    for path in sorted(folder.glob("*/*/*.json")):
        try:
            info = _ModelInfo.model_validate_json(read_bytes(path, LARGEST_RECORD))
        except ValidationError as error:
            problem = shortened(first_problem(error), 400)
            raise InputError(f"{path} is not an entry of RobustBench: {problem}", field="robustbench") from error
        known = [share for share in (info.autoattack_acc, info.external) if share is not None]
        if info.eps is None or not known:
            continue  # corruptions have no radius
        found.append(
            Published(
                path.stem,
                path.parent.parent.name,
                path.parent.name,
                info.eps,
                info.clean_acc,
                min(known),
                info.name,
                info.link if info.link.startswith(("https://", "http://")) else "",
                info.architecture,
            )
        )
    return found


def of_board(published: Sequence[Published], board: Board) -> list[Published]:
    """The entries of the same data set, norm and radius, if the board is AutoAttack's; the most robust first."""
    if board.attack != AUTOATTACK:
        return []
    key = (board.dataset, board.norm, radius_key(Radius(board.eps)))
    same = [each for each in published if (each.dataset, each.threat, radius_key(each.eps)) == key]
    return sorted(same, key=lambda each: (-each.robust, -each.clean, each.name))
