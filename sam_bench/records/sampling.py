"""What a random sample says of the rest: an exact bound."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field

from sam_bench.records.fields import Fraction01, Norm, Radius, Record

LEVEL = 0.95


class Sampled(Record):
    """FAB-T and Square on a random sample of the examples that APGD left.

    What holds at the level given: AutoAttack on all examples leaves at least `at_least` of them robust. The record's
    own `robust_accuracy` is an upper bound, and `estimate` lies between.
    """

    examples: list[int] = Field(description="the sample, as indices of `verdicts`, ascending")
    of: int = Field(ge=0, description="how many examples APGD left")
    broken: int = Field(ge=0, description="how many of the sample FAB-T and Square broke")
    may_break: int = Field(ge=0, description="the most that they would break outside the sample, at `level`")
    level: float = Field(default=LEVEL, gt=0, lt=1, description="how sure that is")
    estimate: Fraction01 = Field(description="robust accuracy if the others break as often as the sample")
    at_least: Fraction01 = Field(description="robust accuracy if as many break as may")


def sample_key(checkpoint: str, architecture: str | None, images: str, norm: Norm, eps: Radius) -> str:
    """What decides which examples are in the sample: a digest of the model, the images and the ball.

    Args:
        checkpoint: SHA-256 of the weights, as in a record.
        architecture: SHA-256 of the architecture, as in a record.
        images: Fingerprint of the test images and labels.
        norm: Of the ball.
        eps: Its radius.
    """
    # The number: 8/255 and 16/510 are one ball.
    parts = [checkpoint, architecture, images, norm, float(eps).hex()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def most_outside(of: int, sample: int, broken: int, *, level: float = LEVEL) -> int:
    """The most examples outside a random sample that would break, at a level of confidence.

    The largest number of breakable examples among all with which so few in the sample has a probability above
    1 - level, less those in the sample: the exact upper limit of the hypergeometric distribution.

    Args:
        of: All examples.
        sample: Those in the sample.
        broken: Those in the sample that broke.
        level: Of confidence.
    """
    from scipy.stats import hypergeom  # half a second to import

    low, high = broken, of - sample + broken
    while low < high:  # the probability of so few falls as there are more
        middle = (low + high + 1) // 2
        if hypergeom.cdf(broken, of, middle, sample) > 1 - level:
            low = middle
        else:
            high = middle - 1
    return low - broken


def sampling_of(verdicts: list[str], attacks: tuple[str, ...], contains: list[bool]) -> Sampled:
    """The block of a record.

    Args:
        verdicts: Per example 'robust', 'misclassified' or the attack that broke it.
        attacks: The attacks that ran on the sample only.
        contains: Per example, whether it is in the sample if it was left.
    """
    left = [index for index, verdict in enumerate(verdicts) if verdict == "robust" or verdict in attacks]
    sample = [index for index in left if contains[index]]
    broken = sum(verdicts[index] in attacks for index in sample)
    others = len(left) - len(sample)
    may_break = most_outside(len(left), len(sample), broken)
    robust, total = verdicts.count("robust"), len(verdicts)
    expected = others * broken / len(sample) if sample else 0.0
    return Sampled(
        examples=sample,
        of=len(left),
        broken=broken,
        may_break=may_break,
        estimate=(robust - expected) / total,
        at_least=(robust - may_break) / total,
    )


def clopper_pearson(broken: int, sample: int, level: float) -> float:
    """The exact upper bound on a share of which `broken` of `sample` random draws were seen (Clopper, Pearson 1934).

    One-sided: the largest share with which so few are drawn with a probability of at least 1 - level.

    Args:
        broken: Draws that count, at most `sample`.
        sample: All draws.
        level: Of confidence, in (0, 1).
    """
    if broken == sample:
        return 1.0
    from scipy.stats import beta  # half a second to import

    return float(beta.ppf(level, broken + 1, sample - broken))
