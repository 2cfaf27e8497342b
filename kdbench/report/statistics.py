"""Confidence intervals, paired tests, minimum detectable differences and ranks, computed by scipy."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
# a fixed seed, so that the same runs always give the same report
_RESAMPLES, _SEED = 9999, 0


class Interval(NamedTuple):
    """A 95 % confidence interval; both ends are None where the values allow none."""

    low: float | None
    high: float | None

    @property
    def contains_zero(self) -> bool | None:
        """Whether 0 lies in the interval; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


NO_INTERVAL = Interval(None, None)


def interval(values: ArrayLike, kind: str = "t") -> Interval:
    """95 % confidence interval of the mean.

    Args:
        values: (n,), one per run.
        kind: `t`, mean ± t_{0.975, n-1} s / sqrt(n), or `bca`, the bias-corrected and accelerated bootstrap (Efron,
            Better Bootstrap Confidence Intervals, 1987; 9,999 resamples).

    Returns:
        The interval; `NO_INTERVAL` for fewer than two values, or where the bootstrap has none (all values equal).
    """
    data = np.asarray(values, dtype=float)
    if data.size < 2:
        return NO_INTERVAL
    if kind == "t":
        half_width = stats.t.ppf((1 + LEVEL) / 2, data.size - 1) * data.std(ddof=1) / math.sqrt(data.size)
        return Interval(float(data.mean() - half_width), float(data.mean() + half_width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal values have no acceleration: the interval is then nan
        bootstrap = stats.bootstrap(
            (data,), np.mean, confidence_level=LEVEL, n_resamples=_RESAMPLES, method="BCa", rng=_SEED
        ).confidence_interval
    if not math.isfinite(bootstrap.low + bootstrap.high):
        return NO_INTERVAL
    return Interval(float(bootstrap.low), float(bootstrap.high))


def p_value(differences: ArrayLike, test: str = "t") -> float | None:
    """Two-sided p value of paired differences against 0.

    Args:
        differences: (n,), one per pair.
        test: `t`, the paired t test, or `wilcoxon`, the signed-rank test, which is exact without ties and zeros.

    Returns:
        None where the test is undefined: fewer than two pairs, all differences equal (`t`) or all 0 (`wilcoxon`).
    """
    data = np.asarray(differences, dtype=float)
    if data.size < 2 or (np.ptp(data) == 0 if test == "t" else not data.any()):
        return None
    outcome = stats.ttest_1samp(data, 0.0) if test == "t" else stats.wilcoxon(data)
    return float(outcome.pvalue)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979) of the p values of one family of tests.

    The i-th smallest of m p values is multiplied by m - i + 1; the results never decrease. None, where there was no
    test, stays None and does not count in m.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = largest
    return corrected


def minimum_detectable_difference(differences: ArrayLike) -> float | None:
    """True difference that a paired t test detects with 80 % power, with this number of pairs and their spread.

    The d with P(T > t_{0.975, n-1}) = 0.8 for T noncentral t with n - 1 degrees of freedom and noncentrality
    sqrt(n) d / s; two-sided, level 5 %, before any correction for multiple tests.

    Args:
        differences: (n,), one per pair.

    Returns:
        None for fewer than two pairs, or if all differences are equal.
    """
    data = np.asarray(differences, dtype=float)
    if data.size < 2 or np.ptp(data) == 0:
        return None
    df = data.size - 1
    critical = stats.t.ppf((1 + LEVEL) / 2, df)

    def excess_power(noncentrality: float) -> float:
        # the other tail is ignored: it holds less than 1e-6 where the power is 80 %
        return float(stats.nct.sf(critical, df, noncentrality)) - POWER

    noncentrality = optimize.brentq(excess_power, 0.0, 3 * critical)
    return float(noncentrality * data.std(ddof=1) / math.sqrt(data.size))


def average_ranks(values: ArrayLike, higher: bool = True) -> np.ndarray:
    """Average rank of every contender; 1 is best, ties share their mean rank (Demšar, JMLR 7, 2006).

    Args:
        values: (settings, contenders), without missing values.
        higher: whether higher values are better.
    """
    data = np.asarray(values, dtype=float)
    return stats.rankdata(-data if higher else data, axis=1).mean(axis=0)


def friedman(values: ArrayLike) -> float | None:
    """P value of the Friedman test that all contenders have equal ranks.

    Args:
        values: (settings, contenders), without missing values.

    Returns:
        None for fewer than three contenders or two settings.
    """
    data = np.asarray(values, dtype=float)
    if data.shape[0] < 2 or data.shape[1] < 3:
        return None
    p = float(stats.friedmanchisquare(*data.T).pvalue)
    return p if math.isfinite(p) else None
