"""What an attack is: a plug-in searches, the base verifies. An attack cannot raise its own score."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sam_bench._version import __version__
from sam_bench.attacks.doubts import doubt as warning_of
from sam_bench.attacks.doubts import square_doubts
from sam_bench.attacks.judge import Judge, Verdict, predict
from sam_bench.attacks.random_state import random_state_kept, seed_generators
from sam_bench.errors import InputError, SamBenchError
from sam_bench.modes import attacking
from sam_bench.perturb.ball import Ball
from sam_bench.plugins import version_of
from sam_bench.records import Norm
from sam_bench.registry import Component, Registry
from sam_bench.seeds import derive_seed

__all__ = ["ATTACKS", "Attack", "AttackResult", "Confirm", "Found", "Progress", "Task", "Verdict", "predict"]

Confirm = Callable[[Tensor, Tensor, "str | list[str]"], Tensor]
"""`Judge.confirm`, for the examples that are attacked."""


@dataclass(frozen=True)
class Progress:
    """How far an attack is, for a progress display."""

    stage: str
    done: int
    total: int
    robust: int | None = None
    """Examples of all that are still robust, where known."""
    share: float | None = None
    """How much of the work is behind, 0 to 1, where `done` of `total` would mislead: the hardest come last."""


@dataclass(frozen=True)
class AttackResult:
    """What came out, example by example.

    Attributes:
        verdicts: Per example 'robust', 'misclassified' (clean) or the name of the attack that broke it.
        attacks: Names of the attacks in the order they ran.
        x_adv: float32 [N, ...], on the CPU: the witness where there is one, else the clean input.
        warnings: The attack's own doubts about its result, one sentence each.
        engine: The implementation that ran, with its version.
        seconds: Wall-clock time.
    """

    verdicts: list[str]
    attacks: list[str]
    x_adv: Tensor
    warnings: list[str]
    engine: str
    seconds: float


@dataclass
class Found:
    """What a search hands back: candidates, who found them, doubts. Nothing in it is believed unchecked.

    Attributes:
        x_adv: float [N, ...]: a candidate for each example (the clean input where nothing was found).
        by: Per example, the name of the attack whose candidate this is.
    """

    x_adv: Tensor
    by: list[str]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What an attack has to do, and who is told of what becomes of each example.

    A position counts the examples given here, from 0.

    Attributes:
        x: Correctly classified clean inputs, float32 [N, C, H, W] in [0, 1], on the CPU.
        y: Their labels, int64 [N], on the CPU.
        index: Their places in the data set, int64 [N]: what random draws may depend on.
        withstood: How many attacks of an ensemble each has behind it already, int64 [N]; they need not
            be run on it again.
        ball: What is allowed.
        seed: Decides every random draw.
        batch_size: Examples at a time.
        device: Where the model is.
        confirm: Takes positions int64 [K], candidates [K, ...] and the attack's name, or one for each, and
            says which of them are adversarial indeed, bool [K].
        withstand: Told, of an example that has an attack of an ensemble behind it, its position and how
            many those are now.
        progress: Told how far the attack is.
        doubt: Told, in a sentence each and as soon as it arises, what makes the attack doubt its own result.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    withstood: Tensor
    ball: Ball
    seed: int
    batch_size: int
    device: torch.device
    confirm: Confirm
    withstand: Callable[[int, int], None]
    progress: Callable[[Progress], None]
    doubt: Callable[[str], None]


class Attack(Component):
    """Base of every attack. A subclass's fields are its settings; it implements `search`."""

    @property
    def implementation(self) -> str:
        """The implementation that runs, with its version, as a record names it."""
        module = type(self).__module__
        return f"sam-bench {__version__}" if module.startswith("sam_bench.") else version_of(module)

    @property
    def attacks(self) -> list[str]:
        """Names of what runs, in order; one name for an attack that is one."""
        return [self.method]

    @property
    def per_example(self) -> bool:
        """Whether an example's verdict does not depend on which others it is attacked along with.

        Such an attack can be stopped, continued, and shared among processes.
        """
        return False

    @property
    def caveats(self) -> list[str]:
        """Doubts about the attack as such, which hold whatever it finds and wherever nothing is left to attack."""
        return []

    def check(self, norm: Norm) -> None:
        """Refuse a ball that this attack does not search, before anything is attacked; here none is.

        Raises:
            InputError: It knows other norms only.
        """

    def check_model(self, norm: Norm, *, classes: int, shape: tuple[int, int, int]) -> None:
        """Refuse a model that this attack cannot be run on, before anything is attacked; here none is.

        Args:
            norm: Of the ball.
            classes: Width of the logits.
            shape: Of one image, (C, H, W).

        Raises:
            InputError: It has too few classes, or its images are too small; says what can be run instead.
        """

    def check_device(self, device: torch.device) -> None:
        """Refuse a device that lacks what this attack needs, before anything is attacked; here none does.

        Raises:
            InputError: Something is missing; names it.
        """

    @property
    def needs_gradients(self) -> bool:
        """Whether it cannot be run on a model without a gradient with respect to the input; False: or not known."""
        return False

    @abstractmethod
    def search(self, model: nn.Module, task: Task) -> Found:
        """Look for adversarial examples.

        Args:
            model: In eval mode, parameters frozen, on the task's device; maps float32 [B, C, H, W] in [0, 1] to logits.
            task: What to attack. Whoever called judges what is found: nobody but `progress` need be told.
        """

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """Look for adversarial examples, and have each judged as it is found.

        Here: `search`, then everything at once. An attack that works example by example overrides
        this, so that a verdict is known as soon as it can be.

        Args:
            model: As for `search`.
            task: What to attack, and who is told of what becomes of it.

        Returns:
            The attack's doubts, as far as `task.doubt` was not told.
        """
        found = self.search(model, task)
        foreign = sorted(set(found.by) - set(self.attacks))
        if foreign or len(found.by) != len(task.x):
            raise SamBenchError(
                f"attack {self.method!r} must say for each of {len(task.x)} examples which of "
                f"{', '.join(self.attacks)} found its candidate, not {', '.join(foreign) or len(found.by)}"
            )
        task.confirm(torch.arange(len(task.x)), found.x_adv, found.by)
        return found.warnings

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm,
        eps: float,
        seed: int = 0,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        progress: Callable[[Progress], None] = lambda _: None,
        index: Tensor | None = None,
        withstood: Tensor | None = None,
        told: Callable[[Verdict], None] = lambda _: None,
        doubted: Callable[[str], None] = lambda _: None,
        keep_witnesses: bool = True,
    ) -> AttackResult:
        """Attack and verify.

        Every candidate is projected into ball and box and classified again in float32; only what the
        model then gets wrong counts as broken.

        Args:
            model: Maps float32 [B, C, H, W] in [0, 1] to logits [B, classes]; its mode and its
                parameters' `requires_grad` are restored afterwards.
            x: Clean inputs, float32 [N, C, H, W] in [0, 1].
            y: Labels, int64 [N].
            norm: "Linf", "L2" or "L1".
            eps: Radius of the ball, in the inputs' units.
            seed: Decides every random draw.
            index: The examples' places in the data set, int64 [N], where x is a part of it; default
                0, 1, 2, …. Draws may depend on it.
            withstood: How many attacks of an ensemble each example has withstood in an earlier run with
                the same settings, int64 [N]; default none. They are not run on it again.
            told: Called with each example's state as soon as it changes, in no particular order: what
                a file of a run's progress has to hold.
            doubted: Called with each of the attack's doubts as soon as it arises; those about the whole of the
                examples are in the result alone.
            keep_witnesses: Without, the result's `x_adv` is `x`: who is told of each witness needs no second copy.

        Raises:
            InputError: The attack does not search such a ball, or inputs and labels are not as said above.
        """
        self.check(norm)
        x, y = _checked_examples(x, y)
        started = time.monotonic()
        where = torch.device(device)
        ball = Ball(norm=norm, eps=eps)
        places = torch.arange(len(x)) if index is None else index
        behind = torch.zeros(len(x), dtype=torch.int64) if withstood is None else withstood
        doubts: list[str] = []

        def doubt(text: str) -> None:
            if text not in doubts:
                doubts.append(text)
                doubted(text)

        judge = Judge(
            model,
            x,
            y,
            index=places,
            ball=ball,
            batch_size=batch_size,
            device=where,
            attacks=len(self.attacks),
            withstood=behind,
            told=told,
            keep_witnesses=keep_witnesses,
            doubt=doubt,
        )
        for text in self.caveats:
            doubt(text)
        with attacking(model) as watch, random_state_kept(where):
            # The seed decides what a random model draws, and no earlier draw of the caller's.
            seed_generators(derive_seed(seed, "clean", int(places[0])))
            right = judge.clean()
            if watch.changed:
                doubt(warning_of("changes-input"))
            seed_generators(seed)
            if len(right):
                task = Task(
                    x=x[right],
                    y=y[right],
                    index=places[right],
                    withstood=behind[right],
                    ball=ball,
                    seed=seed,
                    batch_size=batch_size,
                    device=where,
                    confirm=lambda positions, candidates, by: judge.confirm(right[positions], candidates, by),
                    withstand=lambda position, attacks: judge.withstand(int(right[position]), attacks),
                    progress=progress,
                    doubt=doubt,
                )
                for text in self.seek(model, task):
                    doubt(text)
        verdicts = judge.close()
        return AttackResult(
            verdicts=verdicts,
            attacks=self.attacks,
            x_adv=judge.x_adv,
            warnings=doubts + square_doubts(verdicts, self.attacks),
            engine=self.implementation,
            seconds=time.monotonic() - started,
        )


def _checked_examples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The examples as float32 and int64 on the CPU.

    Raises:
        InputError: They are none; pixels are in 0..255, which would count as robust; or the shapes are wrong.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"x must be float [N, C, H, W] in [0, 1], not {_named(x)}")
    if not len(x):
        raise InputError("x holds no examples; give at least one")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise InputError(f"y must be {len(x)} integers, a label for each of x, not {_named(y)}")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"x must be in [0, 1], not in [{float(x.min()):g}, {float(x.max()):g}]")
    return x.detach().to("cpu", torch.float32).contiguous(), y.to("cpu", torch.int64)


def _named(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class ExampleAttack(Attack):
    """Base of attacks that work example by example; a subclass implements `seek`."""

    @property
    def per_example(self) -> bool:
        """Yes: that is what `seek` is for."""
        return True

    def search(self, model: nn.Module, task: Task) -> Found:
        """All of `seek` at once, for who wants candidates instead of verdicts; arguments as in `Attack.search`."""
        withstood, doubts = torch.zeros_like(task.withstood), self.caveats

        def doubt(text: str) -> None:
            if text not in doubts:
                doubts.append(text)

        judge = Judge(
            model,
            task.x,
            task.y,
            index=task.index,
            ball=task.ball,
            batch_size=task.batch_size,
            device=task.device,
            attacks=len(self.attacks),
            withstood=withstood,
            told=lambda _: None,
            doubt=doubt,
        )
        judged = replace(task, withstood=withstood, confirm=judge.confirm, withstand=judge.withstand, doubt=doubt)
        doubts += self.seek(model, judged)
        by = [verdict if verdict in self.attacks else self.attacks[-1] for verdict in judge.close()]
        return Found(x_adv=judge.x_adv, by=by, warnings=doubts)

    @abstractmethod
    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """See `Attack.seek`."""


ATTACKS: Registry[Attack] = Registry(kind="attack", field="attack", group="sam_bench.attacks", base=Attack)
