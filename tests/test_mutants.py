"""The mutants that the tests are tried on: each changes what the code does, and nothing else."""

from __future__ import annotations

import ast
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutants_made import ROOMS, ROOT, Mutant, files, mutants_of, sample
from mutants_tests import Traced, chosen_for

SOURCE = '''
def f(a: int, b: float = 0.5) -> int | None:
    """A text with 1 < 2."""
    café, d = "é" + "1", a[b : a + 1]
    if a < b and b is not None:
        show(a)
    if a not in d:
        raise ValueError(f"{a + 1}")
    return a * 2
'''


def test_every_kind_of_change_is_made_and_texts_types_and_messages_are_left_alone() -> None:
    changed = {mutant.diff(SOURCE).split("\n+")[1].strip() for mutant in mutants_of(SOURCE, "f.py")}
    assert changed == {
        "def f(a: int, b: float = (0.5 * 2 + 0.1)) -> int | None:",
        'café, d = "é" + "1", a[(b) + 1 : a + 1]',
        'café, d = "é" + "1", a[b : (a + 1) + 1]',
        'café, d = "é" + "1", a[b : a - 1]',
        'café, d = "é" + "1", a[b : a + 2]',
        "if not (a < b and b is not None):",
        "if (a < b):",
        "if (b is not None):",
        "if a <= b and b is not None:",
        "if a < b and b is None:",
        "None",
        "if a in d:",
        "return None",
        "return a / 2",
        "return a * 3",
    }


def test_every_mutant_of_this_package_is_another_program() -> None:
    mutants = list(islice(sample(seed=0), 100))
    assert len({mutant.key for mutant in mutants}) == 100
    for mutant in mutants:
        source = (ROOT / mutant.file).read_text()
        assert ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
        assert mutant.diff(source).startswith("-")
    assert all((ROOT / room).exists() for room in ROOMS)
    assert all(list((ROOT / "tests").glob(pattern)) for patterns in ROOMS.values() for pattern in patterns)
    assert len(files()) > 20


RUN = """
LIMIT = 3
@cache(maxsize=4)
def f(a):
    if a < LIMIT:
        return g(
            a, 2
        )
    return 1
"""


def test_a_mutant_is_tried_on_the_tests_that_run_its_statement_and_the_quick_ones_come_first() -> None:
    tests = {
        "t.py::slow": Traced(2.0, {"f.py": [5, 6, 7]}),
        "t.py::quick": Traced(0.01, {"f.py": [5, 6]}),
        "t.py::other": Traced(0.005, {"f.py": [5, 9]}),
        "u.py::elsewhere": Traced(0.01, {"g.py": [5, 6]}),
    }

    def chosen(text: str, where: dict[str, Traced] = tests) -> list[str]:
        start = RUN.index(text)
        return [name for lot in chosen_for(Mutant("f.py", start, start + 1, "7", ""), RUN, where) for name in lot]

    assert chosen("2") == ["t.py::quick", "t.py::slow"]  # the third line of a statement whose first one runs
    assert chosen("1") == ["t.py::other"]
    assert chosen("< LIMIT") == ["t.py::other", "t.py::quick", "t.py::slow"]
    assert chosen("3") == chosen("4") == chosen("< LIMIT")  # runs at import: every test of the file
    assert chosen("3", {"u.py::elsewhere": tests["u.py::elsewhere"]}) == ["u.py::elsewhere"]
    assert not chosen("1", {"t.py::slow": tests["t.py::slow"]})
