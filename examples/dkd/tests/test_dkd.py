"""The loss against the formula of the paper, in float64; the plugin as kdbench sees it."""

import math

import pytest
import torch
from kdbench_dkd.dkd import dkd_terms

from kdbench.config.groups import addable_methods, header, options
from kdbench.specs.resolve import spec_of


def literal(student, teacher, labels, temperature):
    """Both KL terms, sample by sample and class by class."""
    target = other = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p = []
        for z in (z_s, z_t):
            exponentials = [math.exp(value / temperature) for value in z]
            p.append([value / sum(exponentials) for value in exponentials])
        s, t = p
        target += t[y] * math.log(t[y] / s[y]) + (1 - t[y]) * math.log((1 - t[y]) / (1 - s[y]))
        for k in range(len(s)):
            if k != y:
                q_t, q_s = t[k] / (1 - t[y]), s[k] / (1 - s[y])
                other += q_t * math.log(q_t / q_s)
    return temperature**2 * target / len(labels), temperature**2 * other / len(labels)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_terms_are_those_of_the_paper(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    terms = [term.item() for term in dkd_terms(student, teacher, labels, temperature)]
    assert terms == pytest.approx(literal(student, teacher, labels, temperature), rel=1e-12)


def test_the_two_terms_are_kd_when_the_second_is_weighted_by_what_the_teacher_leaves_to_the_others():
    from kdbench.methods.kd import kd_loss

    student, teacher = (torch.randn(1, 5, dtype=torch.float64) for _ in range(2))  # eq. 7, for one sample
    labels = torch.tensor([2])
    target, other = dkd_terms(student, teacher, labels, 2.0)
    rest = 1 - (teacher / 2.0).softmax(1)[0, 2]
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx((target + rest * other).item(), rel=1e-12)


def test_saturated_logits_are_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    terms = dkd_terms(student, -student.detach(), torch.tensor([0]), 4.0)
    sum(terms).backward()
    assert torch.isfinite(torch.stack(terms)).all()
    assert torch.isfinite(student.grad).all()


def test_kdbench_finds_the_plugin():
    assert "my_dkd" in options("method")
    assert "my_dkd" in addable_methods()
    assert header("method/my_dkd")["year"] == "2022"
    assert spec_of(["method=my_dkd", "recipe=dkd_quick"]).name == "my_dkd-resnet20-resnet8-digits-s0"
