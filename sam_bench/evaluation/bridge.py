"""Until the branches are merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from sam_bench.attacks import Attack
from sam_bench.attacks.events import Event, Examples


def run_events(attack: Attack, model: nn.Module, examples: Examples, **how: Any) -> Iterator[Event]:
    """See `Attack.run_events`."""
    return attack.run_events(model, examples, **how)
