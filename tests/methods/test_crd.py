"""CRD against the formulas of Tian et al. (2020), as RepDistiller computes them, written out literally in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.crd import nce_loss, negative_rows
from tests.helpers.methods import batch_of, method_of, toy_method
from tests.helpers.numeric import numeric_gradient, random


def literal(scores, log_z, count):
    """-1/B sum_b [ log P/(P + m/N) + sum_j log (m/N)/(P_j + m/N) ], P = exp(score)/Z, the first is the positive."""
    total, negatives = 0.0, scores.shape[1] - 1
    noise = negatives / count
    for row in scores.tolist():
        p = [math.exp(score) / math.exp(log_z) for score in row]
        total -= math.log(p[0] / (p[0] + noise)) + sum(math.log(noise / (q + noise)) for q in p[1:])
    return total / len(scores)


@pytest.mark.parametrize("log_z", [-1.0, 4.0])
def test_value_and_gradient(log_z):
    scores = 3 * random(1, 4, 6)
    leaf = scores.clone().requires_grad_()
    loss = nce_loss(leaf, torch.tensor(log_z, dtype=torch.float64), 20)
    assert loss.item() == pytest.approx(literal(scores, log_z, 20), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, log_z, 20), scores)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_extreme_scores_are_finite():
    scores = torch.tensor([[-1e3, 1e3, 1e3], [1e3, -1e3, -1e3]], requires_grad=True)
    loss = nce_loss(scores, torch.tensor(0.0), 10)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("counts", [[7, 1, 3], [1, 9], [4, 0, 4, 4]])
def test_negatives_are_all_images_of_other_classes_equally_often(counts):
    pool = [label for label, count in enumerate(counts) for _ in range(count)]  # sorted by label
    labels = torch.tensor([label for label, count in enumerate(counts) if count])
    torch.manual_seed(0)
    rows = negative_rows(labels, torch.tensor(counts), 20_000)
    for label, drawn in zip(labels.tolist(), rows.tolist(), strict=True):
        others = [row for row, other in enumerate(pool) if other != label]
        frequencies = np.bincount(drawn, minlength=len(pool))
        assert set(np.flatnonzero(frequencies)) == set(others)
        assert frequencies[others] == pytest.approx(20_000 / len(others), rel=0.15)


def bank_of(method, labels, index, source):
    """Give the method the training set: labels of the images at these positions of a source."""
    data = SimpleNamespace(train_labels=np.array(labels), train_index=np.array(index), source_size=source)
    method._trainer = SimpleNamespace(datamodule=data)
    method.setup("fit")
    method._trainer = None
    return method


@pytest.mark.parametrize("positive", ["updated", "stored"])
def test_a_step_equals_its_formula_and_updates_the_rows_of_its_images(positive):
    method = toy_method("crd", "method.negatives=5", "method.dimension=3", f"method.positive={positive}")
    bank_of(method, [3, 0, 2, 1, 0, 0, 1], [8, 2, 5, 4, 0, 9, 6], 10)
    assert method.student_bank.shape == (7, 3)
    # sorted by label, then as given: positions 2, 0, 9 | 4, 6 | 5 | 8
    assert method.rows[[2, 0, 9, 4, 6, 5, 8]].tolist() == [0, 1, 2, 3, 4, 5, 6]
    batch = batch_of(3)._replace(labels=torch.tensor([0, 1, 3]), index=torch.tensor([9, 4, 8]))
    banks = {"student": method.student_bank.double(), "teacher": method.teacher_bank.double()}
    student, teacher = method.forward_both(batch)
    ours, theirs = (
        torch.nn.functional.normalize(project(features.embedding), dim=1).detach().double()
        for project, features in ((method.student_projection, student), (method.teacher_projection, teacher))
    )
    torch.manual_seed(3)
    drawn = negative_rows(batch.labels, method.counts, 5)
    torch.manual_seed(3)
    loss = method.losses(student, teacher, batch)["crd"].item()
    after = {}
    for name, anchors in (("student", ours), ("teacher", theirs)):
        after[name] = banks[name].clone()
        for row, anchor in zip((2, 3, 6), anchors, strict=True):
            mixed = 0.5 * banks[name][row] + 0.5 * anchor
            after[name][row] = mixed / mixed.norm()
    expected, pool = 0.0, after if positive == "updated" else banks
    for anchors, other in ((ours, "teacher"), (theirs, "student")):
        lines = []
        for a, row, negatives in zip(anchors, (2, 3, 6), drawn.tolist(), strict=True):
            lines.append([float(a @ w) / 0.07 for w in (pool[other][row], *(banks[other][r] for r in negatives))])
        scores = torch.tensor(lines, dtype=torch.float64)
        log_z = math.log(scores.exp().mean().item() * 7)
        expected += literal(scores, log_z, 7)
    assert loss == pytest.approx(0.8 * expected, rel=1e-4)
    assert torch.equal(banks["student"], method.student_bank.double())  # the backward pass needs it
    method.on_after_backward()
    for name, bank in after.items():
        torch.testing.assert_close(getattr(method, f"{name}_bank").double(), bank, rtol=1e-5, atol=1e-6)


def test_the_constants_are_set_by_the_first_step_alone():
    method = toy_method("crd")
    assert torch.isinf(method.log_z).all()
    method.batch_losses(batch_of(6))
    method.on_after_backward()
    first = method.log_z.clone()
    assert torch.isfinite(first).all()
    method.batch_losses(batch_of(6))
    method.on_after_backward()
    assert torch.equal(method.log_z, first)


def test_the_memory_bank_is_in_the_checkpoint_and_starts_from_the_seed():
    method = bank_of(toy_method("crd"), [0, 1, 1], [0, 1, 2], 3)
    assert {"student_bank", "teacher_bank", "log_z"} <= method.state_dict().keys()
    again = bank_of(toy_method("crd"), [0, 1, 1], [0, 1, 2], 3)
    assert torch.equal(method.student_bank, again.student_bank)


def test_only_the_projections_are_trained():
    assert method_of("crd", "student=resnet8", "teacher=vgg8").extra_parameters() == (64 + 1 + 512 + 1) * 128


def test_a_training_set_of_one_class_is_refused():
    with pytest.raises(UserError, match="crd is not possible with a training set of a single class"):
        bank_of(toy_method("crd"), [1, 1], [0, 1], 2)
