"""The command line and Python make equal cards and equal records, but for the time and the command."""

from __future__ import annotations

from typing import Any

from cli_runner import DIGITS, CommandLine

from sam_bench import api


def _but_for_the_moment(content: dict[str, Any]) -> dict[str, Any]:
    """A card or a record without what differs from one making to the next."""
    found = {key: value for key, value in content.items() if key not in ("created", "command", "seconds", "cost")}
    if "cost" in content:
        found["cost"] = {
            key: value for key, value in content["cost"].items() if key not in ("seconds", "energy_joules")
        }
    return found


def test_cards_and_records_are_those_of_python(cli: CommandLine) -> None:
    typed = cli.done(*DIGITS, "--recipe", "sam", "--rho", "0.1", "--seed", "3", "--name", "m", "--json").json["card"]
    attack = ["--attack", "pgd", "--steps", "2", "--eps", "4/255", "--n-examples", "8"]
    record = cli.done("evaluate", "m", *attack, "--output", "typed.json", "--json").json

    fields: dict[str, Any] = {"image_size": 8, "arch": "preactresnet10", "arch_options": {"width": 2}, "seed": 3}
    settings = {"rho": 0.1, "epochs": 1, "crop_padding": 0, "flip": False}
    said = api.train(
        *("sam", "digits"),
        **fields,
        settings=settings,
        limit_train=32,
        validation=0,
        precision="fp32",
        name="m",
        run_dir="again",
        zoo="again",
    ).card.model_dump(mode="json")
    assert _but_for_the_moment(said) == _but_for_the_moment(typed)
    spec = api.EvalSpec(attack="pgd", settings={"steps": 2}, eps="4/255", n_examples=8, output="said.json")
    again = api.evaluate("m", spec).model_dump(mode="json", exclude_none=True)
    assert _but_for_the_moment(again) == _but_for_the_moment(record)
