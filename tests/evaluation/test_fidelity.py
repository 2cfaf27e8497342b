"""Fidelity to the teacher; CKA compared with the N x N form of Kornblith et al. (ICML 2019)."""

import math

import numpy as np
import pytest
import torch

from kdbench.evaluation.fidelity import agreement, cka, kl


def random(seed, *size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_agreement_is_the_share_of_equal_predictions():
    student = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [5, 0, 0]])
    teacher = torch.tensor([[1.0, 0, 0], [0, 1, 2], [0, 1, 9], [1, 2, 0]])
    assert agreement(student, teacher) == 0.5


def test_kl_is_from_the_teacher_to_the_student():
    student, teacher = 2 * random(1, 9, 6), 2 * random(2, 9, 6)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (s, t)]
        total += sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True))
    assert kl(student, teacher) == pytest.approx(total / 9, abs=1e-12)
    assert kl(teacher, student) != pytest.approx(total / 9, rel=1e-3)
    assert kl(student + 5, student) == pytest.approx(0, abs=1e-14)


def test_kl_of_saturated_logits_is_their_difference():
    student, teacher = torch.tensor([[6e4, -6e4, 0.0]]), torch.tensor([[-6e4, 6e4, 0.0]])
    assert kl(student, teacher) == 120_000
    assert kl(teacher, teacher) == 0


def hsic_cka(x, y):
    """tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)) with K = XX', L = YY', H = I - 11'/N."""
    x, y = x.double().numpy(), y.double().numpy()
    h = np.eye(len(x)) - 1 / len(x)
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
    return np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l))


@pytest.mark.parametrize(("d1", "d2"), [(5, 5), (3, 40), (40, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cka(d1, d2, dtype):
    x = random(3, 30, d1) + 4
    y = (x[:, :1] ** 2 + random(4, 30, d2)).to(dtype)
    x = x.to(dtype)
    assert 0.01 < cka(x, y) < 0.99
    assert cka(x, y) == pytest.approx(hsic_cka(x, y), abs=1e-12)
    assert cka(y, x) == pytest.approx(cka(x, y), abs=1e-14)


def test_cka_ignores_rotation_scale_and_shift():
    x, y = random(5, 50, 8), random(6, 50, 4)
    rotation, _ = torch.linalg.qr(random(7, 8, 8))
    assert cka(x, -1e3 * x @ rotation + 7) == pytest.approx(1, abs=1e-12)
    assert cka(x @ rotation + 3, 1e-6 * y) == pytest.approx(cka(x, y), abs=1e-12)
    stretch = torch.tensor([10.0] + 7 * [1.0], dtype=torch.float64)
    assert cka(x, x * stretch) < 0.9  # not invariant to every linear map


def test_cka_of_uncorrelated_features_is_zero():
    x = torch.tensor([[1.0], [1], [-1], [-1]])
    y = torch.tensor([[1.0], [-1], [1], [-1]])
    assert cka(x, y) == 0


def test_cka_of_a_constant_embedding_is_none():
    x = random(8, 10, 3)
    assert cka(torch.full((10, 4), 0.1), x) is None
    assert cka(x, torch.zeros(10, 2)) is None


def test_cka_does_not_build_an_n_by_n_matrix():
    n = 200_000  # N x N in float64 would be 298 GiB
    x = random(9, n, 4)
    assert cka(x, x) == pytest.approx(1, abs=1e-12)
