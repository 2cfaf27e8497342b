"""Calibration against Brier (1950), Guo et al. (ICML 2017) and Nixon et al. (CVPRW 2019), written out in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from kdbench.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    adaptive_ece,
    brier,
    calibration,
    ece,
    fitted_temperature,
)


def softmax(row, temperature=1.0):
    powers = [math.exp((v - max(row)) / temperature) for v in row]
    return [v / sum(powers) for v in powers]


def confidences(logits, labels):
    """(largest probability, whether the prediction is correct) of each sample."""
    rows = [softmax(row) for row in logits.tolist()]
    return [(max(p), p.index(max(p)) == y) for p, y in zip(rows, labels.tolist(), strict=True)]


def literal_nll(logits, labels, temperature=1.0):
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return -sum(math.log(softmax(z, temperature)[y]) for z, y in rows) / len(labels)


def literal_gap(bins):
    """sum_b n_b / N |mean confidence_b - accuracy_b|."""
    total = sum(len(b) for b in bins)
    gaps = [abs(np.mean([c for c, _ in b]) - np.mean([correct for _, correct in b])) * len(b) for b in bins if b]
    return sum(gaps) / total


def literal_ece(logits, labels, bins):
    """Bins (m / M, (m + 1) / M]."""
    pairs = confidences(logits, labels)
    return literal_gap([[p for p in pairs if m / bins < p[0] <= (m + 1) / bins] for m in range(bins)])


def literal_adaptive(logits, labels, bins):
    """Bins in order of confidence whose sizes differ by at most one, the larger first."""
    pairs = sorted(confidences(logits, labels), key=lambda pair: pair[0])
    edges = [0]
    for b in range(bins):
        edges.append(edges[-1] + len(pairs) // bins + (b < len(pairs) % bins))
    return literal_gap([pairs[a:b] for a, b in itertools.pairwise(edges)])


def sample(n=200, k=7, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(n, generator=generator) < 0.6, logits.argmax(1), torch.arange(n) % k)
    return logits.to(dtype), labels


def test_brier_sums_over_classes():
    logits, labels = sample()
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    literal = np.mean([sum((p - (k == y)) ** 2 for k, p in enumerate(softmax(z))) for z, y in rows])
    assert brier(logits, labels) == pytest.approx(literal, abs=1e-12)
    assert brier(logits, labels) == pytest.approx(
        brier_score_loss(labels.numpy(), logits.softmax(1).numpy(), scale_by_half=False), abs=1e-12
    )


def test_brier_of_certain_and_of_uniform_predictions():
    labels = torch.arange(4)
    assert brier(1e4 * torch.eye(4), labels) == 0
    assert brier(1e4 * torch.eye(4), (labels + 1) % 4) == 2
    assert brier(torch.zeros(4, 4), labels) == pytest.approx(0.75, abs=1e-12)  # (3/4)^2 + 3 (1/4)^2


@pytest.mark.parametrize("bins", [1, 10, 15, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ece(bins, dtype):
    logits, labels = sample(dtype=dtype)
    assert ece(logits, labels, bins) == pytest.approx(literal_ece(logits, labels, bins), abs=1e-12)
    reference = multiclass_calibration_error(logits, labels, num_classes=7, n_bins=bins, norm="l1")
    assert ece(logits, labels, bins) == pytest.approx(reference.item(), abs=1e-6)


def test_certain_predictions_have_no_bin_of_their_own():
    # confidences 0.95 (correct) and 1 (wrong) in one bin: |0.975 - 0.5|; in two bins the error would be 0.525
    logits = torch.tensor([[math.log(19), 0.0], [1e4, 0.0]], dtype=torch.float64)
    assert ece(logits, torch.tensor([0, 1]), 10) == pytest.approx(0.475, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
    # 0.5 (correct) is in (0, 0.5], 0.6 (wrong) in (0.5, 1]; in one bin their errors would nearly cancel
    logits = torch.tensor([[0.0, 0.0], [math.log(1.5), 0.0]], dtype=torch.float64)
    assert ece(logits, torch.tensor([0, 1]), 2) == pytest.approx((0.5 + 0.6) / 2, abs=1e-12)


def test_logits_between_0_and_1_are_not_taken_for_probabilities():
    logits = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    assert ece(logits, labels, 10) == pytest.approx(literal_ece(logits, labels, 10), abs=1e-12)


@pytest.mark.parametrize("count", [10_000, 3])
def test_ece_of_equal_confidences_is_exact(count):
    logits = torch.tensor([[math.log(0.98 / 0.02), 0.0]]).repeat(count, 1)
    confidence = torch.tensor(math.log(0.98 / 0.02), dtype=torch.float32).double().sigmoid().item()
    assert ece(logits, torch.zeros(count, dtype=torch.int64), 15) == pytest.approx(1 - confidence, abs=1e-12)


@pytest.mark.parametrize(("n", "bins"), [(200, 15), (200, 1), (195, 15), (7, 15)])
def test_adaptive_ece(n, bins):
    logits, labels = sample(n)
    assert adaptive_ece(logits, labels, bins) == pytest.approx(literal_adaptive(logits, labels, bins), abs=1e-12)


def test_adaptive_bins_have_equal_sizes():
    # all confidences fall into one of ten bins of equal width; in two halves the errors are 0.915 and -0.07
    logits = torch.tensor([0.91, 0.92, 0.93, 0.93], dtype=torch.float64).logit()[:, None] * torch.tensor([1.0, 0.0])
    labels = torch.tensor([1, 1, 0, 0])
    assert ece(logits, labels, 10) == pytest.approx(0.9225 - 0.5, abs=1e-12)
    assert adaptive_ece(logits, labels, 2) == pytest.approx((0.915 + 0.07) / 2, abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_fitted_temperature_minimises_the_nll(scale):
    logits, labels = sample(scale=scale)
    temperature = fitted_temperature(logits, labels)
    grid = temperature * np.exp(np.linspace(-0.5, 0.5, 101))
    best = min(grid, key=lambda t: literal_nll(logits, labels, t))
    assert best == pytest.approx(temperature, rel=1e-6)
    above, below = (literal_nll(logits, labels, temperature * (1 + step)) for step in (1e-4, -1e-4))
    assert abs(above - below) / 2e-4 < 1e-7


def test_fitted_temperature_scales_with_the_logits():
    logits, labels = sample()
    temperature = fitted_temperature(logits, labels)
    assert fitted_temperature(3 * logits, labels) == pytest.approx(3 * temperature, rel=1e-9)


def test_fitted_temperature_in_closed_form():
    # logits (gap, 0), of which a share a is correct: sigmoid(gap / T) = a
    logits = torch.tensor([[4.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert fitted_temperature(logits, labels) == pytest.approx(4 / math.log(0.8 / 0.2), rel=1e-9)


def test_fitted_temperature_stays_in_its_range():
    labels = torch.arange(5)
    for scale in (1e-3, 1.0, 1e4):
        assert fitted_temperature(scale * torch.eye(5), labels) == LOWEST
        assert fitted_temperature(scale * torch.eye(5), (labels + 1) % 5) == HIGHEST


def test_calibration_includes_the_temperature_only_if_one_is_given():
    logits, labels = sample()
    unscaled = calibration(logits, labels, None)
    assert unscaled == {
        "nll": pytest.approx(literal_nll(logits, labels), abs=1e-12),
        "brier": brier(logits, labels),
        "ece10": pytest.approx(literal_ece(logits, labels, 10), abs=1e-12),
        "ece15": pytest.approx(literal_ece(logits, labels, 15), abs=1e-12),
        "adaptive_ece": pytest.approx(literal_adaptive(logits, labels, 15), abs=1e-12),
    }
    scaled = calibration(logits, labels, 2.5)
    assert scaled == {
        **unscaled,
        "temperature": 2.5,
        "scaled_ece15": pytest.approx(literal_ece(logits / 2.5, labels, 15), abs=1e-12),
    }
