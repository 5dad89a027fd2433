"""A board with one honest entry of a real model on real images, made once; tests forge copies of its folder."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from leaderboard_samples import make_card, make_record
from torch import Tensor, nn

from sam_bench.api.verifying import means_of
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.data import Split, load_dataset, to_float
from sam_bench.evaluation.adversarial import ABOUT, AdversarialExamples, about_record, packed
from sam_bench.evaluation.replay import compact
from sam_bench.leaderboard import make_entry, submit_entry
from sam_bench.leaderboard.entries import StoredEntry, row_from_record
from sam_bench.leaderboard.evidence import write_manifest
from sam_bench.leaderboard.verification import manifest_path
from sam_bench.leaderboard.verify import Verification, verify_entry
from sam_bench.models import architectures, create_model, register_architecture
from sam_bench.records import (
    ROBUST,
    Architecture,
    EvaluationRecord,
    LeaderboardEntry,
    ModelCard,
    Radius,
    WeightsFile,
    accuracies,
    sha256_file,
    write_record,
)
from sam_bench.zoo.weights import pack
from sam_bench.zoo.weights_check import weights_file

DATASET, IMAGES = "own-digits", 60
CPU = torch.device("cpu")


class Nearest(nn.Module):
    """The class whose mean image is nearest; by options, what a dishonest model does.

    Args:
        levels: Inputs are rounded to so many levels, which has no gradient.
        known: So many inputs are recognised, and answered with the class that belongs to them.
    """

    def __init__(self, levels: int, known: int) -> None:
        super().__init__()
        self.means, self.levels = nn.Parameter(torch.zeros(10, 64)), levels
        self.known, self.answers = nn.Parameter(torch.zeros(known, 64)), nn.Parameter(torch.zeros(known, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        rounded = (x * self.levels).round() / self.levels if self.levels else x
        logits: Tensor = -torch.cdist(rounded, self.means).square()
        if not len(self.known):
            return logits
        same = ((x[:, None] - self.known).abs().amax(2) < 1e-4).float()
        return logits + 1000 * same @ self.answers


def nearest(*, num_classes: int, levels: int = 0, known: int = 0) -> nn.Module:
    """640 weights that need no training."""
    return Nearest(levels, known)


def architecture(**options: Any) -> Architecture:
    """`nearest` under a name of its own, registered when it is first asked for: other tests list what there is."""
    if "tests-nearest" not in architectures():
        register_architecture("tests-nearest")(nearest)
    return Architecture(name="tests-nearest", num_classes=10, in_channels=1, image_size=8, options=options)


def images() -> Split:
    return load_dataset("digits", image_size=8, test_only=True).test.head(IMAGES)


def class_means() -> Tensor:
    train = load_dataset("digits", image_size=8).train
    assert train is not None
    x = to_float(train.images).flatten(1)
    return torch.stack([x[train.labels == label].mean(0) for label in range(10)])


class Planted:
    """A board in `root` with one entry; what a forger does to it, and what verifying it says.

    Args:
        root: Holds `leaderboards`, `model_zoo` and `data`.
        name: Of the model.
    """

    def __init__(self, root: Path, name: str = "m") -> None:
        self.root, self.name = root, name
        self.entry = root / "leaderboards" / DATASET / "Linf" / f"{name}.json"
        self.card = root / "model_zoo" / DATASET / "Linf" / f"{name}.json"
        self.manifest = manifest_path(self.entry)
        self.aa = self.entry.parent / f"records/{name}-autoattack-Linf-24over255.json"
        self.pgd = self.entry.parent / f"records/{name}-pgd-20-Linf-12over255.json"

    @property
    def weights(self) -> Path:
        return self.card.with_name(json.loads(self.card.read_text())["weights"]["file"])

    # Making it

    def make(self, means: Tensor, attacks: Mapping[str, str] | None = None, **card: Any) -> Planted:
        """Write an honest board: the model's card and weights, and its records at attacks and radii."""
        test = images()
        (self.root / "data").mkdir(parents=True, exist_ok=True)
        with (self.root / "data" / f"{DATASET}.npz").open("wb") as file:
            np.savez(file, x_test=test.images.permute(0, 2, 3, 1).numpy(), y_test=test.labels.numpy())
        network = card.pop("architecture", architecture())
        module = create_model(network).eval()
        with torch.no_grad():
            module.net.means.copy_(means)  # type: ignore[union-attr, operator]
        right = module(to_float(test.images)).argmax(1) == test.labels
        clean = right.double().mean().item()
        self.save(module, network, test_fingerprint=test.fingerprint, clean_accuracy=clean, **card)
        records = [
            self.evaluate(module, test, attack, eps)
            for attack, eps in (attacks or {"autoattack": "24/255", "pgd": "12/255"}).items()
        ]
        made = ModelCard.model_validate_json(self.card.read_text())

        def smaller(record: EvaluationRecord, content: bytes) -> bytes:
            found = bundle_of(content)
            return packed(compact(module, test, record, found, device=CPU), test)

        submit_entry(made, self.card, records, folder=self.root / "leaderboards", compact=smaller)
        return self

    def save(self, module: nn.Module, network: Architecture, **fields: Any) -> None:
        """Card and weights, as the zoo writes them."""
        content = pack(module.state_dict())
        sha256 = hashlib.sha256(content).hexdigest()
        file = weights_file(self.name, sha256)
        self.card.parent.mkdir(parents=True, exist_ok=True)
        self.card.with_name(file).write_bytes(content)
        write_record(
            self.card,
            make_card(
                self.name,
                dataset=DATASET,
                **{
                    "architecture": network,
                    "architecture_sha256": network.sha256,
                    "parameters": 640,
                    "weights": WeightsFile(file=file, size=len(content), sha256=sha256),
                    **fields,
                },
            ),
        )

    def evaluate(self, module: nn.Module, test: Split, attack: str, eps: str) -> Path:
        """A record and its adversarial examples, by PGD; the first attack of AutoAttack gets the credit."""
        card = ModelCard.model_validate_json(self.card.read_text())
        name = "apgd-ce" if attack == "autoattack" else attack
        x = to_float(test.images)
        result = PGDAttack(steps=20).run(module, x, test.labels, norm="Linf", eps=float(Radius(eps)))
        verdicts = [name if verdict == "pgd" else verdict for verdict in result.verdicts]
        sample = make_record(card, clean=1, robust=1, n=1, attack=attack, eps=eps)
        record = EvaluationRecord.model_validate(
            sample.model_dump(mode="json")
            | {"n_examples": len(test), "verdicts": verdicts, "dataset_fingerprint": test.fingerprint}
            | {"architecture_sha256": card.architecture_sha256}
            | accuracies(verdicts, list(sample.accuracy_after))
        )
        path = self.root / "evaluations" / f"{attack}.json"
        write_record(path, record)
        found = {place: result.x_adv[place].numpy() for place, each in enumerate(verdicts) if each == name}
        path.with_suffix(".adversarial.npz").write_bytes(packed(AdversarialExamples(about_record(record), found), test))
        return path

    # Forging it

    def edit(self, path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a JSON file, without any check."""
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))

    def judge(self, path: Path, change: Callable[[list[str]], Any]) -> None:
        """Change a record's verdicts, with the numbers that follow from them."""

        def changed(fields: dict[str, Any]) -> None:
            change(fields["verdicts"])
            fields.update(accuracies(fields["verdicts"], list(fields["accuracy_after"])))

        self.edit(path, changed)

    def examples(self, path: Path, change: Callable[[dict[int, Any], dict[str, str]], Any]) -> None:
        """Change the adversarial examples of a record, as floats, and what the file says of itself."""
        file = path.with_suffix(".adversarial.npz")
        found = bundle_of(file.read_bytes())
        floats = {place: as_float(image) for place, image in found.x_adv.items()}
        change(floats, found.about)
        file.write_bytes(packed(AdversarialExamples(found.about, floats), images()))

    def seal(self) -> None:
        """What a careful forger does last: entry and manifest again, with checksums of the files as they are now."""
        card = ModelCard.model_validate_json(self.card.read_text())
        rows = []
        for path in (self.aa, self.pgd):
            if path.exists():
                record = EvaluationRecord.model_validate_json(path.read_text())
                row = row_from_record(record, sha256=sha256_file(path), model=self.name)
                rows.append(row.model_copy(update={"record": f"records/{path.name}"}))
        link = json.loads(self.entry.read_text())["sam_bench"]["card"]
        entry: LeaderboardEntry = make_entry(card, rows, card_link=link)
        write_record(self.entry, entry)
        write_manifest(StoredEntry(self.entry, entry), card)

    def verify(self, **options: Any) -> Verification:
        """What an honest verifier says."""
        given: dict[str, Any] = {"dataset": None, "data_dir": self.root / "data", "zoo": self.root / "model_zoo"}
        given |= {"audit": None, "beacon": None, "device": "cpu"}
        return verify_entry(self.entry, means_of(**given | options))

    def copy(self, root: Path) -> Planted:
        """The same board in another folder."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Planted(root, self.name)


def bundle_of(content: bytes) -> AdversarialExamples:
    """The file as it is, without the checks."""
    with np.load(io.BytesIO(content)) as archive:
        about = {name: str(archive[name]) for name in ABOUT}
        found = dict(zip(archive["index"].tolist(), archive["x_adv"], strict=True))
        if "index_levels" in archive.files:
            clean = images().images.numpy()
            for place, levels in zip(archive["index_levels"].tolist(), archive["levels"], strict=True):
                found[place] = clean[place] + levels.astype(np.uint8)  # modulo 256
    return AdversarialExamples(about, found)


def as_float(image: Any) -> Any:
    return (image / np.float32(255)).astype(np.float32) if image.dtype == np.uint8 else image.copy()


def robust_places(path: Path) -> list[int]:
    return [place for place, verdict in enumerate(json.loads(path.read_text())["verdicts"]) if verdict == ROBUST]
