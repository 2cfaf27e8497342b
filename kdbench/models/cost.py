"""What a network costs: parameters, and operations for one image."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from kdbench.models.features import evaluating


def parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not; shared ones once."""
    return sum(p.numel() for p in module.parameters())


def flops(network: nn.Module, in_chans: int, image_size: int) -> int:
    """Floating-point operations of one image in eval mode, 2 for each multiply-accumulate; nothing is computed.

    Counted are convolutions, matrix products and attention, as `torch.utils.flop_counter` does; not normalisations,
    activations and pooling.

    Args:
        network: takes images (1, C, H, W).
        in_chans: channels of the images.
        image_size: height and width of the images, in pixels.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    images = torch.empty(1, in_chans, image_size, image_size, device="meta")
    counter = FlopCounterMode(display=False)
    with evaluating(network), counter:
        functional_call(network, on_meta, (images,))
    return counter.get_total_flops()
