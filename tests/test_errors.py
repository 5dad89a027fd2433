"""Errors are values: Python and the command line spell a field each in its own way."""

from __future__ import annotations

import pickle

import pytest

from sam_bench.cli.evaluate import command as evaluate
from sam_bench.cli.spelling import spelling_of
from sam_bench.cli.train import command as train
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
            "out of memory; give a smaller --batch-size, or no --sync-bn",
        ),
    ],
)
def test_a_field_is_spelled_by_whoever_shows_it(error: SamBenchError, python: str, typed: str) -> None:
    assert str(error) == python
    command = evaluate if "workers" in python else train
    assert error.render(spelling_of(command)) == typed


@pytest.mark.parametrize(
    ("text", "trained", "evaluated"),
    [
        ("add `resume=True`", "add --resume", "add --resume"),
        ("give `run_dir`", "give --run-dir", "give run_dir"),
        ("`weights.rho=0.2`", "--rho 0.2", "weights.rho=0.2"),
        ("`attack.steps`: no", "attack.steps: no", "--steps: no"),
        ("`attack.alpha=3`: no", "attack.alpha=3: no", "--attack-setting alpha=3: no"),
        ("`arch_options.width=2`", "--width 2", "arch_options.width=2"),
        ("`arch_options.depth=2`", "--arch-option depth=2", "arch_options.depth=2"),
        ("`sync_bn=False`, no `validation`", "no --sync-bn, no --validation", "sync_bn=False, no validation"),
        ("`schedule.milestones=[0.5, 0.75]`", "--milestones 0.5,0.75", "schedule.milestones=[0.5, 0.75]"),
        ("see `sam-bench recipes list`", "see `sam-bench recipes list`", "see `sam-bench recipes list`"),
    ],
)
def test_a_field_is_an_option_only_of_a_command_that_has_it(text: str, trained: str, evaluated: str) -> None:
    assert SamBenchError(text).render(spelling_of(train)) == trained
    assert SamBenchError(text).render(spelling_of(evaluate)) == evaluated


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
