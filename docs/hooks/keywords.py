"""Tells griffe what the specs say: the keywords of the verbs from their stub, and the help of a spec's fields."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

STUB = Path(__file__).resolve().parents[2] / "sam_bench" / "api" / "verbs.pyi"


class Keywords(griffe.Extension):
    """`train(recipe, dataset, *, seed, …)` in place of `train(*given, **fields)`, and every keyword described."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Make the help in `Annotated[type, option("help", …)]` the field's docstring."""
        annotation = attr.annotation
        if annotation is None:
            attr.labels.discard("instance-attribute")  # without a type it is no field: it overrides a ClassVar
        if not isinstance(annotation, griffe.ExprSubscript) or not isinstance(annotation.slice, griffe.ExprTuple):
            return
        for each in annotation.slice.elements:
            if isinstance(each, griffe.ExprCall) and str(each.function) == "option":
                text = ast.literal_eval(str(each.arguments[0]))
                attr.docstring = griffe.Docstring(text, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Take the parameters of the verbs, and what they mean, from the stub."""
        if pkg.path != "sam_bench":
            return
        _show_as_other_classes(pkg)
        stub = griffe.visit("verbs", filepath=STUB, code=STUB.read_text(encoding="utf-8"))
        for name, told in stub.functions.items():
            verb = pkg[f"api.verbs.{name}"]
            assert verb.docstring is not None and told.docstring is not None
            keywords = told.docstring.value.partition("Args:\n")[2].rstrip()
            given = next(each.name for each in told.parameters if each.name != "model")
            text = verb.docstring.value.replace("\n    given:", f"\n    {given}:")
            above, fields, below = re.split(r"^(    fields: .*\n(?:        .*\n)*)", text, flags=re.MULTILINE)
            assert fields
            verb.docstring.value = f"{above}{keywords}\n{below}"
            verb.parameters = told.parameters


def _show_as_other_classes(module: griffe.Module) -> None:
    """Drop pydantic's list of fields: each has its own paragraph, or a row of a table."""
    for cls in module.classes.values():
        if not cls.is_alias:
            cls.labels.discard("pydantic-model")
            cls.extra.pop("mkdocstrings", None)
    for below in module.modules.values():
        if not below.is_alias:
            _show_as_other_classes(below)
