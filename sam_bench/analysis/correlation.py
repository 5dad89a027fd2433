"""Correlation over models, with a confounder regressed out, and an interval for it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from sam_bench.analysis.base import Json

FEWEST = 6
"""Models from which on a correlation is told."""


def correlation(
    a: list[float], b: list[float], *, ranks: bool = False, given: list[float] | None = None
) -> Json | None:
    """Pearson's or Spearman's correlation, partial if a confounder is given, with its 95 % interval.

    The interval is Fisher's for Pearson's, and Bonett and Wright's (2000) for Spearman's.

    Args:
        a: One quantity, a value a model.
        b: The other.
        ranks: Spearman's: all quantities are replaced by their ranks.
        given: Regressed out of both, linearly.

    Returns:
        `estimate`, `low`, `high`; None for fewer than six models, or where a quantity does not vary.
    """
    columns = [np.asarray(each, dtype=np.float64) for each in (a, b, *([given] if given is not None else []))]
    n = len(columns[0])
    if n < FEWEST or any(np.ptp(each) == 0 for each in columns):
        return None
    if ranks:
        columns = [rankdata(each) for each in columns]
    first, second, *confounders = columns
    one, other = (_residuals(each, confounders) for each in (first, second))
    if min(np.ptp(one) / np.ptp(first), np.ptp(other) / np.ptp(second)) < 1e-9:
        return None  # the confounder says all of it
    r = float(np.clip(one @ other / math.sqrt((one @ one) * (other @ other)), -1, 1))
    z = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15))
    deviation = math.sqrt((1 + r**2 / 2 if ranks else 1) / (n - 3 - len(confounders)))
    reach = float(norm.ppf(0.975)) * deviation
    return {"estimate": r, "low": math.tanh(z - reach), "high": math.tanh(z + reach)}


def _residuals(values: NDArray[np.float64], confounders: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """What a linear regression on the confounders leaves."""
    design = np.stack([np.ones_like(values), *confounders], 1)
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    rest: NDArray[np.float64] = values - fitted
    return rest
