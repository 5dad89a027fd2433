"""Functions, parameter lists and files stay small, and only the command line spells options."""

from __future__ import annotations

import ast

import pytest
from shape import body_lines, functions, option_spellings, parameters, sources, where

BODY, PARAMETERS, FILE = 60, 10, 400
UPSTREAM = {"AutoAttack.__init__"}
"""Functions with another package's signature."""


def test_no_function_has_more_than_60_lines() -> None:
    found = [
        f"{where(path, node.lineno)} {name}: {body_lines(node)} lines"
        for path in sources()
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if name not in UPSTREAM and body_lines(node) > BODY
    ]
    assert not found, "\n".join(["split these into functions with names:", *found])


def test_no_function_has_more_than_10_parameters() -> None:
    found = [
        f"{where(path, node.lineno)} {name}: {parameters(node)} parameters"
        for path in sources()
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if name not in UPSTREAM and parameters(node) > PARAMETERS
    ]
    assert not found, "\n".join(["give these one object in place of many values:", *found])


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in sources()}
    found = [f"{where(path, 1)}: {lines} lines" for path, lines in lengths.items() if lines > FILE]
    assert not found, "\n".join(["divide these:", *found])


def test_only_the_command_line_spells_options() -> None:
    found = [
        where(path, line)
        for path in sources()
        if "cli" not in path.parts
        for line in option_spellings(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(
        ["write the field's name in backticks; `sam_bench/cli` makes the option of it:", *found]
    )


@pytest.mark.parametrize(
    ("code", "lines", "count"),
    [
        ("def f(a, b):\n    '''Says.'''\n    a += b\n\n    return a\n", 3, 2),
        ("class C:\n    def f(self, a, *, b): return a", 1, 2),
        ("def f(): '''Says.'''", 0, 0),
    ],
)
def test_lines_and_parameters_are_counted_without_docstring_and_self(code: str, lines: int, count: int) -> None:
    ((_, node),) = functions(ast.parse(code))
    assert (body_lines(node), parameters(node)) == (lines, count)


def test_an_option_is_found_in_a_message_and_not_in_a_docstring() -> None:
    code = '"""Like --eps."""\nproblem = f"give --batch-size, not {value}"\nrule = "--- and --"'
    assert option_spellings(ast.parse(code)) == [2]
