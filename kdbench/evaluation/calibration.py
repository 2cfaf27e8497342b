"""Whether confidences can be believed: Brier score, expected calibration errors, temperature scaling. All in float64.

The binned errors are ours, not torchmetrics' `MulticlassCalibrationError`, which sums in float32 (in no fixed order on
a GPU), gives confidences of exactly 1 a bin of their own, and takes logits that all lie in [0, 1] for probabilities;
elsewhere the two agree to float32.
"""

import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

LOWEST, HIGHEST = 0.01, 100.0  # range of fitted temperatures


def calibration(logits: Tensor, labels: Tensor, temperature: float | None) -> dict[str, float]:
    """What is recorded of a data set.

    Args:
        logits: (N,K), N >= 1.
        labels: (N,) int64.
        temperature: fitted on other data than these; None where there are none.

    Returns:
        `nll` in nats, `brier`, `ece10`, `ece15`, `adaptive_ece` (15 bins); where a temperature is given also
        `temperature` and `scaled_ece15`, the error of logits / temperature.
    """
    found = {
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "brier": brier(logits, labels),
        "ece10": ece(logits, labels, 10),
        "ece15": ece(logits, labels, 15),
        "adaptive_ece": adaptive_ece(logits, labels),
    }
    if temperature is not None:
        found["temperature"] = temperature
        found["scaled_ece15"] = ece(logits.double() / temperature, labels, 15)
    return found


def brier(logits: Tensor, labels: Tensor) -> float:
    """Mean over samples of sum_k (p_k - [k = y])^2, in [0, 2] (Brier 1950).

    Args:
        logits: (N,K).
        labels: (N,) int64.
    """
    wanted = F.one_hot(labels, logits.shape[1])
    return (logits.double().softmax(1) - wanted).square().sum(1).mean().item()


def ece(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, eq. 3), in [0, 1].

    sum_b n_b / N |mean confidence_b - accuracy_b| over `bins` bins of equal width, (m / M, (m + 1) / M], of the largest
    probability.

    Args:
        logits: (N,K).
        labels: (N,) int64.
        bins: M >= 1.
    """
    confidence, excess = _top_label(logits, labels)
    members = F.one_hot((confidence * bins).ceil().long() - 1, bins).double()
    return (excess @ members).abs().sum().item() / len(labels)


def adaptive_ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass, in [0, 1].

    The adaptive binning of Nixon et al. (CVPR Workshops 2019, arXiv 1904.01685), of the largest probability alone: not
    their ACE, which is the mean over the probabilities of every class. Samples sorted by confidence are cut into `bins`
    runs whose lengths differ by one at most, the longer first; samples of equal confidence stay in the order given.

    Args:
        logits: (N,K).
        labels: (N,) int64.
        bins: >= 1.
    """
    confidence, excess = _top_label(logits, labels)
    runs = excess[confidence.argsort(stable=True)].tensor_split(bins)
    return torch.stack([run.sum() for run in runs]).abs().sum().item() / len(labels)


def _top_label(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Largest probability (N,) of each sample, and that less 1 if it is the label's."""
    confidence, predictions = logits.double().softmax(1).max(1)
    return confidence, confidence - (predictions == labels).double()


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimises the negative log-likelihood of logits / T (Guo et al. 2017, section 4.2).

    That likelihood is convex in 1 / T, so its slope changes sign at most once, and the root is bracketed. T is in
    [`LOWEST`, `HIGHEST`]: the lowest where every sample is right, by any margin (the optimum is T -> 0), the highest
    where the logits are no better than none (T -> infinity, or any T where they are constant).

    Args:
        logits: (N,K), N >= 1.
        labels: (N,) int64.
    """
    logits = logits.double()
    ahead = logits - logits.gather(1, labels[:, None])

    def slope(log_temperature: float) -> float:
        """Of the NLL by 1 / T: the mean over samples of the expected lead over the label."""
        weights = (ahead / math.exp(log_temperature)).softmax(1)
        return (weights * ahead).sum(1).mean().item()

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(high) >= 0:
        return HIGHEST
    if slope(low) <= 0:
        return LOWEST
    return math.exp(brentq(slope, low, high, xtol=1e-12))
