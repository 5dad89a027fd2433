"""The table that `sam-bench recommend` reads, from committed cards and records.

    python benchmarks/measured_points.py benchmarks/results/what-they-buy-w8 … benchmarks/results/wei2023-tiny .

Every folder holds a `model_zoo`, and records in `leaderboards` or `evaluations`, or both in a `results.tar.xz`. The
first folder has the most methods and decides the attacks and radii. No number is typed. Run it again when a folder
has changed or another one has come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sam_bench.analysis import NamedRecord
from sam_bench.analysis.families import STANDARD
from sam_bench.api.analyzing import named_records
from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import ComponentSpec, ModelCard, Recipe, write_atomic
from sam_bench.studies.measured_points import MeasuredPoint, measured_points
from sam_bench.studies.packing import unpacked
from sam_bench.training import PARTS, load_recipe, override
from sam_bench.zoo import Zoo

TABLE = Path(__file__).parents[1] / "sam_bench/studies/measured_points.json"


def method_settings(card: ModelCard) -> dict[str, Any]:
    """The settings of `train` that make a card's method, as few as do: `{"recipe": "sam", "rho": 0.2}`."""
    base, wanted = load_recipe(card.recipe.name), _parts(card.recipe)
    found: dict[str, Any] = {}
    for name, before in _parts(base).items():
        now = wanted[name]
        if now.method != before.method:
            found[name] = now.method
            before = PARTS[name].build(ComponentSpec(method=now.method)).spec()
        found |= {key: value for key, value in now.settings.items() if value != before.settings.get(key)}
    for key in list(found):
        rest = {other: value for other, value in found.items() if other != key}
        if _made(base, rest) == wanted:  # another setting brings it with it
            found = rest
    if _made(base, found) != wanted:
        raise SamBenchError(f"{card.name} is not the recipe {base.name} with {found}")
    return {"recipe": base.name, **found}


def _made(base: Recipe, settings: dict[str, Any]) -> dict[str, ComponentSpec] | None:
    try:
        return _parts(override(base, settings))
    except InputError:
        return None


def _parts(recipe: Recipe) -> dict[str, ComponentSpec]:
    """What a recipe is made of, defaults filled in."""
    return {name: methods.build(getattr(recipe, name)).spec() for name, methods in PARTS.items()}


def table(folders: list[Path]) -> dict[str, Any]:
    """The file's content."""
    rows: list[MeasuredPoint] = []
    for folder in folders:
        with unpacked(folder) as files:
            zoo = files / "model_zoo"
            settings = {card.name: method_settings(card) for card in Zoo(zoo).cards()}
            found = measured_points(_records(files, zoo), settings)
        attacks = {_attack(row) for row in rows or found}
        compared = {row.where for row in found if row.family != STANDARD}
        rows += [row for row in found if _attack(row) in attacks and row.where in compared]
    command = " ".join(["python benchmarks/measured_points.py", *map(str, folders)])
    return {"version": 1, "command": command, "rows": [row.model_dump(mode="json") for row in rows]}


def _attack(row: MeasuredPoint) -> tuple[str, str, str]:
    return row.attack, row.norm, str(row.eps)


def _records(folder: Path, zoo: Path) -> list[NamedRecord]:
    """The records whose models are in the zoo; a record that is both an evaluation and an entry's counts once."""
    entries = [path for path in folder.glob("leaderboards/*/*/records/*.json") if path.suffixes == [".json"]]
    paths = sorted(entries) or sorted(folder.glob("evaluations/*/*.json"))
    return [each for each in named_records(list(map(str, paths)), zoo) if each.card]


def as_text(content: dict[str, Any]) -> str:
    """JSON with a row a line."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in content["rows"])
    return f'{{"version": 1, "command": {json.dumps(content["command"])}, "rows": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    write_atomic(options.output, as_text(table(options.folders)))
