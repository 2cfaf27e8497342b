import pytest
import torch

from kdbench.evaluation.classification import Classification


def test_a_set_in_unequal_batches_is_counted_by_sample():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(7, 6, generator=draw), torch.randint(6, (7,), generator=draw)
    count = Classification(6)
    for start, stop in ((0, 5), (5, 7)):
        count.update(logits[start:stop], labels[start:stop])
    found = count.compute()
    right, near, nll = 0, 0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(6), key=lambda k: -row[k])
        right += order[0] == label
        near += label in order[:5]
        nll -= row[label] - torch.tensor(row).logsumexp(0).item()
    assert (found["accuracy"], found["top5"]) == (pytest.approx(right / 7), pytest.approx(near / 7))
    assert found["nll"] == pytest.approx(nll / 7, rel=1e-6)


def test_it_forgets_what_it_has_computed():
    count = Classification(3)
    count.update(torch.eye(3), torch.tensor([0, 1, 2]))
    assert count.compute()["accuracy"] == 1
    count.update(torch.eye(3), torch.tensor([1, 2, 0]))
    assert count.compute()["accuracy"] == 0
