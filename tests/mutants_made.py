"""The mutants: one small change of the code each, at every place where one can be made."""

from __future__ import annotations

import ast
import difflib
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Which test files belong to which code.
ROOMS = {
    "sam_bench/attacks": ["attacks/test_*.py"],
    "sam_bench/perturb": ["perturb/test_*.py"],
    "sam_bench/evaluation": ["evaluation/test_*.py"],
    "sam_bench/integrations/state.py": ["integrations/test_state*.py", "integrations/test_autoattack_adapter.py"],
    "sam_bench/integrations/state_identity.py": ["integrations/test_state*.py"],
    "sam_bench/training/step.py": ["training/test_step.py", "training/test_draws_of_steps.py", "training/test_loop.py"],
    "sam_bench/training/schedules.py": ["training/test_schedule*.py"],
}

_COMPARISONS = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"},
}
_OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "%", ast.Mod: "//", ast.Pow: "*"}
_OPERATOR = re.compile(r"not\s+in|is\s+not|in|is|//|\*\*|[<>=!]=|[<>+*/%-]")


@dataclass(frozen=True)
class Mutant:
    """One change: the characters from `start` to `end` of a file become `new`."""

    file: str
    start: int
    end: int
    new: str
    digest: str  # of the file: a mutant of another version is another mutant

    @property
    def key(self) -> str:
        """Tells it from every other mutant."""
        return f"{self.file}:{self.start}:{self.end}:{self.new}:{self.digest}"

    @property
    def room(self) -> str:
        """The entry of ROOMS it belongs to."""
        return next(room for room in ROOMS if self.file == room or self.file.startswith(f"{room}/"))

    def applied(self, source: str) -> str:
        """The file's text with the change."""
        return source[: self.start] + self.new + source[self.end :]

    def diff(self, source: str) -> str:
        """The lines that change, old and new."""
        lines = difflib.unified_diff(source.splitlines(), self.applied(source).splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


class _Finder(ast.NodeVisitor):
    """Collects (start, end, new) for every change that can be made to a source."""

    def __init__(self, source: str) -> None:
        self.source, self.found = source, list[tuple[int, int, str]]()
        # The parser counts bytes, a string has characters.
        lines = source.splitlines(keepends=True)
        self._lines = [line.encode() for line in lines]
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        def place(line: int, column: int) -> int:
            return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def _replace(self, node: ast.AST, pattern: str) -> None:
        start, end = self._span(node)
        self.found.append((start, end, pattern.format(self.source[start:end])))

    def _replace_between(self, left: ast.AST, right: ast.AST, new: str) -> None:
        begin, end = self._span(left)[1], self._span(right)[0]
        match = _OPERATOR.search(self.source, begin, end)
        if match:
            self.found.append((*match.span(), new))

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            self._replace_between(left, right, _COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right))
        if type(node.op) in _OPERATORS and not text:
            self._replace_between(node.left, node.right, _OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in _OPERATORS:
            self._replace_between(node.target, node.value, _OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values:  # leave one out
            rest = [self.source[slice(*self._span(other))] for other in node.values if other is not value]
            joined = (" and " if isinstance(node.op, ast.And) else " or ").join(f"({each})" for each in rest)
            self.found.append((*self._span(node), joined))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value))
        elif isinstance(node.value, int):
            self._replace(node, str(node.value + 1))
        elif isinstance(node.value, float):
            self._replace(node, "({} * 2 + 0.1)")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                self._replace(bound, "({}) + 1")
        self.generic_visit(node)

    def _condition(self, node: ast.If | ast.IfExp | ast.While) -> None:
        if not isinstance(node.test, ast.Compare):  # whose operator is changed
            self._replace(node.test, "not ({})")
        self.generic_visit(node)

    visit_If = visit_IfExp = visit_While = _condition  # noqa: N815

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self._replace(node.value, "None")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._replace(node, "None")
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Messages are left alone, and so are the next three: nothing that runs depends on them."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """See `visit_Raise`."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Only the value: the annotation is a type."""
        if node.value is not None:
            self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """The body: a decorator says that a dataclass is frozen, and the like."""
        for each in node.body:
            self.visit(each)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Defaults and body: the rest are types and decorators."""
        defaults = [each for each in node.args.kw_defaults if each is not None]
        for each in [*node.args.defaults, *defaults, *node.body]:
            self.visit(each)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Every mutant of a file; one in a thousand is no Python any more."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    return [Mutant(file, start, end, new, digest) for start, end, new in dict.fromkeys(finder.found)]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def files() -> list[str]:
    """The files that are mutated."""
    return sorted(
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
        if path.exists()
    )


def sample(seed: int) -> Iterator[Mutant]:
    """All mutants there are, in random order."""
    found = [mutant for file in files() for mutant in mutants_of((ROOT / file).read_text(), file)]
    random.Random(seed).shuffle(found)
    return (mutant for mutant in found if _parses(mutant.applied((ROOT / mutant.file).read_text())))
