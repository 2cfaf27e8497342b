"""Shared by the tests of formulas."""

import math

import torch


def numeric_gradient(function, x, step=1e-6):
    """Central differences of a scalar function of x."""
    gradient = torch.empty_like(x)
    for i in range(x.numel()):
        shift = torch.zeros_like(x)
        shift.view(-1)[i] = step
        gradient.view(-1)[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


def random(seed, *size):
    """Standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def softmax(logits, temperature=1.0):
    """exp(z_k / T) / sum_j exp(z_j / T) of one sample."""
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]
