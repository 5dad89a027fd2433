"""What a study's folder says, read once: cards, records and notes by row, evaluation and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam_bench.analysis.statistics import Scores, Verdicts
from sam_bench.records import MISCLASSIFIED, ROBUST, EvaluationRecord, ModelCard
from sam_bench.studies.claims import CLEAN
from sam_bench.studies.jobs import STANDARD, Measurement, Model, Study
from sam_bench.studies.lookup import card_of, kind_of, note_of, records_of
from sam_bench.studies.notes import Clean, Distances, Note

LEVELS = 255.0  # distances in Linf are given in levels of 255


@dataclass(frozen=True)
class Measured:
    """Everything that was found; `verdicts.Measurements` for the claims.

    Attributes:
        study: Whose it is.
        cards: Row to seed to card.
        records: (row, evaluation) to seed to records, the smallest radius first.
        notes: (row, evaluation) to seed to note.
    """

    study: Study
    cards: Mapping[str, dict[int, ModelCard]]
    records: Mapping[tuple[str, str], dict[int, list[EvaluationRecord]]] = field(default_factory=dict)
    notes: Mapping[tuple[str, str], dict[int, Note]] = field(default_factory=dict)

    def passes(self, row: str) -> Mapping[int, float] | None:
        """See `Measurements`."""
        return {seed: card.cost.passes for seed, card in self.cards.get(row, {}).items()} or None

    def family(self, name: str) -> Sequence[str]:
        """See `Measurements`. `standard` begins every curve; rows of strength 0 are no other points of it."""
        rows = {row: each for row, each in self.study.rows.items() if each.family == name and each.strength > 0}
        return [STANDARD, *sorted(rows, key=lambda row: rows[row].strength)]

    def measured(self, row: str, of: str) -> Verdicts | Scores | None:
        """See `Measurements`."""
        if of == CLEAN:
            return self._clean(row)
        notes = {seed: note for seed, note in self.notes.get((row, of), {}).items() if isinstance(note, Distances)}
        if notes:
            return self._distances(notes)
        return self._verdicts(self.records.get((row, of), {}))

    def _clean(self, row: str) -> Verdicts | None:
        found = {seed: note for seed, note in self.notes.get((row, CLEAN), {}).items() if isinstance(note, Clean)}
        if not found:
            return None
        return Verdicts(tuple(found), np.array([note.verdicts for note in found.values()], dtype=np.bool_))

    def _distances(self, notes: Mapping[int, Distances]) -> Scores:
        values = [[np.inf if each is None else each for each in note.distances] for note in notes.values()]
        unit = LEVELS if next(iter(notes.values())).norm == "Linf" else 1.0
        return Scores(tuple(notes), unit * np.array(values, dtype=np.float64))

    def _verdicts(self, records: Mapping[int, list[EvaluationRecord]]) -> Verdicts | None:
        """Those of the seeds that have all radii."""
        if not records:
            return None
        clean = [[verdict != MISCLASSIFIED for verdict in found[0].verdicts] for found in records.values()]
        robust = {
            float(radius.eps): np.array(
                [[verdict == ROBUST for verdict in found[index].verdicts] for found in records.values()], dtype=np.bool_
            )
            for index, radius in enumerate(next(iter(records.values())))
        }
        return Verdicts(tuple(records), np.array(clean, dtype=np.bool_), robust)

    def seconds(self) -> Iterator[tuple[str, str, float]]:
        """What each run took: `training` or `evaluation`, the device, seconds."""
        for cards in self.cards.values():
            for card in cards.values():
                yield "training", card.cost.device, card.cost.seconds
        for several in self.records.values():
            for records in several.values():
                for record in records:
                    yield "evaluation", record.device, record.seconds
        for (_, evaluation), notes in self.notes.items():
            planned = self.study.plan.evaluations.get(evaluation)
            for note in notes.values():
                if planned is None or planned.temperature is None:  # else its records have said it
                    yield "evaluation", note.device, note.seconds


def read_study(study: Study) -> Measured:
    """Read what is there and belongs to the plan.

    Raises:
        InputError: A card is of another run, or a file is damaged; names it.
    """
    cards: dict[str, dict[int, ModelCard]] = {}
    records: dict[tuple[str, str], dict[int, list[EvaluationRecord]]] = {}
    notes: dict[tuple[str, str], dict[int, Note]] = {}
    for row in study.rows:
        for seed in study.seeds(row):
            card = card_of(study, Model(row, seed))
            if card is None:
                continue
            cards.setdefault(row, {})[seed] = card
            for name in (CLEAN, *study.evaluations(row)):
                evaluation = study.plan.evaluations.get(name)
                job = Measurement(Model(row, seed), name)
                if evaluation is not None and evaluation.attack is not None and evaluation.fault is None:
                    found = records_of(study, job, card)
                    if len(found) < len(evaluation.eps):
                        continue  # a temperature without its records is of another `standard`
                    records.setdefault((row, name), {})[seed] = found
                kind = kind_of(evaluation)
                if kind is not None and (note := note_of(study, job, card, kind)) is not None:
                    notes.setdefault((row, name), {})[seed] = note
    return Measured(study, cards, records, notes)
