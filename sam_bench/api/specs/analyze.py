"""AnalyzeSpec: everything that can be said of an analysis."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sam_bench.analysis import ANALYSES, Analysis
from sam_bench.api.specs.base import option
from sam_bench.api.specs.checks import Place, Settings, Text, Whole
from sam_bench.api.specs.shared import RunSpec
from sam_bench.errors import InputError
from sam_bench.records import ComponentSpec


class AnalyzeSpec(RunSpec):
    """An analysis: which one with which settings, of which models or records, on which examples."""

    positional: ClassVar[tuple[str, ...]] = ("analysis", "subjects")

    analysis: Annotated[str, Text("an analysis's name"), option("The analysis's name.", identity=True)]
    subjects: Annotated[
        tuple[str, ...],
        option("Models, or files of records, as the analysis asks for.", identity=True),
    ] = ()
    settings: Annotated[
        Mapping[str, Any], Settings(), option("Settings of the analysis by name.", identity=True, group="analysis")
    ] = {}
    n_examples: Annotated[
        int,
        Whole(1),
        option(
            "The first so many test images; of every class in turn where they are sorted by it.",
            identity=True,
            group="data",
            first=3,
        ),
    ] = 1000
    batch_size: Annotated[int, Whole(1), option("Examples at a time.", group="device")] = 128
    output: Annotated[
        Path | None,
        Place(),
        option("The folder for numbers and figure.", first=7, default="analyses/NAME"),
    ] = None

    @cached_property
    def built(self) -> Analysis:
        """The analysis with its settings.

        Raises:
            InputError: There is none of this name, or it has no such setting; names the field.
        """
        takes = ANALYSES.get(self.analysis).model_fields
        for setting in self.settings:
            if setting not in takes:
                known = f"takes {', '.join(takes)}" if takes else "takes no settings"
                raise InputError(f"`analysis.{setting}` does not apply: {self.analysis} {known}")
        return ANALYSES.build(ComponentSpec(method=self.analysis, **self.settings))

    def components(self) -> dict[str, Any]:
        return {f"analysis.{name}": value for name, value in self.built.model_dump(mode="json").items()}

    @property
    def folder(self) -> Path:
        """Where numbers and figure go."""
        return self.output or Path("analyses") / self.analysis
