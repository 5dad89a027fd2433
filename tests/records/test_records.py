"""The files everything else is rendered from: what is written reads back, and what does not add up is refused."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import (
    MISCLASSIFIED,
    ROBUST,
    Architecture,
    ComponentSpec,
    Cost,
    EvaluationRecord,
    LeaderboardEntry,
    ModelCard,
    Name,
    Radius,
    Recipe,
    Record,
    WeightsFile,
    accuracies,
    read_record,
    sha256_file,
    write_atomic,
    write_record,
)
from sam_bench.training import RunConfig

ATTACKS = ["apgd-ce", "apgd-t", "fab-t", "square"]
verdict_lists = st.lists(st.sampled_from([ROBUST, MISCLASSIFIED, *ATTACKS]), min_size=1, max_size=60)


def evaluation(verdicts: list[str], **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": "sam",
        "checkpoint_sha256": "0" * 64,
        "dataset": "digits",
        "dataset_fingerprint": "1" * 64,
        "attack": "autoattack",
        "version": "standard",
        "engine": "pyautoattack 0.2.0",
        "norm": "Linf",
        "eps": "8/255",
        "eps_float": 8 / 255,
        "seed": 0,
        "batch_size": 128,
        "n_examples": len(verdicts),
        "seconds": 1.5,
        "device": "a CPU",
        "packages": {"torch": "2.6.0"},
        "created": "2026-01-01T00:00:00Z",
        "verdicts": verdicts,
    }
    return {**fields, **accuracies(verdicts, ATTACKS), **changes}


def card(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "sam-rho0.2",
        "dataset": "digits",
        "architecture": Architecture(name="preactresnet10", num_classes=10, in_channels=1, image_size=8),
        "parameters": 100,
        "recipe": Recipe(name="sam", summary="SAM", weights=ComponentSpec(method="sam", rho=0.2)),
        "epochs": 3,
        "seed": 0,
        "precision": "bf16",
        "train_examples": 10,
        "train_fingerprint": "0" * 64,
        "test_fingerprint": "1" * 64,
        "clean_accuracy": 0.9,
        "cost": Cost(train_forward=6, train_backward=6, seconds=1, device="a CPU"),
        "packages": {},
        "weights": WeightsFile(file="sam-rho0.2.safetensors", size=10, sha256="2" * 64),
        "created": "2026-01-01T00:00:00Z",
    }
    return {**fields, **changes}


# Accuracies follow from verdicts


@given(verdicts=verdict_lists)
def test_accuracies_computed_from_verdicts_always_validate_and_count_what_they_say(verdicts: list[str]) -> None:
    record = EvaluationRecord(**evaluation(verdicts))
    assert record.clean_accuracy == pytest.approx(sum(verdict != MISCLASSIFIED for verdict in verdicts) / len(verdicts))
    assert record.robust_accuracy == pytest.approx(verdicts.count(ROBUST) / len(verdicts))
    falling = [record.clean_accuracy, *record.accuracy_after.values()]
    assert falling == sorted(falling, reverse=True) and falling[-1] == record.robust_accuracy
    assert EvaluationRecord.model_validate_json(record.model_dump_json()) == record


@given(
    verdicts=verdict_lists,
    field=st.sampled_from(["clean_accuracy", "robust_accuracy", *ATTACKS]),
    stated=st.one_of(st.floats(0, 1), st.integers(0, 60).map(lambda count: count / 60)),
)
def test_an_accuracy_that_its_verdicts_do_not_give_is_refused(verdicts: list[str], field: str, stated: float) -> None:
    fields = evaluation(verdicts)
    holder = fields["accuracy_after"] if field in ATTACKS else fields
    if abs(holder[field] - stated) < 1e-8:
        stated = holder[field] + (0.01 if holder[field] < 0.5 else -0.01)
    holder[field] = stated
    with pytest.raises(ValidationError, match=rf"{field}.* is .*but the verdicts give \d+/{len(verdicts)}"):
        EvaluationRecord(**fields)


@given(verdicts=verdict_lists, position=st.integers(0, 59), other=st.sampled_from([ROBUST, MISCLASSIFIED, *ATTACKS]))
def test_a_changed_verdict_is_refused(verdicts: list[str], position: int, other: str) -> None:
    position %= len(verdicts)
    fields = evaluation(verdicts)
    changed = [*verdicts[:position], other, *verdicts[position + 1 :]]
    if other == verdicts[position]:
        assert EvaluationRecord(**fields | {"verdicts": changed}).verdicts == verdicts
    else:
        with pytest.raises(ValidationError, match="but the verdicts give"):
            EvaluationRecord(**fields | {"verdicts": changed})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_examples": 3}, "verdicts has 2 entries where n_examples is 3"),
        ({"verdicts": [ROBUST, "guess"]}, "verdicts names 'guess', which is not among"),
        ({"accuracy_after": {ROBUST: 0.5}}, "an attack 'robust'"),
        ({"accuracy_after": {MISCLASSIFIED: 0.5}}, "an attack 'misclassified'"),
        ({"eps_float": 8.0}, "eps_float is 8.0, but eps 8/255 is 0.03"),
        ({"eps": "16/255"}, "eps_float is 0.03.*, but eps 16/255 is 0.06"),
        ({"clean_accuracy": 1.5}, "less than or equal to 1"),
        ({"clean_accuracy": float("nan")}, "finite"),
        ({"seconds": -1.0}, "greater than or equal to 0"),
        ({"n_examples": 0}, "greater than or equal to 1"),
        ({"norm": "L0"}, "'Linf', 'L2' or 'L1'"),
        ({"checkpoint_sha256": "abc"}, "pattern"),
        ({"checkpoint_sha256": "0" * 64 + "\n"}, "pattern"),
        ({"dataset": "../digits"}, "not a usable name"),
        ({"schema_version": 2}, "1"),
        ({"comment": "mine"}, "[Ee]xtra inputs"),
    ],
)
def test_a_record_that_does_not_add_up_is_refused(changes: dict[str, Any], message: str) -> None:
    fields = evaluation([ROBUST, "square"])
    assert EvaluationRecord(**fields)
    with pytest.raises(ValidationError, match=message):
        EvaluationRecord(**fields | changes)


# Radii


@given(value=st.floats(0, 1e6, allow_nan=False))
@example(value=4 / 3)
@example(value=8 / 255)
@example(value=1e-300)
def test_a_radius_given_as_a_number_reads_back_as_exactly_that_number(value: float) -> None:
    radius = Radius(value)
    assert radius == value and float(Radius(str(radius))) == value


@given(numerator=st.integers(0, 1000), denominator=st.integers(1, 1000), space=st.sampled_from(["", " "]))
def test_a_radius_keeps_how_it_was_written(numerator: int, denominator: int, space: str) -> None:
    text = f"{numerator}{space}/{space}{denominator}"
    radius = Radius(f" {text} ")
    assert radius == numerator / denominator and str(radius) == text and repr(radius) == f"Radius({text!r})"
    for again in (Radius(radius), copy.deepcopy(radius), pickle.loads(pickle.dumps(radius))):
        assert again == radius and again.text == text
    adapter = TypeAdapter(Radius)
    assert adapter.validate_json(adapter.dump_json(radius)).text == text


def test_whole_numbers_are_shown_without_a_point() -> None:
    assert [str(Radius(value)) for value in (0, 1, 2.0, 0.5, 0.1)] == ["0", "1", "2", "0.5", "0.1"]
    # As Python computes 8 / 255; a fifth is not meant as 51/255.
    assert [str(Radius(value)) for value in (8 / 255, 0.2, 0.1 + 0.2)] == ["8/255", "0.2", "0.30000000000000004"]


@pytest.mark.parametrize("eps", [4 / 3, 12.3456789012345, 8 / 255, 1e-7])
def test_a_record_at_any_radius_can_be_read_again(eps: float, tmp_path: Path) -> None:
    record = EvaluationRecord(**evaluation([ROBUST], eps=eps, eps_float=eps, norm="L2"))
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json", EvaluationRecord) == record


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("eight", "write a number or a fraction such as 8/255"),
        ("", "write a number or a fraction"),
        ("8/255/2", "write a number or a fraction"),
        ("8//255", "write a number or a fraction"),
        ("8/0", "divides by zero"),
        ("-8/255", "write a number or a fraction"),
        ("-0.1", "at least 0"),
        (-0.1, "at least 0"),
        ("nan", "finite"),
        ("inf", "finite"),
        (float("nan"), "finite"),
        ("1e999", "finite"),
        ("__import__('os')", "write a number or a fraction"),
    ],
)
def test_what_is_no_radius_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Radius(value)


@pytest.mark.parametrize("value", [True, None, [8, 255], {"eps": 1}])
def test_a_field_that_is_a_radius_takes_no_other_types(value: Any) -> None:
    with pytest.raises(ValidationError, match="is not a radius"):
        TypeAdapter(Radius).validate_python(value)


# Names


@given(name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True))
def test_a_usable_name_is_one_component_of_a_path(name: str) -> None:
    assert TypeAdapter(Name).validate_python(name) == name
    assert Path("zoo", name).parts == ("zoo", name)


@given(name=st.text(max_size=20))
@settings(max_examples=300)
def test_no_other_text_is_a_name(name: str) -> None:
    usable = name.isascii() and 0 < len(name) <= 100 and name[0].isalnum()
    usable = usable and all(letter.isalnum() or letter in "._-" for letter in name)
    if usable:
        assert TypeAdapter(Name).validate_python(name) == name
    else:
        with pytest.raises(ValidationError, match="not a usable name"):
            TypeAdapter(Name).validate_python(name)


@pytest.mark.parametrize("field", ["name", "dataset"])
@pytest.mark.parametrize(
    "name", ["../sam", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "sam\n", "a" * 101, "~"]
)
def test_a_card_takes_no_name_that_leads_elsewhere(field: str, name: str) -> None:
    assert ModelCard(**card())
    with pytest.raises(ValidationError, match="not a usable name"):
        ModelCard(**card(**{field: name}))
    with pytest.raises(ValidationError, match="not a usable name"):
        WeightsFile(file=name, size=1, sha256="0" * 64)


# Files


def test_a_record_written_reads_back_equal_and_is_readable_by_people(tmp_path: Path) -> None:
    written = ModelCard(**card(authors="Gödel"))
    write_record(tmp_path / "a/b/card.json", written)
    assert read_record(tmp_path / "a/b/card.json", ModelCard) == written
    text = (tmp_path / "a/b/card.json").read_text(encoding="utf-8")
    assert "Gödel" in text and text.endswith("}\n") and text.count("\n") > 20
    assert "robustbench_dataset" not in json.loads(text)  # None is left out
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["card.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda fields: fields.pop("seed"), "seed: Field required"),
        (lambda fields: fields.update(colour="red"), "colour: [Ee]xtra inputs are not permitted.*'red'"),
        (lambda fields: fields["recipe"].update(epochs=0), r"recipe\.epochs: .*greater than or equal to 1.*0"),
        (lambda fields: fields["cost"].update(seconds=-1), r"cost\.seconds: .*greater than or equal to 0"),
        (lambda fields: fields["weights"].update(file="../x"), r"weights\.file: '\.\./x' is not a usable name"),
        (lambda fields: fields.update(precision="fp16"), "precision: .*'fp32' or 'bf16'.*'fp16'"),
        (lambda fields: fields.update(clean_accuracy=90), r"clean_accuracy: .*less than or equal to 1.*90"),
        (lambda fields: fields.update(seed="x", epochs=-1), r"epochs: .*\(and 1 more\)"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(damage: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    fields = ModelCard(**card()).model_dump(mode="json")
    damage(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=rf"card\.json is not a valid ModelCard: {message}") as caught:
        read_record(path, ModelCard)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": NaN}'])
def test_a_file_that_is_no_record_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"card\.json"):
        read_record(path, ModelCard)
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.json: No such file"):
        read_record(tmp_path / "nowhere.json", ModelCard)
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_record(tmp_path, ModelCard)


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "card.json"
    write_atomic(path, "old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if function == "write":
            # A limit on the size of files fails as a full disk does, and needs no disk to fill.
            resource = pytest.importorskip("resource", reason="there are no limits on file sizes on this system")
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        else:
            patched.setattr(os if function == "fsync" else Path, function, full)
        try:
            with pytest.raises(SamBenchError, match=r"cannot write .*card\.json: .*; what stood there is untouched"):
                write_atomic(path, b"x" * 100_000)
        finally:
            if function == "write":
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["card.json"]


def test_a_write_into_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SamBenchError, match=r"cannot write .*card\.json"):
        write_atomic(tmp_path / "file" / "card.json", "new")
    assert (tmp_path / "file").read_text() == "x"


@given(content=st.binary(max_size=200))
def test_what_is_written_is_what_is_hashed(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    write_atomic(path, content)
    assert path.read_bytes() == content and sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


# Schemas


@pytest.mark.parametrize("kind", [Recipe, ModelCard, EvaluationRecord, LeaderboardEntry, RunConfig])
def test_a_records_json_schema_can_be_had_and_says_what_fields_are(kind: type[Record]) -> None:
    schema = kind.model_json_schema()
    assert schema["additionalProperties"] is False and set(schema["properties"]) == set(kind.model_fields)
    assert json.loads(json.dumps(schema)) == schema
    if "eps" in schema["properties"] and kind is EvaluationRecord:
        assert schema["properties"]["eps"]["type"] == "string"


def test_records_are_frozen() -> None:
    record = EvaluationRecord(**evaluation([ROBUST]))
    with pytest.raises(ValidationError, match="frozen"):
        record.robust_accuracy = 0.0


def test_passes_count_one_forward_and_one_backward_as_one() -> None:
    cost = Cost(train_forward=10, train_backward=10, attack_forward=100, attack_backward=100, seconds=1, device="a CPU")
    assert cost.passes == 110


def test_a_setting_that_is_none_is_as_good_as_absent() -> None:
    older, newer = ComponentSpec(method="sam", rho=0.1), ComponentSpec(method="sam", rho=0.1, m=None)
    assert older == newer and hash(older) == hash(newer)
    assert older != ComponentSpec(method="sam", rho=0.1, m=16)
    assert older != ComponentSpec(method="asam", rho=0.1)
