"""The cost of a network: its parameters, and the operations it performs for one image."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from kdbench.models.features import evaluating


def parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not; shared ones are counted once."""
    return sum(p.numel() for p in module.parameters())


def flops(network: nn.Module, in_chans: int, image_size: int) -> int:
    """Floating-point operations for one image in eval mode, two per multiply-accumulate.

    Counts convolutions, matrix products and attention, as `torch.utils.flop_counter` does, but not normalisation,
    activations or pooling. Runs on the meta device, so nothing is computed.

    Args:
        network: maps images (1, C, H, W) to anything.
        in_chans: number of image channels.
        image_size: height and width of the images, in pixels.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    images = torch.empty(1, in_chans, image_size, image_size, device="meta")
    counter = FlopCounterMode(display=False)
    with evaluating(network), counter:
        functional_call(network, on_meta, (images,))
    return counter.get_total_flops()
