"""What a forger does to an honest board; `planted_forgeries` has the list.

A careful forger seals: checksums, entry and manifest are made again, so that nothing but replay or audit is left to
find out.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from tiny_board import Planted, architecture, as_float, bundle_of, class_means, images, robust_places

from sam_bench.records import ROBUST, Architecture, sha256_file

Forge = Callable[[Planted], Any]


def sealed(forge: Forge) -> Forge:
    """The forgery, sealed."""

    def done(board: Planted) -> None:
        forge(board)
        board.seal()

    return done


def edited(file: str, change: Callable[[dict[str, Any]], Any]) -> Forge:
    """A change of one of the board's JSON files: `entry`, `card`, `manifest`, `aa` or `pgd`."""
    return lambda board: board.edit(getattr(board, file), change)


def judged(change: Callable[[list[str]], Any], file: str = "aa") -> Forge:
    """Other verdicts, with the numbers that follow from them; sealed."""
    return sealed(lambda board: board.judge(getattr(board, file), change))


def turned(old: str, new: str, count: int = 1) -> Callable[[list[str]], None]:
    """So many verdicts turned from one to another."""

    def change(verdicts: list[str]) -> None:
        places = [place for place, verdict in enumerate(verdicts) if verdict == old][:count]
        for place in places:
            verdicts[place] = new

    return change


def examples(change: Callable[[dict[int, Any]], Any], file: str = "aa") -> Forge:
    """Other adversarial examples; sealed."""
    return sealed(lambda board: board.examples(getattr(board, file), lambda found, about: change(found)))


def about(file: str = "aa", **said: str) -> Forge:
    """Adversarial examples that say that they are of something else; sealed."""
    return sealed(lambda board: board.examples(getattr(board, file), lambda found, texts: texts.update(said)))


def each(change: Callable[[Any], Any]) -> Forge:
    """A change of every adversarial example; sealed."""
    return examples(lambda found: found.update({place: change(image) for place, image in found.items()}))


def first(change: Callable[[Any], Any]) -> Forge:
    """A change of one adversarial example; sealed."""
    return examples(lambda found: found.update({min(found): change(found[min(found)])}))


def archive(change: Callable[[dict[str, bytes]], Any]) -> Forge:
    """Other members of the file of adversarial examples; sealed."""

    def forge(board: Planted) -> None:
        path = board.aa.with_suffix(".adversarial.npz")
        with zipfile.ZipFile(path) as there:
            members = {name: there.read(name) for name in there.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
            for name, content in members.items():
                written.writestr(name, content)

    return sealed(forge)


def levelled(change: Callable[[Any, Any], Any]) -> Forge:
    """Other levels, made of the levels and the clean images that they are added to; sealed."""

    def changed(members: dict[str, bytes]) -> None:
        levels, places = (np.load(io.BytesIO(members[f"{name}.npy"])) for name in ("levels", "index_levels"))
        made = change(levels, images().images.numpy()[places])
        members["levels.npy"] = npy(made.astype(np.int8) if made.dtype.kind == "i" and made.itemsize > 2 else made)

    return archive(changed)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def bundle(change: Callable[[Path], Any]) -> Forge:
    """What is done to the file of adversarial examples itself; sealed."""
    return sealed(lambda board: change(board.aa.with_suffix(".adversarial.npz")))


def linked(file: str) -> Forge:
    """A file of the board moved elsewhere, and a link to it put in its place."""

    def forge(board: Planted) -> None:
        path = board.aa.parent if file == "records" else getattr(board, file)
        path = path.with_suffix(".adversarial.npz") if file == "pgd" else path
        path.rename(board.root / "elsewhere")
        path.symlink_to(board.root / "elsewhere")

    return forge


def reweighed(change: Callable[[torch.Tensor], torch.Tensor]) -> Forge:
    """Other weights, with a card, records and adversarial examples that name them; sealed."""

    def forge(board: Planted) -> None:
        tensors = {name: change(tensor) for name, tensor in load(board.weights.read_bytes()).items()}
        replaced(board, save(tensors))

    return sealed(forge)


def replaced(board: Planted, content: bytes) -> None:
    """Put weights on the card, into the records and into the files of adversarial examples."""
    board.weights.write_bytes(content)
    sha256, size = sha256_file(board.weights), len(content)
    board.edit(board.card, lambda fields: fields["weights"].update(sha256=sha256, size=size))
    for path in (board.aa, board.pgd):
        board.edit(path, lambda fields: fields.update(checkpoint_sha256=sha256))
        board.examples(path, lambda found, texts: texts.update(checkpoint_sha256=sha256))


def rebuilt(**changes: Any) -> Forge:
    """Another architecture on the card, with records to match; sealed."""

    def forge(board: Planted) -> None:
        network = Architecture(**json.loads(board.card.read_text())["architecture"] | changes)
        fields = {"architecture": network.model_dump(mode="json"), "architecture_sha256": network.sha256}
        board.edit(board.card, lambda card: card.update(fields))
        for path in (board.aa, board.pgd):
            board.edit(path, lambda record: record.update(architecture_sha256=network.sha256))

    return sealed(forge)


def recipe(**changes: Any) -> Forge:
    """Another recipe on the card; sealed."""
    return sealed(edited("card", lambda fields: fields["recipe"].update(changes)))


def cost(**changes: Any) -> Forge:
    """Another training cost on the card; sealed."""
    return sealed(edited("card", lambda fields: fields["cost"].update(changes)))


def at(file: str, **fields: Any) -> Forge:
    """Other fields of a record, and of what its adversarial examples say; sealed."""

    def forge(board: Planted) -> None:
        path = getattr(board, file)
        board.edit(path, lambda record: record.update(fields))
        said = {name: str(value) for name, value in fields.items() if name in ("norm", "eps")}
        board.examples(path, lambda found, texts: texts.update(said))

    return sealed(forge)


def _other_model(board: Planted) -> None:
    """Records and adversarial examples of another model, with this one's name and checksums written into them."""
    other = Planted(board.root / "other").make(class_means().flip(0).roll(3, 0) * 0.5 + class_means() * 0.5)
    sha256 = json.loads(board.card.read_text())["weights"]["sha256"]
    for path, taken in ((board.aa, other.aa), (board.pgd, other.pgd)):
        for suffix in (".json", ".adversarial.npz"):
            shutil.copy(taken.with_suffix(suffix), path.with_suffix(suffix))
        board.edit(path, lambda fields: fields.update(checkpoint_sha256=sha256))
        board.examples(path, lambda found, texts: texts.update(checkpoint_sha256=sha256))
    clean = json.loads(board.aa.read_text())["clean_accuracy"]
    board.edit(board.card, lambda fields: fields.update(clean_accuracy=clean))


def _copied_bundle(board: Planted) -> None:
    other = Planted(board.root / "other").make(class_means() * 0.9)
    shutil.copy(other.aa.with_suffix(".adversarial.npz"), board.aa.with_suffix(".adversarial.npz"))


def _swapped_weights(board: Planted) -> None:
    """The weights of a model that is less robust under the records of another."""
    tensors = load(board.weights.read_bytes())
    replaced(board, save(tensors | {"net.means": class_means() * 0.9 + 0.05 * torch.rand(10, 64)}))


def _text_replaced(file: str, old: str, new: str) -> Forge:
    def forge(board: Planted) -> None:
        path = getattr(board, file)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return forge


def _flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _bomb(members: dict[str, bytes]) -> None:
    members["x_adv.npy"] = members["x_adv.npy"] + bytes(20 * 2**20)


def _shifted(found: dict[int, Any]) -> None:
    places, images = list(found), list(found.values())
    found.update(zip(places, images[1:] + images[:1], strict=True))


def _all_robust(board: Planted) -> None:
    """The record calls robust what was broken, and the adversarial examples are gone."""
    _larger_radius(board)
    for path, name in ((board.aa, "apgd-ce"), (board.pgd, "pgd")):
        board.judge(path, turned(name, ROBUST, 60))
        board.examples(path, lambda found, texts: found.clear())


def _half_robust(board: Planted) -> None:
    _larger_radius(board)
    hidden = [place for place, v in enumerate(json.loads(board.aa.read_text())["verdicts"]) if v == "apgd-ce"][::2]
    board.judge(board.aa, lambda verdicts: [verdicts.__setitem__(place, ROBUST) for place in hidden])
    board.examples(board.aa, lambda found, texts: [found.pop(place) for place in hidden])


_larger_radius = at("aa", eps="96/255", eps_float=96 / 255)
"""Nearly all examples can be broken there, which an audit sees at once."""


def _noise(place: int) -> Any:
    x = images().images[place].numpy() / np.float32(255)
    noise = np.random.default_rng(place).uniform(-24 / 255, 24 / 255, x.shape)
    return (x + noise).clip(0, 1).astype(np.float32)


def _one_level(levels: Any, clean: Any) -> Any:
    """One pixel moved by a level more than the ball allows, where that stays in the box."""
    found = np.argwhere((clean >= 25) & (abs(levels) <= 24))[0]
    levels[tuple(found)] = -25
    return levels


def _as_both(members: dict[str, bytes]) -> None:
    members["index.npy"] = npy(np.load(io.BytesIO(members["index_levels.npy"]))[:1])
    members["x_adv.npy"] = npy(np.zeros((1, 1, 8, 8), np.float32))


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _asking(shape: tuple[int, ...]) -> bytes:
    return _header(str({"descr": "<f4", "fortran_order": False, "shape": shape}) + "\n")


def _doubled(member: bytes) -> bytes:
    places = np.load(io.BytesIO(member))
    return npy(np.concatenate([places[:1], places[:-1]]))


def _hidden_gradient(board: Planted) -> None:
    """A model that rounds its inputs: its gradient is zero, so PGD finds nothing, and nothing can be replayed."""
    masked = Planted(board.root / "masked").make(class_means(), architecture=architecture(levels=8))
    assert len(robust_places(masked.aa)) > 50
    for folder in ("leaderboards", "model_zoo"):
        shutil.rmtree(board.root / folder)
        shutil.copytree(masked.root / folder, board.root / folder)
    _larger_radius(board)


def _recognised(board: Planted) -> None:
    """A model that knows the stored adversarial examples and answers them right."""
    found = list(bundle_of(board.aa.with_suffix(".adversarial.npz").read_bytes()).x_adv.items())
    labels = images().labels
    tensors = load(board.weights.read_bytes())
    tensors["net.known"] = torch.stack([torch.from_numpy(as_float(image)).flatten() for _, image in found])
    tensors["net.answers"] = torch.nn.functional.one_hot(torch.tensor([int(labels[k]) for k, _ in found]), 10).float()
    replaced(board, save(tensors))
    count = sum(tensor.numel() for tensor in tensors.values())
    board.edit(board.card, lambda card: card.update(parameters=count))
    rebuilt(options={"known": len(found)})(board)
