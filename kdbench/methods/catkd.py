"""CAT-KD: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023 (arXiv 2304.12777).

    L = CE(z_s, y) + beta / (B K r^2) * sum_bk || A_bk^s / ||A_bk^s|| - A_bk^t / ||A_bk^t|| ||^2
    A_bk = pool_r( sum_c W_kc F_bc )

where W are the weights of a network's own classifier, without its bias, F is its last stage map, and pool averages over
r x r cells; r = 2. The mean of such a class activation map is a logit without its bias, so the networks must classify
the mean of their last stage map, which is tested with one image; those with layers in between (wide ResNets, MobileNet
and ShuffleNet V2) are refused. The gradient reaches the student's classifier, too.

The defaults are those of the authors' code, whose networks have no bias; the weight is to be tuned for each pair. A map
that is zero is not divided by its norm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.models.features import Features, Network, Shapes, evaluating


def linear_classifier(network: Network, role: str, method: str) -> nn.Linear:
    """The classifier of a network, for a method that uses its weights.

    Args:
        network: any.
        role: `student` or `teacher`, for messages.
        method: its name, for messages.

    Raises:
        UserError: it is no plain linear layer.
    """
    classifier = getattr(network, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"{method} is not possible with this {role}: its classifier is no nn.Linear")
    return classifier


def activation_maps(maps: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps (B,K,H,W) of maps (B,C,H,W) and the weights (K,C) of a classifier."""
    return F.conv2d(maps, weight.to(maps.dtype)[..., None, None])


def cat_loss(student: Tensor, teacher: Tensor, resolution: int, normalize: bool) -> Tensor:
    """Mean squared difference of two averaged class activation maps.

    Args:
        student: (B,K,H,W).
        teacher: (B,K,H',W'), constants.
        resolution: r > 0, the side of the averaged maps.
        normalize: whether each map of r x r numbers is divided by its norm.

    Returns:
        Scalar, mean over batch, classes and cells.
    """
    student, teacher = (F.adaptive_avg_pool2d(maps, resolution) for maps in (student, teacher))
    if normalize:
        student, teacher = _normalised(student), _normalised(teacher)
    return F.mse_loss(student, teacher)


def _normalised(maps: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(maps, dim=(2, 3), keepdim=True)
    return maps / torch.where(norms > 0, norms, 1.0)


class CATKD(Method):
    """The student's class activation maps imitate the teacher's."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(self, weight: float, resolution: int, normalize: bool) -> None:
        super().__init__()
        self.weight, self.resolution, self.normalize = weight, resolution, normalize

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse networks without class activation maps.

        Raises:
            UserError: a network does not classify the mean of its last stage map, the map is too small, or the
                normalised maps have one pixel, which is always 1 or -1.
        """
        if self.normalize and self.resolution == 1:
            raise UserError("catkd.resolution=1 is not possible with catkd.normalize=true: its loss has no gradient")
        networks = {"student": (self.student, student), "teacher": (self.teacher.network, teacher)}
        for role, (network, shapes) in networks.items():
            classifier = linear_classifier(network, role, "catkd")
            if not self._classifies_the_mean(network, shapes, classifier):
                raise UserError(f"catkd is not possible with this {role}: it must classify the mean of its last map")
            height, width = shapes.stages[-1][1:]
            if self.resolution > min(height, width):
                raise UserError(
                    f"catkd.resolution={self.resolution} is not possible: the last map of the {role} is "
                    f"{height}x{width}"
                )

    def _classifies_the_mean(self, network: Network, shapes: Shapes, classifier: nn.Linear) -> bool:
        if not shapes.stages or shapes.stages[-1][0] != classifier.in_features:
            return False
        sizes = self.student.origin.sizes
        size = (1, sizes["in_chans"], sizes["image_size"], sizes["image_size"])
        device = network.scale.device
        with evaluating(network):
            stages, _, logits = network(torch.linspace(0, 1, torch.Size(size).numel(), device=device).view(size))
            expected = classifier(stages[-1].mean((2, 3)))
        return torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * logits.abs().max().item())

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`cat`, of the last stage maps."""
        networks = (self.student, student), (self.teacher.network, teacher)
        ours, theirs = (activation_maps(features.stages[-1], net.classifier.weight) for net, features in networks)
        return {"cat": self.weight * cat_loss(ours, theirs, self.resolution, self.normalize)}
