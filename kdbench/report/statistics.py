"""Intervals, paired tests, what n seeds can show, ranks. scipy does the work; here is what is asked of it."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
# random numbers of the bootstrap: a report of the same runs is the same report
_RESAMPLES, _SEED = 9999, 0


class Interval(NamedTuple):
    """A 95 % interval; None on both sides where the values allow none."""

    low: float | None
    high: float | None

    @property
    def holds_zero(self) -> bool | None:
        """Whether 0 is in it; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


NO_INTERVAL = Interval(None, None)


def interval(values: ArrayLike, kind: str = "t") -> Interval:
    """95 % interval of the mean.

    Args:
        values: (n,), one a run.
        kind: `t`, mean +- t_{0.975, n-1} s / sqrt(n), or `bca`, the bias-corrected and accelerated bootstrap (Efron,
            Better Bootstrap Confidence Intervals, 1987; 9,999 resamples).

    Returns:
        No interval for fewer than two values, or where the bootstrap has none (all values alike).
    """
    data = np.asarray(values, dtype=float)
    if data.size < 2:
        return NO_INTERVAL
    if kind == "t":
        half = stats.t.ppf((1 + LEVEL) / 2, data.size - 1) * data.std(ddof=1) / math.sqrt(data.size)
        return Interval(float(data.mean() - half), float(data.mean() + half))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alike values have no acceleration; the interval is then nan
        found = stats.bootstrap(
            (data,), np.mean, confidence_level=LEVEL, n_resamples=_RESAMPLES, method="BCa", rng=_SEED
        ).confidence_interval
    return Interval(float(found.low), float(found.high)) if math.isfinite(found.low + found.high) else NO_INTERVAL


def p_value(differences: ArrayLike, test: str = "t") -> float | None:
    """Two-sided p of paired differences being around 0; None where the test says nothing.

    Args:
        differences: (n,), one a pair.
        test: `t`, the paired t test (it says nothing if all differences are alike), or `wilcoxon`, the signed-rank
            test, exact where there are no ties and zeros (it says nothing if all are 0).
    """
    data = np.asarray(differences, dtype=float)
    if data.size < 2 or (np.ptp(data) == 0 if test == "t" else not data.any()):
        return None
    found = stats.ttest_1samp(data, 0.0) if test == "t" else stats.wilcoxon(data)
    return float(found.pvalue)


def holm(ps: list[float | None]) -> list[float | None]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979): the i-th smallest of m times m - i + 1, never falling.

    None, where there was no test, stays None and does not count in m.
    """
    tested = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        found[i] = largest
    return found


def resolvable(differences: ArrayLike) -> float | None:
    """Smallest true difference that a paired t test on as many pairs finds with 80 % power, at their spread.

    The d with P(T > t_{0.975, n-1}) = 0.8 for T noncentral t with n - 1 degrees of freedom and noncentrality
    sqrt(n) d / s; two-sided, level 5 %, before any correction for several tests.

    Returns:
        None for fewer than two pairs, or if all differences are alike.
    """
    data = np.asarray(differences, dtype=float)
    if data.size < 2 or np.ptp(data) == 0:
        return None
    df = data.size - 1
    critical = stats.t.ppf((1 + LEVEL) / 2, df)

    def lack(noncentrality: float) -> float:  # the other tail holds less than 1e-6 where the power is 80 %
        return float(stats.nct.sf(critical, df, noncentrality)) - POWER

    noncentrality = optimize.brentq(lack, 0.0, 3 * critical)
    return float(noncentrality * data.std(ddof=1) / math.sqrt(data.size))


def average_ranks(values: ArrayLike, higher: bool = True) -> np.ndarray:
    """Mean rank of every contender, 1 the best, ties sharing their mean (Demsar, JMLR 7, 2006).

    Args:
        values: (settings, contenders), none missing.
        higher: whether more is better.
    """
    data = np.asarray(values, dtype=float)
    return stats.rankdata(-data if higher else data, axis=1).mean(axis=0)


def friedman(values: ArrayLike) -> float | None:
    """Friedman's p that all contenders rank alike; None below three contenders or two settings."""
    data = np.asarray(values, dtype=float)
    if data.shape[0] < 2 or data.shape[1] < 3:
        return None
    found = float(stats.friedmanchisquare(*data.T).pvalue)
    return found if math.isfinite(found) else None
