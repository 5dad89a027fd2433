"""Ways to forge an entry of a real model, with its weights, its data and its adversarial examples.

Each is what a forger does to an honest board, and a part of the reason that verifying it gives.
"""

from __future__ import annotations

import shutil

import numpy as np
import torch
from planting import (
    Forge,
    _all_robust,
    _as_both,
    _asking,
    _bomb,
    _copied_bundle,
    _doubled,
    _flipped_byte,
    _half_robust,
    _header,
    _hidden_gradient,
    _larger_radius,
    _noise,
    _one_level,
    _other_model,
    _pipe,
    _recognised,
    _shifted,
    _swapped_weights,
    _text_replaced,
    about,
    archive,
    at,
    bundle,
    cost,
    each,
    edited,
    examples,
    first,
    judged,
    levelled,
    linked,
    npy,
    rebuilt,
    recipe,
    replaced,
    reweighed,
    sealed,
    turned,
)
from tiny_board import images

from sam_bench.records import ROBUST

PLANTED: dict[str, tuple[Forge, str]] = {
    # Files altered after the checksums were made
    "a verdict flipped in the record's file": (
        _text_replaced("aa", '"apgd-ce",\n', '"robust",\n'),
        "accuracy",
    ),
    "a record's seed altered": (_text_replaced("aa", '"seed": 0', '"seed": 1'), "is not the record that"),
    "a byte of the adversarial examples altered": (
        lambda board: _flipped_byte(board.aa.with_suffix(".adversarial.npz")),
        "is not the file that",
    ),
    "a byte of the weights altered": (lambda board: _flipped_byte(board.weights), "is not what the card of m names"),
    "authors altered on the card": (_text_replaced("card", '"authors": ""', '"authors": "X"'), "card is not the file"),
    "seconds of training altered": (
        edited("card", lambda fields: fields["cost"].update(seconds=0.5)),
        "card is not the file that",
    ),
    "the seed of training altered": (edited("card", lambda fields: fields.update(seed=7)), "card is not the file that"),
    "no manifest": (lambda board: board.manifest.unlink(), "manifest.json does not exist"),
    "another entry's manifest": (edited("manifest", lambda fields: fields.update(name="n")), "is of own-digits/Linf/n"),
    "a manifest that lacks the adversarial examples": (
        edited("manifest", lambda fields: fields["files"].pop("records/m-pgd-20-Linf-12over255.adversarial.npz")),
        "does not name records/m-pgd",
    ),
    "a manifest that lacks the weights": (
        edited("manifest", lambda fields: fields["files"].pop("weights")),
        "does not name weights",
    ),
    "a manifest that names a file elsewhere": (
        edited("manifest", lambda fields: fields["files"].update({"../../../etc/passwd": fields["files"]["card"]})),
        "../../../etc/passwd, which the entry rests on, is not there",
    ),
    "a manifest with another size": (
        edited("manifest", lambda fields: fields["files"]["card"].update(size=1)),
        "card is not the file that",
    ),
    "a manifest cut short": (
        lambda board: board.manifest.write_bytes(board.manifest.read_bytes()[:-9]),
        "is not a valid Manifest",
    ),
    "a manifest of another schema": (
        edited("manifest", lambda fields: fields.update(schema_version=2)),
        "is not a valid Manifest",
    ),
    "the adversarial examples taken away": (
        lambda board: board.aa.with_suffix(".adversarial.npz").unlink(),
        "which the entry rests on, is not there",
    ),
    "the weights taken away": (lambda board: board.weights.unlink(), "weights, which the entry rests on, is not there"),
    "the card taken away": (lambda board: board.card.unlink(), "no card at hand"),
    "a record taken away": (lambda board: board.aa.unlink(), "cannot read"),
    # Verdicts
    "a misclassified example called robust": (
        judged(turned("misclassified", ROBUST)),
        "the model classifies otherwise",
    ),
    "misclassified examples called robust in every record": (
        sealed(
            lambda board: (
                [board.judge(path, turned("misclassified", ROBUST, 2)) for path in (board.aa, board.pgd)]
                + [
                    board.edit(
                        board.card, lambda fields: fields.update(clean_accuracy=fields["clean_accuracy"] + 2 / 60)
                    )
                ]
            )
        ),
        "the model classifies otherwise than the record says",
    ),
    "a robust example called broken": (judged(turned(ROBUST, "apgd-ce")), "there is no adversarial example although"),
    "a broken example called robust, its adversarial example left": (
        judged(turned("apgd-ce", ROBUST)),
        "which its record calls robust",
    ),
    "a broken example called misclassified": (
        judged(turned("apgd-ce", "misclassified", 3)),
        "has clean accuracy",
    ),
    "verdicts in another order": (judged(lambda verdicts: verdicts.reverse()), "disagree on"),
    "verdicts of an attack that did not run": (
        lambda board: board.judge(board.aa, turned("apgd-ce", "magic")),
        "verdicts names 'magic'",
    ),
    "no adversarial examples": (
        bundle(lambda path: path.unlink()),
        "have no adversarial examples and stay claimed",
    ),
    # Adversarial examples
    "perturbations half as large again": (each(lambda image: image * 1.5), "lies outside ball or box"),
    "one example outside the ball": (first(lambda image: image.clip(0, 0.2)), "lies outside ball or box"),
    "one pixel of one example outside the ball": (
        first(lambda image: np.where(np.arange(64).reshape(1, 8, 8) == 27, 1 - image, image)),
        "lies outside ball or box",
    ),
    "pixels below 0": (first(lambda image: image - 0.01 * (image <= 0.01) - 1e-3), "lies outside ball or box"),
    "pixels above 1": (first(lambda image: image + 24 / 255), "lies outside ball or box"),
    "NaN for pixels": (each(lambda image: image * np.float32("nan")), "lies outside ball or box"),
    "infinity for a pixel": (first(lambda image: image + np.float32("inf")), "lies outside ball or box"),
    "clean images for adversarial ones": (
        examples(
            lambda found: found.update({place: images().images[place].numpy() / np.float32(255) for place in found})
        ),
        "does not fool the model",
    ),
    "noise for adversarial examples": (
        examples(lambda found: found.update({place: _noise(place) for place in found})),
        "does not fool the model",
    ),
    "adversarial examples of other images": (examples(_shifted), "lies outside ball or box"),
    "one adversarial example taken out": (
        examples(lambda found: found.pop(min(found))),
        "there is no adversarial example although",
    ),
    "an adversarial example of a robust image": (
        examples(lambda found: found.update({59: np.zeros((1, 8, 8), np.float32)})),
        "holds an adversarial example of test example 59",
    ),
    "the adversarial examples of another record": (
        sealed(
            lambda board: shutil.copy(
                board.pgd.with_suffix(".adversarial.npz"), board.aa.with_suffix(".adversarial.npz")
            )
        ),
        "it is another's",
    ),
    "the adversarial examples of another model": (sealed(_copied_bundle), "is of checkpoint_sha256"),
    "adversarial examples that say another attack": (about(attack="square"), "is of attack square"),
    "adversarial examples that say another norm": (about(norm="L2"), "is of norm L2"),
    "adversarial examples of another data set": (about(dataset_fingerprint="0" * 64), "is of dataset_fingerprint 0000"),
    "a larger ball's examples for a smaller ball": (at("aa", eps="16/255", eps_float=16 / 255), "outside ball or box"),
    "Linf examples for an L2 ball": (at("pgd", norm="L2", eps="0.1", eps_float=0.1), "lies outside ball or box"),
    # Their file
    "an empty file of adversarial examples": (
        bundle(lambda path: path.write_bytes(b"")),
        "have no adversarial examples and stay claimed",
    ),
    "text for adversarial examples": (
        bundle(lambda path: path.write_text("<script>alert(1)</script>")),
        "is not a file of adversarial examples",
    ),
    "adversarial examples cut short": (
        bundle(lambda path: path.write_bytes(path.read_bytes()[:-200])),
        "is not a file of adversarial examples",
    ),
    "pickled code for adversarial examples": (
        archive(lambda members: members.update({"x_adv.npy": npy(np.array([print, exec]))})),
        "x_adv is not a plain array",
    ),
    "a zip bomb": (archive(_bomb), "x_adv is larger than"),
    "a header that asks for a terabyte": (
        archive(lambda members: members.update({"x_adv.npy": _asking((2**40,))})),
        "is cut short, or longer than its header says",
    ),
    "a header of code": (
        archive(lambda members: members.update({"x_adv.npy": _header("__import__('os').getpid()")})),
        "is not a file of adversarial examples",
    ),
    "a member that climbs out": (
        archive(lambda members: members.update({"../../evil.npy": b"x"})),
        "'../../evil.npy', which does not belong in it",
    ),
    "a member with an absolute path": (
        archive(lambda members: members.update({"/tmp/evil.npy": b"x"})),
        "'/tmp/evil.npy', which does not belong in it",
    ),
    "a place outside the data set": (
        archive(lambda members: members.update({"index_levels.npy": npy(np.array([10**9]))})),
        "leads outside the 60 test examples",
    ),
    "a negative place": (
        archive(lambda members: members.update({"index_levels.npy": npy(np.array([-1]))})),
        "leads outside the 60 test examples",
    ),
    "one place twice": (
        archive(lambda members: members.update({"index_levels.npy": _doubled(members["index_levels.npy"])})),
        "twice",
    ),
    "places that are no whole numbers": (
        archive(lambda members: members.update({"index_levels.npy": npy(np.array([0.5]))})),
        "index_levels is not int64",
    ),
    "images of another shape": (
        archive(lambda members: members.update({"x_adv.npy": npy(np.zeros((1, 1, 4, 4), np.float32))})),
        "x_adv is float32 [1, 1, 4, 4], not",
    ),
    "levels outside the ball": (levelled(lambda levels, clean: levels + 25), "levels of example"),
    "one level outside the ball": (levelled(_one_level), "reach 25, but lie outside ball and box beyond 24"),
    "levels below 0": (levelled(lambda levels, clean: np.where(clean == 0, -1, levels)), "below 0 or above 255"),
    "levels above 255": (levelled(lambda levels, clean: np.where(clean == 255, 1, levels)), "below 0 or above 255"),
    "levels that overflow": (levelled(lambda levels, clean: np.full_like(levels, -128)), "reach 128, but lie outside"),
    "levels that change nothing": (levelled(lambda levels, clean: levels * 0), "does not fool the model"),
    "levels with the sign turned": (levelled(lambda levels, clean: -levels), "outside ball and box"),
    "levels of another shape": (levelled(lambda levels, clean: levels[:, :, :4]), "levels is int8 ["),
    "levels of fewer examples": (levelled(lambda levels, clean: levels[1:]), "levels is int8 ["),
    "levels in int16": (levelled(lambda levels, clean: levels.astype(np.int16)), "levels is int16"),
    "levels in uint8": (levelled(lambda levels, clean: levels.astype(np.uint8)), "levels is uint8"),
    "levels in float64": (levelled(lambda levels, clean: levels[:1].astype(np.float64)), "levels is float64"),
    "levels as pickled code": (
        archive(lambda members: members.update({"levels.npy": npy(np.array([print, exec]))})),
        "levels is not a plain array",
    ),
    "levels without their places": (archive(lambda members: members.pop("index_levels.npy")), "there is no"),
    "places without their levels": (archive(lambda members: members.pop("levels.npy")), "There is no item named"),
    "levels for other images": (levelled(lambda levels, clean: np.roll(levels, 1, 0)), "outside ball and box"),
    "an example as levels and as float32": (archive(_as_both), "twice"),
    "another format": (archive(lambda members: members.update({"format.npy": npy(np.array("3"))})), "is in format '3'"),
    "no format": (archive(lambda members: members.pop("format.npy")), "is in format '1', not 2"),
    "images in float64": (
        archive(
            lambda members: members.update(
                {"index.npy": npy(np.array([0, 1])), "x_adv.npy": npy(np.zeros((2, 1, 8, 8)))}
            )
        ),
        "x_adv is float64",
    ),
    "a pipe for adversarial examples": (
        lambda board: _pipe(board.aa.with_suffix(".adversarial.npz")),
        "it is not a regular file",
    ),
    # Model and data
    "another model's records and examples": (sealed(_other_model), "test example"),
    "weights swapped": (sealed(_swapped_weights), "test example"),
    "weights made NaN": (reweighed(lambda tensor: tensor * float("nan")), "NaN"),
    "weights made infinite": (reweighed(lambda tensor: tensor + float("inf")), "NaN"),
    "weights with one class's mean moved": (
        reweighed(lambda tensor: torch.cat([tensor[:1] + 1, tensor[1:]]) if len(tensor) == 10 else tensor),
        "test example",
    ),
    "a pickle for weights": (
        sealed(lambda board: replaced(board, b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
        "is not a whole safetensors file",
    ),
    "a pipe for weights": (lambda board: _pipe(board.weights), "it is not a regular file"),
    "a model that recognises the stored examples": (sealed(_recognised), "does not fool the model"),
    "another normalisation": (rebuilt(mean=(0.5,), std=(0.1,)), "test example"),
    "another architecture": (rebuilt(name="preactresnet10", options={"width": 2}), "does not fit preactresnet10"),
    "a network that no memory holds": (
        rebuilt(name="preactresnet10", options={"width": 10**12}),
        "must be less than or equal to 4096",
    ),
    "an option that the architecture has not": (rebuilt(options={"exec": "1"}), "has no option 'exec'"),
    "images of another size": (rebuilt(image_size=9), "the test images here have fingerprint"),
    "more channels": (rebuilt(in_channels=3), "takes images of [3, 8, 8]"),
    "fewer classes than the data have": (rebuilt(num_classes=7), "7 classes"),
    "fewer parameters than the network has": (
        sealed(edited("card", lambda fields: fields.update(parameters=64))),
        "has 640 parameters, but its card states 64",
    ),
    "a card that is of other test images": (
        sealed(edited("card", lambda fields: fields.update(test_fingerprint="0" * 64))),
        "the test images here have fingerprint",
    ),
    "a record over other images": (at("pgd", dataset_fingerprint="0" * 64), "evaluate it on own-digits"),
    # Training
    "half the training cost": (cost(train_forward=10, train_backward=10), "states 10 training passes"),
    "no training cost": (cost(train_forward=0, train_backward=0), "states 0 training passes"),
    "more epochs than the recipe has": (
        sealed(edited("card", lambda fields: fields.update(epochs=1000))),
        "is of 1000 epochs, but its recipe of",
    ),
    "SAM's model said to be of adversarial training": (
        recipe(inputs={"method": "pgd", "norm": "Linf", "eps": "8/255", "steps": 10, "step_size": "2/255"}),
        "training passes, but 10 epochs",
    ),
    "SAM's model said to be of plain training": (recipe(weights={"method": "none"}), "training passes, but 10 epochs"),
    "a method that nobody has": (recipe(weights={"method": "magic"}), "magic"),
    "a setting that the method has not": (recipe(weights={"method": "sam", "luck": 7}), "luck"),
    "a setting out of range": (recipe(weights={"method": "sam", "rho": -1}), "rho"),
    # Links and paths
    "a link for the entry": (linked("entry"), "is a link"),
    "a link for a record": (linked("aa"), "is a link"),
    "a link for the manifest": (linked("manifest"), "is a link"),
    "a link for adversarial examples": (linked("pgd"), "is a link"),
    "a link for the folder of records": (linked("records"), "is a link"),
    "a card's path that climbs out": (
        edited("entry", lambda fields: fields["sam_bench"].update(card="../../../../../etc/own-digits/Linf/m.json")),
        "no card at hand",
    ),
    "a weights file elsewhere": (
        edited("card", lambda fields: fields["weights"].update(file="../../m.safetensors")),
        "is not a usable name",
    ),
    "a script for a name": (
        edited("entry", lambda fields: fields["sam_bench"].update(name="<script>alert(1)</script>")),
        "is not a usable name",
    ),
    "a path for a data set": (edited("card", lambda fields: fields.update(dataset="../x")), "is not a usable name"),
    # Numbers that are none, and files that are none
    "NaN for an accuracy": (
        _text_replaced("aa", '"clean_accuracy": ', '"clean_accuracy": NaN, "x": '),
        "is not a valid",
    ),
    "infinity for a training cost": (_text_replaced("card", '"train_forward": 20.0', '"train_forward": 1e999'), ""),
    "an accuracy above 1": (edited("aa", lambda fields: fields.update(clean_accuracy=1.5)), "is not a valid"),
    "a negative radius": (edited("aa", lambda fields: fields.update(eps="-8/255")), "is not a radius"),
    "a radius of 400 digits": (edited("aa", lambda fields: fields.update(eps=10**400)), "is not a radius"),
    "a radius divided by zero": (edited("aa", lambda fields: fields.update(eps="8/0")), "divides by zero"),
    "brackets without end": (lambda board: board.aa.write_text("[" * 200_000), "is not a valid EvaluationRecord"),
    "bytes that are no text": (lambda board: board.card.write_bytes(b"\xff\xfe\x00{"), "is not a valid ModelCard"),
    "an unknown field": (edited("card", lambda fields: fields.update(robust=1)), "is not a valid ModelCard"),
}

AUDITED: dict[str, tuple[Forge, str]] = {
    "broken examples called robust, their adversarial examples taken out": (sealed(_all_robust), "AutoAttack broke"),
    "half of the broken examples called robust": (sealed(_half_robust), "AutoAttack broke"),
    "a larger radius than was attacked": (_larger_radius, "AutoAttack broke"),
    "a model that hides its gradient": (_hidden_gradient, "AutoAttack broke"),
}
"""Replay proves upper bounds only: a claim that is too high is for the audit to find."""
