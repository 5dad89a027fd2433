"""Random and mutated files are answered with a message or parsed: no other exception, nothing written, nothing run.

`SAM_BENCH_FUZZ=100000 pytest tests/leaderboard/test_fuzz_parsers.py` tries so many inputs, shared by the kinds of
files; without it, a few.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_board import Planted, images

from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation.adversarial import read_adversarial
from sam_bench.leaderboard.files import parse_checked
from sam_bench.records import (
    EvaluationRecord,
    LeaderboardEntry,
    Manifest,
    ModelCard,
    Record,
    VerificationReport,
)
from sam_bench.training import build_recipe, load_recipe

KINDS: dict[str, type[Record]] = {
    "entry": LeaderboardEntry,
    "card": ModelCard,
    "record": EvaluationRecord,
    "manifest": Manifest,
    "report": VerificationReport,
}
PARSERS = [*KINDS, "recipe", "adversarial", "board"]
EACH = int(os.environ.get("SAM_BENCH_FUZZ", 8 * 25)) // len(PARSERS)

numbers = st.one_of(st.integers(), st.floats(), st.just(10**400), st.just(-1))
texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["../../etc/passwd", "/dev/zero", "<script>", "\0", "\x1b[2J", "8/0", "1e999", "NaN", "a" * 9999, "¹", "٣/٤"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def mutated_json(draw: st.DrawFn, original: Any) -> Any:
    """The same document with one to three of its values replaced, taken out or renamed."""
    document = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        where = document
        while True:
            if not isinstance(where, (dict, list)) or not where:
                break
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            key = draw(st.sampled_from(keys))
            inner = where[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.booleans()):
                where = inner
                continue
            what = draw(st.sampled_from(["replace", "remove", "add"]))
            if what == "replace":
                where[key] = draw(values)
            elif what == "remove":
                del where[key]
            elif isinstance(where, dict):
                where[draw(texts)] = draw(values)
            else:
                where.append(draw(values))
            break
    return document


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """The same bytes with a few overwritten, inserted, cut out or cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        piece = draw(st.binary(max_size=12))
        what = draw(st.sampled_from(["overwrite", "insert", "cut out", "cut off"]))
        if what == "overwrite":
            content[at : at + len(piece)] = piece
        elif what == "insert":
            content[at:at] = piece
        elif what == "cut out":
            del content[at : at + draw(st.integers(1, 200))]
        else:
            del content[at:]
    return bytes(content)


def contents(original: Any) -> st.SearchStrategy[bytes]:
    """A file's bytes: a mutated document, mutated bytes, any document, any bytes."""
    text = json.dumps(original).encode()
    return st.one_of(
        mutated_json(original).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass")),
        mutated_bytes(text),
        values.map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass")),
        st.binary(max_size=300),
    )


def refused_or_read(read: Callable[[], Any]) -> None:
    """Every input is read, or refused in a short sentence that a terminal can show."""
    try:
        read()
    except InputError as error:
        assert len(str(error)) < 2000


fuzzed = settings(
    max_examples=max(1, EACH), deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.fixture(scope="module")
def files(honest_board: Planted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of an honest board, by kind."""
    board = honest_board.copy(tmp_path_factory.mktemp("fuzzed") / "board")
    from sam_bench.leaderboard.verify import write_report

    report = write_report(board.verify())
    found = {"entry": board.entry, "card": board.card, "record": board.aa, "manifest": board.manifest}
    return found | {"report": report, "adversarial": board.aa.with_suffix(".adversarial.npz"), "root": board.root}


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_every_kind(files: dict[str, Path], kind: str) -> None:
    original = json.loads(files[kind].read_text())
    parse_checked(files[kind].read_bytes(), files[kind], KINDS[kind])

    @fuzzed
    @given(content=contents(original))
    def run(content: bytes) -> None:
        refused_or_read(lambda: parse_checked(content, Path("file.json"), KINDS[kind]))

    run()


def test_recipes(files: dict[str, Path], tmp_path: Path) -> None:
    original = json.loads(files["card"].read_text())["recipe"]
    path = tmp_path / "mine.yaml"

    @fuzzed
    @given(content=contents(original))
    def run(content: bytes) -> None:
        path.write_bytes(content)
        refused_or_read(lambda: build_recipe(load_recipe(path)))

    run()
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_files_of_adversarial_examples(files: dict[str, Path]) -> None:
    original = files["adversarial"].read_bytes()

    record, test = EvaluationRecord.model_validate_json(files["record"].read_bytes()), images()

    def read(content: bytes) -> Any:
        return read_adversarial(content, "file.npz", record, test)

    assert read(original).x_adv

    @fuzzed
    @given(content=st.one_of(mutated_bytes(original), mutated_bytes(_unpacked(original)), st.binary(max_size=300)))
    def run(content: bytes) -> None:
        refused_or_read(lambda: read(content))

    run()


def _unpacked(content: bytes) -> bytes:
    """The same archive, its members not compressed: mutations reach the headers of the arrays."""
    import io
    import zipfile

    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as there, zipfile.ZipFile(written, "w") as here:
        for name in there.namelist():
            here.writestr(name, there.read(name))
    return written.getvalue()


def test_a_whole_board_whose_files_are_mutated(files: dict[str, Path]) -> None:
    """Verifying never fails otherwise than with a reason, and writes nothing anywhere."""
    root = files["root"]
    board = Planted(root)
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    kinds = [kind for kind in (*KINDS, "adversarial") if kind != "report"]

    @fuzzed
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        path = files[data.draw(st.sampled_from(kinds))]
        original = kept[path]
        if path.suffix == ".json":
            content = data.draw(contents(json.loads(original)))
        else:
            content = data.draw(mutated_bytes(original))
        path.write_bytes(content)
        try:
            found = board.verify()
            if path == board.manifest and found.passed:
                assert Manifest.model_validate_json(content) == Manifest.model_validate_json(original)
        except SamBenchError:
            pytest.fail("what is wrong with an entry is a result, not an exception")
        finally:
            path.write_bytes(original)

    run()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == kept
