"""Does on the second device what a GPU refuses or waits for; prints for each whether it was noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import elsewhere
import torch


def refused(do: Callable[[], Any]) -> bool:
    """Whether it raises what PyTorch raises."""
    try:
        do()
    except (RuntimeError, TypeError):
        return True
    return False


def waited(do: Callable[[], Any]) -> bool:
    """Whether it was counted."""
    before = sum(elsewhere.waits.values())
    do()
    return sum(elsewhere.waits.values()) > before


def main() -> None:
    """A line of JSON each."""
    with elsewhere.Device():
        here = torch.arange(6.0).view(2, 3)
        there = here.to(elsewhere.NAME)
        rows = torch.tensor([1, 0])
        ours, theirs = torch.Generator(), torch.Generator(device=elsewhere.NAME)
        noticed = {
            "adds across devices": refused(lambda: here + there),
            "indexes the CPU from there": refused(lambda: here[rows.to(elsewhere.NAME)]),
            "draws there with the CPU's generator": refused(
                lambda: torch.rand(2, device=elsewhere.NAME, generator=ours)
            ),
            "draws here with that device's generator": refused(lambda: torch.rand(2, generator=theirs)),
            "makes an array of it": refused(there.numpy),
            "reads a number": waited(lambda: there.sum().item()),
            "reads a list": waited(there.tolist),
            "decides by a number": waited(lambda: bool(there.sum() > 0)),
            "copies back": waited(there.cpu),
            "sends": waited(lambda: here.to(elsewhere.NAME)),
            "makes a tensor from numbers": waited(lambda: torch.tensor([1, 2], device=elsewhere.NAME)),
            "chooses by a mask": waited(lambda: there[there > 2]),
            "looks for places": waited(lambda: (there > 2).nonzero()),
            "sends without waiting": not waited(lambda: here.to(elsewhere.NAME, non_blocking=True)),
            "computes": not waited(lambda: (there @ there.T).relu().sum(1)),
            "chooses by places": not waited(lambda: there[torch.arange(1, device=elsewhere.NAME)]),
            "says what it is": str(there.device) == "elsewhere:0" and torch.equal(there.cpu() + 1, here + 1),
        }
    for what, each in noticed.items():
        print(json.dumps({"does": what, "noticed": each}))


if __name__ == "__main__":
    main()
