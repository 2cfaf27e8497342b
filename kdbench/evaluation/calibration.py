"""Calibration: Brier score, expected calibration errors and temperature scaling, all in float64.

The binned errors are not torchmetrics' `MulticlassCalibrationError`, which sums in float32 (on a GPU in no fixed
order), puts confidences of exactly 1 in a bin of their own and treats logits that all lie in [0, 1] as probabilities.
In all other cases the two agree to float32 precision.
"""

import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

LOWEST, HIGHEST = 0.01, 100.0  # range of fitted temperatures


def calibration(logits: Tensor, labels: Tensor, temperature: float | None) -> dict[str, float]:
    """The calibration measures that are recorded for a data set.

    Args:
        logits: (N,K), N >= 1.
        labels: (N,) int64.
        temperature: a temperature fitted on other data; None if there is no such data.

    Returns:
        `nll` in nats, `brier`, `ece10`, `ece15` and `adaptive_ece` (15 bins); with a temperature also `temperature` and
        `scaled_ece15`, the error of logits / temperature.
    """
    measures = {
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "brier": brier(logits, labels),
        "ece10": ece(logits, labels, 10),
        "ece15": ece(logits, labels, 15),
        "adaptive_ece": adaptive_ece(logits, labels),
    }
    if temperature is not None:
        measures["temperature"] = temperature
        measures["scaled_ece15"] = ece(logits.double() / temperature, labels, 15)
    return measures


def brier(logits: Tensor, labels: Tensor) -> float:
    """Brier score (Brier 1950): the mean over samples of sum_k (p_k - [k = y])^2, in [0, 2].

    Args:
        logits: (N,K).
        labels: (N,) int64.
    """
    one_hot = F.one_hot(labels, logits.shape[1])
    return (logits.double().softmax(1) - one_hot).square().sum(1).mean().item()


def ece(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, eq. 3), in [0, 1].

    sum_b n_b / N |mean confidence_b - accuracy_b| over M bins (m / M, (m + 1) / M] of the confidence, the largest
    probability of a sample.

    Args:
        logits: (N,K).
        labels: (N,) int64.
        bins: M >= 1.
    """
    confidence, gap = _confidence_gap(logits, labels)
    members = F.one_hot((confidence * bins).ceil().long() - 1, bins).double()
    return (gap @ members).abs().sum().item() / len(labels)


def adaptive_ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass, in [0, 1].

    Uses the adaptive binning of Nixon et al. (CVPR Workshops 2019, arXiv 1904.01685) for the largest probability only;
    this is not their ACE, which averages over the probabilities of all classes. The samples are sorted by confidence,
    ties in the order given, and split into `bins` parts whose sizes differ by at most one, the larger parts first.

    Args:
        logits: (N,K).
        labels: (N,) int64.
        bins: >= 1.
    """
    confidence, gap = _confidence_gap(logits, labels)
    parts = gap[confidence.argsort(stable=True)].tensor_split(bins)
    return torch.stack([part.sum() for part in parts]).abs().sum().item() / len(labels)


def _confidence_gap(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence (N,) of each sample, and its difference (N,) from the correctness, 1 or 0, of the prediction."""
    confidence, predictions = logits.double().softmax(1).max(1)
    return confidence, confidence - (predictions == labels).double()


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the negative log-likelihood of logits / T (Guo et al. 2017, section 4.2).

    The likelihood is convex in 1 / T, so its slope changes sign at most once, and the root can be bracketed. T is
    limited to [`LOWEST`, `HIGHEST`]. It is the lowest if every sample is classified correctly, by whatever margin (the
    optimum is T -> 0), and the highest if the logits carry no information (the optimum is T -> infinity, or any T if
    they are constant).

    Args:
        logits: (N,K), N >= 1.
        labels: (N,) int64.
    """
    logits = logits.double()
    lead = logits - logits.gather(1, labels[:, None])

    def slope(log_temperature: float) -> float:
        """Derivative of the NLL with respect to 1 / T: the mean over samples of the expected lead over the label."""
        probabilities = (lead / math.exp(log_temperature)).softmax(1)
        return (probabilities * lead).sum(1).mean().item()

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(high) >= 0:
        return HIGHEST
    if slope(low) <= 0:
        return LOWEST
    return math.exp(brentq(slope, low, high, xtol=1e-12))
