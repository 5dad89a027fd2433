"""What an executor is: examples go in, the attack's events come out. A new one is one file here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from sam_bench.attacks.events import Event
from sam_bench.errors import InputError
from sam_bench.evaluation.problem import Problem


class Executor(ABC):
    """Runs an attack somewhere and forwards its events."""

    field = "executor"
    """What a user leaves away to run the attack in this process instead."""

    def check(self, problem: Problem) -> None:
        """Refuse what cannot be run here, before anything is begun; an executor that shares examples calls this.

        Raises:
            InputError: The examples cannot be shared.
        """
        attack = problem.attack
        if not attack.per_example:
            raise InputError(
                f"{attack.method} as asked for ({attack.implementation}) cannot be shared among processes: what it "
                f"draws for an example depends on the others in its batch; leave `{self.field}` away"
            )

    @abstractmethod
    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        """Attack examples. An event may arrive twice; a verdict is never taken back.

        Args:
            problem: What is evaluated.
            todo: Place in the data set to how many of the attacks the example has survived, or `UNASKED`.

        Yields:
            Verdicts, warnings and progress as they come; in the end, an outcome for every example.

        Raises:
            SamBenchError: A worker failed. What was forwarded before is right.
        """

    def follow(self, problem: Problem) -> Any:
        """Work for the process that decides and writes, where that is another one; None in that process itself.

        Args:
            problem: What `run` will be given variants of: other attacks, other balls.

        Returns:
            What `finish` was given there.
        """
        return None

    def finish(self, result: Any) -> None:
        """Let the processes in `follow` go on with a result."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """Where it runs, for the message at the start."""

    @abstractmethod
    def ran_on(self) -> str:
        """What it has run on, as a record names it."""


def dealt(todo: Mapping[int, int], count: int) -> list[dict[int, int]]:
    """Examples assigned round-robin to so many parts: those that resist longest are spread over them."""
    places = list(todo)
    return [{place: todo[place] for place in places[number::count]} for number in range(min(count, len(places)))]
