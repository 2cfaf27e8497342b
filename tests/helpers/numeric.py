"""What the formula tests share."""

import torch


def numeric_gradient(function, x, step=1e-6):
    """Central differences of a function of x."""
    gradient = torch.empty_like(x)
    for i in range(x.numel()):
        shift = torch.zeros_like(x)
        shift.view(-1)[i] = step
        gradient.view(-1)[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


def random(seed, *size):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64)
