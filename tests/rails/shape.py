"""What the rails measure: the size of functions and files, options in strings, the length of sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sam_bench"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def where(path: Path, line: int) -> str:
    """A place, as editors read it: `sam_bench/api/train.py:12`."""
    return f"{path.relative_to(ROOT)}:{line}"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its name in the module: `Class.method`, `outer.inner`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def body_lines(node: Function) -> int:
    """Lines of the body, without signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(node: Function) -> int:
    """How many parameters it has, `self` and `cls` apart."""
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def option_spellings(tree: ast.AST) -> list[int]:
    """The lines of strings that spell an option of the command line (`--name`); docstrings may."""
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documents
        and re.search(r"(?<![\w-])--[a-z][a-z-]+", node.value)
    ]


def sentences(text: str) -> list[str]:
    """The sentences of a Markdown page, without code, tables, headings and links' targets."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||    |#|!\[)", line)]
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*[-*\d])", "\n".join(lines))
    found = []
    for paragraph in paragraphs:
        flat = re.sub(r"\]\([^)]*\)", "]", " ".join(paragraph.split()))
        flat = re.sub(r"`[^`]*`", "code", flat)
        found += [each for each in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`\[(*])", flat) if len(each.split()) > 2]
    return found
