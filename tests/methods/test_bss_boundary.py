"""The steps of BSS to the teacher's decision boundary, written out literally in float64."""

import numpy as np
import pytest
import torch

from kdbench.methods.bss import boundary_samples
from tests.helpers.numeric import random

MEAN, STD = np.array([0.5, 0.4, 0.3]).reshape(3, 1, 1), np.array([0.25, 0.5, 0.1]).reshape(3, 1, 1)
SCALE = torch.from_numpy(1 / STD)[None]


class Quadratic:
    """A teacher with logits s_k = sum(w_k x_n + c_k x_n^2 / 2) of the normalised image x_n = (x - mean) / std."""

    def __init__(self, classes, curvature, mean=MEAN, std=STD):
        self.w = 0.3 * random(8, classes, 3, 4, 4)
        self.c = curvature * random(9, classes, 3, 4, 4)
        self.mean, self.std = torch.from_numpy(mean), torch.from_numpy(std)

    def __call__(self, images):
        x = ((images - self.mean) / self.std)[:, None]
        return (self.w * x + self.c * x**2 / 2).sum((2, 3, 4))

    def literal(self, image, target, steps, eta):
        """x_n <- clip(x_n + eta (s_b - s_k + 1e-4) g / |g|), g = grad (s_k - s_b), while b is predicted.

        Returns the image and the number of steps made.
        """
        w, c, mean, std = (t.numpy() for t in (self.w, self.c, self.mean, self.std))
        x, made = (image - mean) / std, 0
        base = None
        for _ in range(steps):
            s = [(wk * x + ck * x**2 / 2).sum() for wk, ck in zip(w, c, strict=True)]
            base = int(np.argmax(s)) if base is None else base
            if np.argmax(s) != base:
                break
            g = (w[target] + c[target] * x) - (w[base] + c[base] * x)
            x = x + eta * (s[base] - s[target] + 1e-4) * g / np.sqrt((g**2).sum())
            x, made = np.clip(x, (0 - mean) / std, (1 - mean) / std), made + 1
        return x * std + mean, made


def start(score, n=12):
    """Images in [0, 1], and for each a class that is not the first choice."""
    images = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    logits = score(images)
    return images, (logits.argmax(1) + 1 + torch.arange(n) % (logits.shape[1] - 1)) % logits.shape[1]


@pytest.mark.parametrize("curvature", [0.0, 0.1])
@pytest.mark.parametrize("step_size", [0.05, 0.3])
def test_boundary_samples(curvature, step_size):
    score = Quadratic(5, curvature)
    images, target = start(score)
    moved = boundary_samples(score, images, target, 10, step_size, SCALE)
    pairs = zip(images.numpy(), target.tolist(), strict=True)
    expected, made = zip(*(score.literal(image, k, 10, step_size) for image, k in pairs), strict=True)
    assert len(set(made)) > 1  # samples stop at different steps
    np.testing.assert_allclose(moved.numpy(), np.stack(expected), rtol=0, atol=1e-12)


def test_steps_are_in_normalised_space():
    # away from the limits of the pixels, the same classifier on x / std, with no normalisation left, gives the same
    score = Quadratic(5, 0.0)
    images = 0.5 + 0.01 * (start(score)[0] - 0.5)
    target = (score(images).argmax(1) + 1) % 5
    inside = Quadratic(5, 0.0, mean=0 * MEAN, std=1 + 0 * STD)
    units = (images - torch.from_numpy(MEAN)) * SCALE
    shift = 0.5 - units.mean((0, 2, 3), keepdim=True)  # to the middle of [0, 1]
    inside.mean = shift[0]
    unscaled = boundary_samples(inside, units + shift, target, 4, 0.02, torch.ones(1, 3, 1, 1, dtype=torch.float64))
    moved = boundary_samples(score, images, target, 4, 0.02, SCALE)
    assert ((unscaled > 0) & (unscaled < 1) & (moved > 0) & (moved < 1)).all()
    assert (moved != images).any()
    torch.testing.assert_close((moved - torch.from_numpy(MEAN)) * SCALE, unscaled - shift, rtol=0, atol=1e-12)


def test_gap_of_a_linear_teacher_falls_until_the_boundary_is_crossed():
    w = torch.tensor([1.0, -2.0, 2.0, 0.5], dtype=torch.float64).view(1, 1, 2, 2) / 3.2

    def gap_of(images):
        return (w * (images - 0.5)).sum((1, 2, 3))

    def score(images):
        gap = gap_of(images)
        return torch.stack([gap, torch.zeros_like(gap)], 1)

    images = 0.5 + torch.tensor([0.3, 0.1, 0.01], dtype=torch.float64).view(3, 1, 1, 1) * w.sign()
    target, one = torch.ones(3, dtype=torch.int64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    norm = w.square().sum().sqrt()
    before, crossed = images, torch.zeros(3, dtype=torch.bool)
    for steps in range(1, 31):
        after = boundary_samples(score, images, target, steps, 0.6, one)
        old, new = gap_of(before), gap_of(after)
        torch.testing.assert_close(after[crossed], before[crossed], rtol=0, atol=0)
        assert (new[~crossed] < old[~crossed]).all()
        expected = old - 0.6 * (old + 1e-4) * norm
        torch.testing.assert_close(new[~crossed], expected[~crossed], rtol=0, atol=1e-12)
        before, crossed = after, crossed | (new < 0)
    assert crossed.all()
    assert (gap_of(before) > -1e-4).all()  # just beyond


@pytest.mark.parametrize("std", [STD, 1 + 0 * STD])
def test_pixels_are_clipped_to_their_range(std):
    # after a step far beyond all limits, each pixel is at the limit that its gradient points to
    score = Quadratic(3, 0.0, std=std)
    images, target = start(score)
    base = score(images).argmax(1)
    moved = boundary_samples(score, images, target, 1, 1e6, torch.from_numpy(1 / std)[None])
    torch.testing.assert_close(moved, (score.w[target] > score.w[base]).double(), rtol=0, atol=1e-9)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_without_steps_the_images_are_unchanged():
    score = Quadratic(3, 0.0)
    images, target = start(score)
    torch.testing.assert_close(boundary_samples(score, images, target, 0, 0.3, SCALE), images, rtol=0, atol=1e-12)


def test_a_constant_teacher_leaves_the_images_unchanged():
    def score(images):
        return torch.tensor([2.0, 1.0, 0.0]) + 0 * images.sum((1, 2, 3))[:, None]

    images, target = torch.rand(4, 3, 4, 4), torch.ones(4, dtype=torch.int64)
    torch.testing.assert_close(boundary_samples(score, images, target, 10, 0.3, SCALE.float()), images)


def test_steps_leave_no_gradients_and_keep_the_original_images():
    score = Quadratic(3, 0.1)
    images, target = start(score)
    copy = images.clone()
    score.w.requires_grad_()
    moved = boundary_samples(score, images, target, 3, 0.3, SCALE)
    assert not moved.requires_grad
    assert not images.requires_grad
    assert score.w.grad is None
    torch.testing.assert_close(images, copy, rtol=0, atol=0)
