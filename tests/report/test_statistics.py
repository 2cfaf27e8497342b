"""Statistics compared with literal formulas, published examples and simulation."""

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from kdbench.report.statistics import average_ranks, friedman, holm, interval, minimum_detectable_difference, p_value

# Student's sleep data (Biometrika 6, 1908): extra hours of sleep with drug 2 minus those with drug 1, ten patients
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]


def test_the_t_interval_of_a_published_example():
    low, high = interval(SLEEP)
    assert (low, high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_the_t_interval_of_two_values_is_that_of_the_cauchy_distribution():
    # t with 1 degree of freedom is Cauchy: its 97.5 % quantile is tan(0.475 pi), and s / sqrt(2) is half the difference
    half = math.tan(0.475 * math.pi) * 0.5
    assert interval([3.0, 4.0]) == pytest.approx((3.5 - half, 3.5 + half))


def test_bca_is_efrons_formula():
    data = np.random.default_rng(3).exponential(size=25)
    rng = np.random.default_rng(1)
    means = np.sort(rng.choice(data, (200_000, 25)).mean(axis=1))
    bias = ndtri((means < data.mean()).mean())
    left = (data.sum() - data) / 24
    gaps = left.mean() - left
    acceleration = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)
    expected = []
    for z in (ndtri(0.025), ndtri(0.975)):
        level = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        expected.append(np.quantile(means, level))
    assert interval(data, "bca") == pytest.approx(expected, abs=0.02)
    assert interval(data, "bca") != pytest.approx(interval(data), abs=0.02)


@pytest.mark.parametrize("kind", ["t", "bca"])
def test_one_value_has_no_interval(kind):
    assert interval([0.9], kind) == (None, None)


def test_the_bootstrap_of_equal_values_has_no_interval():
    assert interval([0.9, 0.9, 0.9], "bca") == (None, None)


def test_the_paired_t_test_of_a_published_example():
    assert p_value(SLEEP) == pytest.approx(0.00283289, abs=1e-8)


@pytest.mark.parametrize(("pairs", "p"), [(3, 2 / 8), (5, 2 / 32), (6, 2 / 64)])
def test_wilcoxon_p_value_of_all_positive_differences(pairs, p):
    assert p_value(np.arange(1.0, pairs + 1), "wilcoxon") == pytest.approx(p)


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_one_pair_or_equal_pairs_have_no_p_value(test):
    assert p_value([0.3], test) is None
    assert p_value([0.0, 0.0, 0.0], test) is None


def test_holm_of_a_published_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_ignores_what_was_not_tested_and_never_exceeds_one():
    assert holm([None, 0.6, 0.7]) == [None, 1.0, 1.0]


def test_thirty_four_pairs_detect_half_a_standard_deviation():
    # the textbook answer for a two-sided paired t test, 5 %, power 80 %: n = 34 (power 0.808)
    data = np.random.default_rng(0).normal(size=34)
    assert 0.48 < minimum_detectable_difference(data) / data.std(ddof=1) < 0.5


def test_the_minimum_detectable_difference_is_detected_in_four_of_five_simulations():
    delta = minimum_detectable_difference([-1.0, 0.0, 1.0])  # of standard deviation 1
    draws = np.random.default_rng(0).normal(delta, 1.0, (100_000, 3))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(3))
    assert (np.abs(t) > 4.302653).mean() == pytest.approx(0.8, abs=0.005)


def test_one_pair_or_equal_pairs_have_no_minimum_detectable_difference():
    assert minimum_detectable_difference([1.0]) is None
    assert minimum_detectable_difference([1.0, 1.0]) is None


def test_ties_share_their_mean_rank():
    # by hand: 1 2 3, then 2.5 1 2.5, then 2 2 2
    assert list(average_ranks([[0.9, 0.8, 0.7], [0.5, 0.6, 0.5], [0.4, 0.4, 0.4]])) == pytest.approx(
        [5.5 / 3, 5 / 3, 2.5]
    )


def test_the_lowest_has_rank_one_if_lower_is_better():
    assert list(average_ranks([[0.1, 0.2, 0.3]], higher=False)) == [1, 2, 3]


def test_friedman_of_a_perfect_order():
    # chi2 = 12 n / (k (k + 1)) sum (R - (k + 1) / 2)^2 = 8 for n = 4, k = 3; its p with 2 degrees of freedom: exp(-4)
    assert friedman([[1, 2, 3]] * 4) == pytest.approx(math.exp(-4))
    assert friedman([[1, 2]] * 4) is None
