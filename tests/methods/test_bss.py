"""BSS: weights, samples and classes against Heo et al. (AAAI 2019), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.bss import attack_classes, base_samples, linear_decay
from kdbench.methods.create import create
from kdbench.methods.kd import soft_cross_entropy
from tests.helpers.methods import config_of
from tests.helpers.numeric import random, softmax

# ------------------------------------------------------------------------------------------- soft cross-entropy


def literal_cross_entropy(student, teacher, temperature):
    """- sum_k p_ik log q_ik for each sample i, p and q the softmax of teacher and student at T; no T^2."""
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    pairs = [(softmax(s, temperature), softmax(t, temperature)) for s, t in rows]
    return [-sum(pk * math.log(qk) for pk, qk in zip(p, q, strict=True)) for q, p in pairs]


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_soft_cross_entropy_value_and_gradient(temperature):
    student, teacher = 3 * random(1, 7, 11), 3 * random(2, 7, 11)
    student.requires_grad_()
    loss = soft_cross_entropy(student, teacher, temperature)
    assert loss.tolist() == pytest.approx(literal_cross_entropy(student, teacher, temperature), abs=1e-12, rel=1e-12)
    loss.sum().backward()
    # d/dz_ik = (q_ik - p_ik) / T
    expected = ((student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)) / temperature
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-12)


def test_soft_cross_entropy_of_equal_logits_is_the_entropy():
    uniform = torch.zeros(2, 8, dtype=torch.float64)
    assert soft_cross_entropy(uniform, uniform, 3.0).tolist() == pytest.approx([math.log(8)] * 2, abs=1e-12)


def test_soft_cross_entropy_of_saturated_logits_is_finite():
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(student, torch.tensor([[-6e4, 6e4, 0.0]]), 1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


# ------------------------------------------------------------------------------------------- weights by epoch


def test_weights_fall_as_in_the_paper():
    # e = 1..80: 1 + 3 (1 - e/E) of the clean samples, max(2 (1 - 4/3 e/E), 0) of the boundary samples
    for e in range(1, 81):
        assert linear_decay(4.0, 1.0, 1.0, e - 1, 80) == pytest.approx(1 + 3 * (1 - e / 80), abs=1e-12)
        assert linear_decay(2.0, 0.0, 0.75, e - 1, 80) == pytest.approx(max(2 * (1 - 4 / 3 * e / 80), 0), abs=1e-12)


@pytest.mark.parametrize(
    ("start", "end", "until", "epoch", "value"),
    [(4, 1, 1, 0, 3.9625), (4, 1, 1, 79, 1), (2, 0, 0.75, 39, 2 / 3), (2, 0, 0.75, 59, 0), (2, 0, 0.75, 79, 0)],
)
def test_weights_at_known_epochs(start, end, until, epoch, value):
    assert linear_decay(start, end, until, epoch, 80) == pytest.approx(value, abs=1e-12)


# ------------------------------------------------------------------------------------------- base samples


def literal_base_samples(student, teacher, labels, count):
    """Of the samples that both classify correctly, those with the `count` largest sum_{k != y} (p_t,k - p_s,k)^2."""
    distance = {}
    for i, (s, t, y) in enumerate(zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)):
        if s.index(max(s)) == y == t.index(max(t)):
            pairs = enumerate(zip(softmax(s), softmax(t), strict=True))
            distance[i] = sum((pt - ps) ** 2 for k, (ps, pt) in pairs if k != y)
    return sorted(distance, key=distance.get, reverse=True)[:count]


@pytest.fixture
def classified():
    """Logits of a student and a teacher, and labels, for 24 samples; they agree on some of them."""
    teacher = 2 * random(3, 24, 5)
    student, labels = teacher + 1.5 * random(4, 24, 5), teacher.argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    return student, teacher, labels


@pytest.mark.parametrize("count", [1, 4, 9, 20, 24])
def test_base_samples(classified, count):
    expected = literal_base_samples(*classified, count)
    assert len(literal_base_samples(*classified, 24)) in range(10, 20)  # both more and fewer than the counts here
    index, weights = base_samples(*classified, count)
    n = len(expected)
    assert index.shape == weights.shape == (count,)
    assert index.dtype == torch.int64
    assert sorted(index[:n].tolist()) == sorted(expected)
    assert set(index.tolist()) == set(expected)  # the slots beyond repeat them
    assert weights.tolist() == pytest.approx([1 / n] * n + [0] * (count - n), rel=1e-6)


def test_the_ranking_ignores_the_label():
    # over k != y: 0.03 and 0.04; with k = y: 0.12 and 0.08
    teacher = torch.tensor([[0.4, 0.2, 0.2, 0.2], [0.5, 0.3, 0.1, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    index, _ = base_samples(student, teacher, torch.zeros(2, dtype=torch.int64), 1)
    assert index.tolist() == [1]


def test_weights_are_zero_where_no_sample_qualifies():
    logits = torch.eye(4, dtype=torch.float64)
    wrong = torch.tensor([1, 2, 3, 0])
    labels = torch.arange(4)
    for student, teacher in [(logits[wrong], logits), (logits, logits[wrong]), (logits[wrong], logits[wrong])]:
        index, weights = base_samples(student, teacher, labels, 3)
        assert weights.tolist() == [0, 0, 0]
        assert all(i in range(4) for i in index.tolist())


def test_shapes_of_base_samples_do_not_depend_on_the_data(classified):
    index, weights = base_samples(*(t.to("meta") for t in classified), 6)
    assert index.shape == weights.shape == (6,)


# ------------------------------------------------------------------------------------------- attack classes


def test_attack_classes_follow_the_teacher_without_its_first_choice():
    logits, n = [1.0, 3.0, 0.0, -1.0, 2.0], 40_000
    torch.manual_seed(5)
    drawn = attack_classes(torch.tensor(logits, dtype=torch.float64).expand(n, -1))
    p = softmax(logits)
    p[1] = 0
    expected = torch.tensor([v / sum(p) for v in p], dtype=torch.float64)
    assert drawn.shape == (n,)
    assert drawn.dtype == torch.int64
    frequency = torch.bincount(drawn, minlength=5) / n
    assert frequency[1] == 0
    deviation = (expected * (1 - expected) / n).sqrt()
    assert ((frequency - expected).abs() <= 5 * deviation).all()


def test_attack_classes_of_two_are_the_other():
    teacher = random(6, 50, 2)
    assert attack_classes(teacher).tolist() == (1 - teacher.argmax(1)).tolist()


@pytest.mark.parametrize("top", [50.0, 200.0, 6e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attack_classes_of_a_saturated_teacher(top, dtype):
    teacher = torch.tensor([[0.0, 2.0, top, 1.0]], dtype=dtype).expand(20_000, -1)
    torch.manual_seed(7)
    drawn = attack_classes(teacher)
    assert set(drawn.tolist()) == {0, 1, 3}
    expected = torch.tensor(softmax([0.0, 2.0, -math.inf, 1.0]))
    assert (torch.bincount(drawn, minlength=4) / len(drawn) - expected).abs().max() < 0.02


@pytest.mark.parametrize("low", [-200.0, -6e4])
def test_attack_classes_far_below_the_first_are_other_classes(low):
    teacher = torch.full((100, 6), low)
    teacher[torch.arange(100), torch.arange(100) % 6] = -low
    drawn = attack_classes(teacher)
    assert ((drawn >= 0) & (drawn < 6)).all()
    assert (drawn != teacher.argmax(1)).all()


# ------------------------------------------------------------------------------------------- method


def test_labels_keep_their_full_weight():
    assert create(config_of("bss")["method"]).label_weight == 1
