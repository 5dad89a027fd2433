"""Ways to forge an entry that are seen in its files alone: what is done, and the reason that it is refused with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from leaderboard_samples import Bench, digest, head_fingerprint, make_card, make_record
from safetensors.torch import save

from sam_bench.leaderboard import make_entry
from sam_bench.leaderboard.entries import row_from_record
from sam_bench.records import SecondAttack, WeightsFile, accuracies, sha256_file, write_record

TENSORS = {"net.weight": torch.arange(4.0), "bn.num_batches_tracked": torch.tensor(7)}


class Model:
    """A sound model with three records, written as `submit` writes them, but without its checks.

    AutoAttack is over the first 100 test examples; PGD-20 at 1/255 and 8/255, a curve, over all 10,000.
    """

    def __init__(self, bench: Bench, name: str = "m", *, dataset: str = "own", **changes: Any) -> None:
        self.bench, self.tensors = bench, dict(TENSORS)
        self.card = make_card(name, dataset=dataset, parameters=4, **changes)
        self.weigh()
        self.records = {
            "aa": make_record(self.card, clean=100, robust=30),
            "small": make_record(self.card, clean=8000, robust=6000, n=10_000, attack="pgd", eps="1/255"),
            "large": make_record(self.card, clean=8000, robust=4000, n=10_000, attack="pgd", carried=1500),
        }
        self.change_entry: Callable[[dict[str, Any]], Any] = lambda entry: None
        self.change_files: Callable[[Model], Any] = lambda model: None

    @property
    def place(self) -> Path:
        return self.bench.folder / self.card.dataset / self.card.threat / f"{self.card.name}.json"

    @property
    def card_path(self) -> Path:
        return self.bench.card_path(self.card.name, dataset=self.card.dataset)

    def weigh(self) -> None:
        """Put the tensors' file on the card."""
        content = save(self.tensors, metadata={"of": self.card.name})
        path = self.card_path.with_name(f"{self.card.name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        weights = WeightsFile(file=path.name, size=len(content), sha256=sha256_file(path))
        self.card = self.card.model_copy(update={"weights": weights})

    def reweigh(self, **tensors: torch.Tensor) -> None:
        """Other tensors, with records to match."""
        self.tensors |= {key.replace("__", "."): value for key, value in tensors.items()}
        self.weigh()
        for key in self.records:
            self.set(key, checkpoint_sha256=self.card.weights.sha256)

    def set(self, key: str, **changes: Any) -> None:
        """Change a record without any check."""
        self.records[key] = self.records[key].model_copy(update=changes)

    def judge(self, key: str, verdicts: list[str], **changes: Any) -> None:
        """Give a record other verdicts, with the numbers that follow."""
        numbers = accuracies(verdicts, list(self.records[key].accuracy_after))
        self.set(key, verdicts=verdicts, **numbers, **changes)

    def write(self) -> None:
        write_record(self.card_path, self.card)
        rows = []
        for record in self.records.values():
            row = row_from_record(record, sha256="0" * 64, model=self.card.name)
            path = self.place.parent / row.record
            write_record(path, record)
            rows.append(row.model_copy(update={"record_sha256": sha256_file(path)}))
        link = Path(os.path.relpath(self.card_path, self.place.parent)).as_posix()
        entry = make_entry(self.card, rows, card_link=link).model_dump(mode="json", exclude_none=True)
        self.change_entry(entry)
        self.place.write_text(json.dumps(entry))
        self.change_files(self)


def entry(change: Callable[[dict[str, Any]], Any]) -> Callable[[Model], None]:
    """A forgery of the entry's own text."""

    def forge(model: Model) -> None:
        model.change_entry = change

    return forge


def record(key: str, **changes: Any) -> Callable[[Model], None]:
    """A forgery of a record's fields."""
    return lambda model: model.set(key, **changes)


def card(**changes: Any) -> Callable[[Model], None]:
    """A forgery of the card, from which the entry is then made."""

    def forge(model: Model) -> None:
        model.card = model.card.model_copy(update=changes)

    return forge


def card_link(link: str) -> Callable[[Model], None]:
    return entry(lambda fields: fields["sam_bench"].update(card=link))


def files(change: Callable[[Model], Any]) -> Callable[[Model], None]:
    """What is done to the files when all are written."""

    def forge(model: Model) -> None:
        model.change_files = change

    return forge


def rows(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Model], None]:
    return entry(lambda fields: change(fields["sam_bench"]["rows"]))


def _squared(model: Model) -> None:
    model.judge("aa", ["robust"] * 30 + ["apgd-ce"] * 60 + ["square"] * 10)


def _told_less(model: Model) -> None:
    _squared(model)
    model.set("aa", warnings=["square-better: Square lowered the accuracy by a further 0.30% of all examples"])


def _second(model: Model) -> None:
    broken = list(range(10))
    opinion = SecondAttack(
        attack="pgd-margin", engine="sam-bench 0.1.0", robust_accuracy=0.2, gap=0.1, broken=broken, seconds=1
    )
    model.set("aa", second_opinion=opinion)


def _bf16(model: Model) -> None:
    model.records["bf16"] = make_record(
        model.card,
        clean=100,
        robust=40,
        attack="autoattack-bf16",
        engine="sam-bench 0.1.0",
        attacks=["apgd-ce", "apgd-t", "fab-t", "square"],
    )


def _screen(model: Model) -> None:
    model.records["screen"] = make_record(
        model.card,
        clean=100,
        robust=40,
        attack="autoattack-screen",
        engine="sam-bench 0.1.0",
        attacks=["apgd-ce", "apgd-t"],
    )


def _few_classes(model: Model) -> None:
    architecture = model.card.architecture.model_copy(update={"num_classes": 6})
    model.card = model.card.model_copy(update={"architecture": architecture})


def _other_model(model: Model) -> None:
    """AutoAttack's record is of another model, whose clean answers are others."""
    model.judge("aa", ["robust"] * 70 + ["misclassified"] * 30)


def _same_images_other_answers(model: Model) -> None:
    verdicts = list(model.records["large"].verdicts)
    verdicts[0], verdicts[1:400] = "robust", ["misclassified"] * 399
    verdicts[8000:8399] = ["robust"] * 399
    model.judge("large", verdicts)


def _more_than_there_are(model: Model) -> None:
    model.records["more"] = make_record(model.card, clean=16_000, robust=15_000, n=20_000, attack="fgsm")


def _borrowed(name: str) -> Callable[[Model], None]:
    def forge(model: Model) -> None:
        model.records["borrowed"] = make_record(
            model.card, clean=100, robust=90, attack=name, eps="4/255", engine="mine 1.0"
        )

    return forge


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to(target: str) -> Callable[[Model], Any]:
    def change(model: Model) -> None:
        model.card_path.unlink()
        model.card_path.symlink_to(target)

    return change


def _huge(model: Model) -> None:
    with model.card_path.open("r+b") as file:
        file.truncate(2**40)  # takes no space on the disk


def _altered_record(model: Model) -> None:
    path = next((model.place.parent / "records").glob("*autoattack*"))
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def _namesake(model: Model) -> None:
    """The same tensors under another name, in a file that differs in its header."""
    Model(model.bench, "copy").write()


def _odd_curve(model: Model) -> None:
    model.records["large"] = make_record(model.card, clean=8000, robust=7000, n=10_000, attack="pgd")


REFUSED: dict[str, tuple[Callable[[Model], None], str]] = {
    # What the entry says against its records
    "a better robust accuracy": (rows(lambda rows: rows[0].update(robust_accuracy=0.6)), "robust_accuracy of the row"),
    "a better clean accuracy": (rows(lambda rows: rows[0].update(clean_accuracy=0.9)), "clean_accuracy of the row"),
    "more examples in the row": (rows(lambda rows: rows[0].update(n_examples=10_000)), "n_examples of the row"),
    "a larger radius in the row": (rows(lambda rows: rows[0].update(eps="16/255")), "eps of the row"),
    "another norm in the row": (rows(lambda rows: rows[1].update(norm="L2")), "norm of the row"),
    "a stronger attack in the row": (rows(lambda rows: rows[1].update(attack="autoattack")), "attack of the row"),
    "another attack's name": (rows(lambda rows: rows[1].update(attack="pgd-100")), "attack of the row"),
    "a warning made up": (rows(lambda rows: rows[0].update(warnings=["x"])), "warnings of the row"),
    "one row twice": (rows(lambda rows: rows.append(rows[0])), "has two rows of autoattack at Linf 8/255"),
    "two rows for one radius, spelled apart": (
        rows(lambda rows: rows.append({**rows[0], "eps": "0.03137254901960784"})),
        "has two rows of autoattack at Linf 0.03137254901960784",
    ),
    "the headline typed": (entry(lambda fields: fields.update(autoattack_acc="66.00")), "autoattack_acc is"),
    "the footnote taken out": (entry(lambda fields: fields.pop("footnote")), "footnote is null"),
    "fewer training passes": (entry(lambda fields: fields["sam_bench"].update(passes=1.0)), "sam_bench.passes is 1.0"),
    "another architecture's name": (entry(lambda fields: fields.update(architecture="ResNet-18")), "architecture is"),
    "another method": (entry(lambda fields: fields["sam_bench"].update(method="TRADES")), "sam_bench.method is"),
    "a field of its own": (entry(lambda fields: fields.update(rank=1)), "rank"),
    "a number where text belongs": (entry(lambda fields: fields.update(authors=7)), "authors"),
    "a record of another file": (rows(lambda rows: rows[0].update(record="../m.json")), "not of the form records/"),
    "a record's path with NUL": (
        rows(lambda rows: rows[0].update(record="records/\0.json")),
        "holds the control character",
    ),
    "a record altered": (files(_altered_record), "is not the record that"),
    # What a record says against itself
    "an accuracy that its verdicts do not give": (record("aa", robust_accuracy=0.5), "robust_accuracy is 0.5"),
    "more examples than verdicts": (record("aa", n_examples=1000), "verdicts has 100 entries"),
    "eps that is another number": (record("aa", eps_float=1 / 255), "eps_float is"),
    "less of AutoAttack": (
        lambda model: model.records.update(
            aa=make_record(model.card, clean=100, robust=30, attacks=["apgd-ce", "square"])
        ),
        "accuracy_after names apgd-ce, square: evaluate with the whole attack",
    ),
    "more carried over than broken": (record("large", carried=4001), "but only 4,000 were broken"),
    "Square's warning taken out": (_squared, "lacks the warning square-better that follows from its verdicts"),
    "Square's warning made small": (_told_less, "its warning square-better should say 10.00%"),
    "the second attack's warning taken out": (_second, "lacks the warning second-opinion that follows"),
    "bfloat16's warning taken out": (_bf16, "lacks the warning bf16 that follows"),
    "the upper bound's warning taken out": (_screen, "lacks the warning upper-bound that follows"),
    "the authors' engine, with the setting of ours": (
        record("aa", settings={"engine": "fast"}),
        "'pyautoattack 0.2.0' ran, but autoattack with the setting engine=fast is run by sam-bench",
    ),
    "our engine, with the setting of the authors'": (
        record("aa", settings={"engine": "reference"}, engine="sam-bench 0.1.0"),
        "is run by pyautoattack or autoattack",
    ),
    "an engine that nobody knows": (record("small", engine="mine 1.0"), "'mine 1.0' ran, but pgd is run by sam-bench"),
    "an attack that borrows a name": (_borrowed("AutoAttack"), "would be listed as one"),
    "an attack that borrows a row's name": (_borrowed("pgd-20"), "would be listed as one"),
    "a setting that the attack has not": (record("small", settings={"steps": 20, "luck": 7}), "is not of pgd as"),
    # What a record says against the card
    "another checkpoint": (record("aa", checkpoint_sha256=digest("other")), "is about checkpoint"),
    "another data set": (record("aa", dataset="svhn"), "is about svhn"),
    "another clean accuracy on the card": (card(clean_accuracy=0.9), "has clean accuracy 80.00%, but the card of m 90"),
    "the warning of few classes taken out": (_few_classes, "lacks the warning few-classes that follows from the card"),
    "more examples than there are": (_more_than_there_are, "is over 20,000 test examples, but own has 10,000"),
    "the whole test set, with other images": (
        record("large", dataset_fingerprint=digest("easy")),
        "is over all 10,000 test examples of own with fingerprint",
    ),
    "two images' fingerprints for one number": (
        lambda model: model.records.update(
            fgsm=make_record(
                model.card,
                clean=100,
                robust=80,
                attack="fgsm",
                dataset_fingerprint=digest("easy"),
                engine="sam-bench 1",
            )
        ),
        "not the same ones",
    ),
    "one fingerprint for two numbers": (
        lambda model: model.records.update(
            fgsm=make_record(
                model.card, clean=50, robust=40, n=50, attack="fgsm", dataset_fingerprint=head_fingerprint("own", 100)
            )
        ),
        "they are said to be the same ones",
    ),
    "another model's record": (_other_model, "disagree on 30 of the first 100 test examples"),
    "other answers on the same images": (_same_images_other_answers, "they are not of one model and data set"),
    # The weights
    "int8 weights": (lambda model: model.reweigh(net__weight=torch.ones(4, dtype=torch.int8)), "net.weight is int8"),
    "bool weights": (lambda model: model.reweigh(net__weight=torch.ones(4, dtype=torch.bool)), "net.weight is bool"),
    "int64 weights": (lambda model: model.reweigh(net__weight=torch.ones(4, dtype=torch.int64)), "net.weight is int64"),
    "fewer weights than parameters": (lambda model: model.reweigh(net__weight=torch.ones(3)), "holds 3 floating-point"),
    "weights altered after the card": (
        files(
            lambda model: model.card_path.with_suffix(".safetensors").write_bytes(save({"net.weight": torch.ones(4)}))
        ),
        "is not what the card of m names",
    ),
    # Where the card is
    "an absolute card": (card_link("/etc/own/Linf/m.json"), "is not the relative path of a file"),
    "a card's path with NUL": (card_link("../\0/own/Linf/m.json"), "holds the control character"),
    "a card's path with a line's end": (card_link("../a\n/own/Linf/m.json"), "is not the relative path of a file"),
    "another model's card": (card_link("../../../model_zoo/own/Linf/better.json"), "does not lead to"),
    "a card that is no card of a zoo": (card_link("records/m.json"), "does not lead to"),
    "a card's path too long": (card_link("../" + "x" * 5000 + "/own/Linf/m.json"), "cannot be found"),
    "a card that is a pipe": (files(lambda model: _fifo(model.card_path)), "it is not a regular file"),
    "a card without an end": (files(_huge), "it is larger than"),
    "a card listed elsewhere": (
        files(
            lambda model: model.card_path.write_text(model.card.model_copy(update={"threat": "L2"}).model_dump_json())
        ),
        "is of own/Linf/m, but its card",
    ),
    "a card that is none": (files(lambda model: model.card_path.write_text("{}")), "is not a valid ModelCard"),
    "an entry that is a pipe": (files(lambda model: _fifo(model.place)), "it is not a regular file"),
    "an entry under another's name": (
        files(lambda model: model.place.rename(model.place.with_name("better.json"))),
        "belongs at Linf/m.json",
    ),
    "an entry in another data set's folder": (
        files(lambda model: model.place.parents[1].rename(model.bench.folder / "cifar10")),
        "lies among the entries of cifar10",
    ),
    # What a terminal acts on
    "a terminal escape in authors": (
        entry(lambda fields: fields.update(authors="\x1b[2J")),
        "control character '\\x1b'",
    ),
    "a terminal escape in a warning": (record("aa", warnings=["x: \x9b2J"]), "control character '\\x9b'"),
    "a terminal escape in a setting's name": (record("aa", packages={"\x1b]0;": "1"}), "control character '\\x1b'"),
    "text that is turned round": (
        entry(lambda fields: fields.update(venue="\u202eabc")),
        "control character '\\u202e'",
    ),
    "a terminal escape in a file's name": (
        files(lambda model: (model.place.parent / "\x1b[2J.json").write_text("{}")),
        "'\\x1b[2J.json' in",
    ),
}

NOTED: dict[str, tuple[Callable[[Model], None], str]] = {
    "the same weights under two names": (_namesake, "the same weights as copy"),
    "more robust in a larger ball": (_odd_curve, "more robust than at Linf 1/255 (70.00% against 60.00%)"),
    "a card outside the zoo": (card_link("../" * 40 + "etc/own/Linf/m.json"), "no card at hand"),
    "a card behind a link that leads out": (
        lambda model: model.__setattr__("change_files", _link_to(__file__)),
        "the card lies outside the zoo and was not read",
    ),
    "a card behind a link to a device": (
        lambda model: model.__setattr__("change_files", _link_to("/dev/zero")),
        "the card lies outside the zoo and was not read",
    ),
    "a card of other weights": (
        files(lambda model: write_record(model.card_path, make_card("m", dataset="own"))),
        "the card now describes other weights than the ones evaluated",
    ),
}
