"""What an attack is: it yields events, and a verifier decides what is broken. An attack cannot raise its own score."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_bench._version import __version__
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress, Verdict
from sam_bench.attacks.random_state import random_state_kept, seed_generators
from sam_bench.attacks.verify import Verifier, without_attack
from sam_bench.attacks.warnings import square_warnings, warning
from sam_bench.device import repeatable_convolutions
from sam_bench.errors import InputError
from sam_bench.modes import attacking
from sam_bench.perturb.ball import Ball
from sam_bench.plugins import version_of
from sam_bench.records import ROBUST, Norm
from sam_bench.registry import Component, Registry
from sam_bench.seeds import derive_seed

__all__ = ["ATTACKS", "ENGINE_REVISION", "Attack", "AttackResult", "ExampleAttack"]

ENGINE_REVISION = 1
"""Raise it when a change makes any attack of ours give other verdicts: other random numbers, steps or order.

Half-done evaluations of another revision are not continued. A release that changes no verdict leaves it as it is.
"""


@dataclass(frozen=True)
class AttackResult:
    """What came out, example by example.

    Attributes:
        verdicts: Per example 'robust', 'misclassified' (clean) or the name of the attack that broke it.
        attacks: Names of the attacks in the order they ran.
        x_adv: float32 [N, ...], on the CPU: the adversarial example where there is one, else the clean input.
        warnings: Reasons to doubt the result.
        engine: The implementation that ran, with its version.
        seconds: Wall-clock time.
    """

    verdicts: list[str]
    attacks: list[str]
    x_adv: Tensor
    warnings: list[AttackWarning]
    engine: str
    seconds: float


class Attack(Component):
    """Base of every attack; a subclass's fields are its settings.

    A subclass implements `perturb`, if it works on whole batches, or else `events`.
    """

    @property
    def implementation(self) -> str:
        """The implementation that runs, with its version, as a record names it."""
        module = type(self).__module__
        return f"sam-bench {__version__}" if module.startswith("sam_bench.") else version_of(module)

    @property
    def engine_revision(self) -> int | None:
        """`ENGINE_REVISION` where ours runs; None where another package's does."""
        return ENGINE_REVISION if self.implementation.startswith("sam-bench ") else None

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
    def warnings(self) -> list[AttackWarning]:
        """What holds whatever the attack finds, even where nothing is left to attack."""
        return []

    @property
    def curves(self) -> bool:
        """Whether several radii can be one run, in which what a small ball broke is not attacked again."""
        return True

    def keyed(self, key: str) -> Attack:
        """The attack for one evaluation, which stays keyed as it is; here: itself.

        Args:
            key: A digest of the model, the images and the ball, which nobody can choose, as a seed can be.
        """
        return self

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

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        """Candidates for one batch.

        Args:
            model: In eval mode, parameters frozen; maps float32 [B, C, H, W] in [0, 1] to logits.
            x: Clean inputs, float32 [B, C, H, W], on the model's device.
            y: Their labels, int64 [B].
            ball: What is allowed.

        Returns:
            [B, C, H, W]: a candidate for each; where there is none, anything.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither `perturb` nor `events`")

    def events(
        self,
        model: nn.Module,
        examples: Examples,
        verifier: Verifier,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> Iterator[Event]:
        """Search for adversarial examples; here: `perturb`, batch by batch.

        Args:
            model: As for `perturb`.
            examples: What to attack: the model gets all of it right.
            verifier: `verifier.check(rows, x_adv)` says which candidates are adversarial.
            ball: What is allowed.
            seed: Decides every random number.
            batch_size: Examples at a time.
            device: Where the model is.

        Yields:
            A verdict for each example, as soon as it is known: broken, by the attack's name, only if the verifier
            said so. Progress and warnings in between.
        """
        done = 0
        for rows in torch.arange(len(examples)).split(batch_size):
            x, y = examples.x[rows].to(device), examples.y[rows].to(device)
            x_adv = self.perturb(model, x, y, ball)
            if not bool(x_adv.isfinite().all()):  # the verifier takes them for nothing found
                yield warning("nan-candidates")
            broken = verifier.check(rows, x_adv)
            yield from examples.verdicts(rows[broken], self.method)
            yield from examples.verdicts(rows[~broken], ROBUST)
            done += len(rows)
            yield Progress(self.method, done, len(examples))

    def run_events(
        self, model: nn.Module, examples: Examples, *, ball: Ball, seed: int, batch_size: int, device: torch.device
    ) -> Iterator[Event]:
        """Attack and verify.

        Every candidate is projected into ball and box and classified again in float32; only what the
        model then gets wrong counts as broken.

        Args:
            model: Maps float32 [B, C, H, W] in [0, 1] to logits [B, classes]. It is in eval mode, its parameters
                frozen and its inputs copied, until the last event.
            examples: What to attack.
            ball: What is allowed.
            seed: Decides every random number, those of a random model included. PyTorch's, NumPy's and Python's
                generators are given back as they were after the last event.
            batch_size: Examples at a time.
            device: Where the model is.

        Yields:
            One final verdict for each example, and others before where it was found right without an attack or an
            ensemble's attack was survived; each warning once; progress.

        Raises:
            InputError: The attack does not search such a ball, or inputs and labels are not as `Examples` says.
            SamBenchError: The attack claims what the verifier did not find.
        """
        self.check(ball.norm)
        examples = _checked(model, examples)
        verifier = Verifier(model, ball=ball, batch_size=batch_size, device=device)
        told: set[AttackWarning] = set()

        def new(warnings: list[AttackWarning]) -> list[AttackWarning]:
            fresh = [each for each in dict.fromkeys(warnings) if each not in told]
            told.update(fresh)
            return fresh

        yield from new(self.warnings)
        with attacking(model) as inputs, random_state_kept(device), repeatable_convolutions():
            # The seed decides what a random model draws, and no earlier draw of the caller's.
            seed_generators(derive_seed(seed, "clean", int(examples.index[0])))
            right = verifier.clean(examples)
            yield from new([*([warning("changes-input")] if inputs.changed else []), *verifier.warnings])
            yield from without_attack(examples, right, continued=self.per_example)
            seed_generators(seed)
            if bool(right.any()):
                for event in self.events(
                    model,
                    examples.take(right),
                    verifier,
                    ball=ball,
                    seed=seed,
                    batch_size=batch_size,
                    device=device,
                ):
                    if isinstance(event, Verdict):
                        yield from new(verifier.warnings)
                        if (verdict := verifier.certify(event, self.attacks)) is not None:
                            yield verdict
                    elif isinstance(event, AttackWarning):
                        yield from new([event])
                    else:
                        yield event
            yield from new(verifier.warnings)
            yield from verifier.remaining(self.attacks)

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
    ) -> AttackResult:
        """Attack and verify, all at once; see `run_events`.

        Args:
            model: Maps float32 [B, C, H, W] in [0, 1] to logits [B, classes]; its mode and its
                parameters' `requires_grad` are restored afterwards.
            x: Clean inputs, float [N, C, H, W] in [0, 1].
            y: Labels, integers [N].
            norm: "Linf", "L2" or "L1".
            eps: Radius of the ball, in the inputs' units.
            seed: Decides every random number.
            batch_size: Examples at a time.
            device: Where the model is.
        """
        started = time.monotonic()
        warnings: list[AttackWarning] = []
        final: dict[int, Verdict] = {}
        ball, where, examples = Ball(norm=norm, eps=eps), torch.device(device), _checked(model, Examples.of(x, y))
        for event in self.run_events(model, examples, ball=ball, seed=seed, batch_size=batch_size, device=where):
            if isinstance(event, AttackWarning):
                warnings.append(event)
            elif isinstance(event, Verdict) and event.outcome is not None:
                final[event.example] = event
        verdicts = [str(final[index].outcome) for index in range(len(x))]
        x_adv = examples.x.clone()
        for index, verdict in final.items():
            if verdict.x_adv is not None:
                x_adv[index] = verdict.x_adv
        return AttackResult(
            verdicts=verdicts,
            attacks=self.attacks,
            x_adv=x_adv,
            warnings=warnings + square_warnings(verdicts, self.attacks),
            engine=self.implementation,
            seconds=time.monotonic() - started,
        )


def _checked(model: nn.Module, examples: Examples) -> Examples:
    """The examples with the types that an attack is given, on the CPU.

    Raises:
        InputError: They are none; pixels are in 0..255, which would count as robust; or the shapes are wrong.
    """
    x, y = examples.x, examples.y
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"x must be float [N, C, H, W] in [0, 1], not {_named(x)}")
    if not len(x):
        raise InputError("x holds no examples; give at least one")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise InputError(f"y must be {len(x)} integers, a label for each of x, not {_named(y)}")
    if y.min() < 0:
        raise InputError(f"y must be labels from 0, not from {int(y.min())}")
    if not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"x must be in [0, 1], not in [{float(x.min()):g}, {float(x.max()):g}]")
    # A model in float64 may be attacked in float64; any other takes float32.
    exact = x.dtype == torch.float64 and any(each.dtype == torch.float64 for each in model.parameters())
    return Examples(
        x=x.detach().to("cpu", torch.float64 if exact else torch.float32).contiguous(),
        y=y.to("cpu", torch.int64),
        index=examples.index.cpu(),
        attacks_survived=examples.attacks_survived.cpu(),
        right=None if examples.right is None else examples.right.cpu(),
    )


def _named(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class ExampleAttack(Attack):
    """Base of attacks that work example by example; a subclass implements `events`."""

    @property
    def per_example(self) -> bool:
        """Yes: a verdict depends on the example, the seed and the settings alone."""
        return True


ATTACKS: Registry[Attack] = Registry(kind="attack", field="attack", group="sam_bench.attacks", base=Attack)
