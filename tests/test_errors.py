"""Errors are values: Python and the command line spell a field each in its own way."""

from __future__ import annotations

import pickle

import pytest

from sam_bench.cli.spelling import as_option
from sam_bench.errors import InputError, SamBenchError, shortened, unknown_name


@pytest.mark.parametrize(
    ("error", "python", "typed"),
    [
        (
            InputError("must be at least 2", field="limit_train", value=1),
            "limit_train=1 must be at least 2",
            "--limit-train 1 must be at least 2",
        ),
        (
            InputError("must be below 1", field="eps", value="8", hint="add `allow_large_eps=True`"),
            "eps='8' must be below 1; add allow_large_eps=True",
            "--eps 8 must be below 1; add --allow-large-eps",
        ),
        (
            InputError("needs a module that can be pickled", field="workers", value=2),
            "workers=2 needs a module that can be pickled",
            "--workers 2 needs a module that can be pickled",
        ),
        (InputError("there is no model here"), "there is no model here", "there is no model here"),
        (
            SamBenchError("out of memory; give a smaller `batch_size`, or `sync_bn=False`"),
            "out of memory; give a smaller batch_size, or sync_bn=False",
            "out of memory; give a smaller --batch-size, or --no-sync-bn",
        ),
    ],
)
def test_a_field_is_spelled_by_whoever_shows_it(error: SamBenchError, python: str, typed: str) -> None:
    assert str(error) == python
    assert error.render(as_option) == typed


def test_the_fields_survive_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(InputError("is too large", field="eps", value=8, hint="give 8/255")))
    assert (error.field, error.value, error.problem, error.hint) == ("eps", 8, "is too large", "give 8/255")
    assert str(pickle.loads(pickle.dumps(InputError("no value", field="rho")))) == "rho no value"


def test_an_unknown_name_lists_what_is_near() -> None:
    assert "Did you mean 'sam'?" in str(unknown_name("recipe", "sma", ["sam", "at"]))
    error = unknown_name("recipe", "sma", ["sam", "at"], field="recipe")
    assert str(error).startswith("recipe='sma' is no recipe that is known. Did you mean 'sam'?")


def test_a_message_does_not_print_a_file() -> None:
    assert len(shortened("x" * 10_000)) == 200
    assert len(str(InputError("is wrong", field="recipe", value="x" * 10_000))) < 300
