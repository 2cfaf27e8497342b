import pytest
import torch

from kdbench.evaluation.classification import Classification


def test_samples_in_batches_of_different_sizes_count_equally():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(7, 6, generator=generator), torch.randint(6, (7,), generator=generator)
    classification = Classification(6)
    for start, stop in ((0, 5), (5, 7)):
        classification.update(logits[start:stop], labels[start:stop])
    scores = classification.compute()
    correct, in_top5, nll = 0, 0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(6), key=lambda k: -row[k])
        correct += order[0] == label
        in_top5 += label in order[:5]
        nll -= row[label] - torch.tensor(row).logsumexp(0).item()
    assert (scores["accuracy"], scores["top5"]) == (pytest.approx(correct / 7), pytest.approx(in_top5 / 7))
    assert scores["nll"] == pytest.approx(nll / 7, rel=1e-6)


def test_compute_resets_the_metrics():
    classification = Classification(3)
    classification.update(torch.eye(3), torch.tensor([0, 1, 2]))
    assert classification.compute()["accuracy"] == 1
    classification.update(torch.eye(3), torch.tensor([1, 2, 0]))
    assert classification.compute()["accuracy"] == 0
