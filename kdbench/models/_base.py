"""What the CIFAR networks share: the forward pass through stem, stages, pooling and classifier."""

from collections.abc import Sequence

from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """A stem, several stages, pooling and a linear classifier, with the interface of a timm model.

    A subclass defines `stem`, the modules listed in `stage_names` and, where it needs them, `final` (the layers between
    the last stage and the pooling), `embed` and `init_classifier`. Its `__init__` builds the modules and then calls
    `reset_classifier`. Module names are those of RepDistiller unless the subclass says otherwise, so that the teachers
    published there can be loaded.

    Attributes:
        num_classes: number of logits.
        num_features: size of the embedding, the input of the classifier.
        feature_info: of the stem and of each stage, as in timm: `num_chs`, `reduction` (image pixels per pixel of the
            feature map, along one side) and `module` (its name).
        stage_names: names of the stages' modules.
        stem_names: names of the stem's modules; a family that leaves them empty cannot become a branch.
        final_norm: name of the normalisation layer between the last stage and the pooling, if there is one.
        classifier_name: name of the linear classifier.
    """

    stage_names: tuple[str, ...] = ("layer1", "layer2", "layer3")
    stem_names: tuple[str, ...] = ()
    final_norm: str | None = None
    classifier_name = "fc"

    def __init__(self, num_classes: int, num_features: int, maps: Sequence[tuple[int, int]]):
        """Store the sizes; `maps` has (channels, reduction) of the stem's feature map and of each stage's."""
        super().__init__()
        self.num_classes = num_classes
        self.num_features = num_features
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": name}
            for (channels, reduction), name in zip(maps, ("stem", *self.stage_names), strict=True)
        ]

    def stem(self, x: Tensor) -> Tensor:
        """The first feature map of images (B, C, H, W)."""
        raise NotImplementedError

    def final(self, x: Tensor) -> Tensor:
        """The feature map that is pooled, from that of the last stage."""
        return x

    def embed(self, x: Tensor) -> Tensor:
        """The embedding (B, num_features) of the final map (B, C', H', W'): the mean over its pixels."""
        return x.mean((2, 3))

    def init_classifier(self, linear: nn.Linear) -> None:
        """Initialise the classifier; PyTorch's default unless overridden."""

    def get_classifier(self) -> nn.Module:
        """The linear layer that maps the embedding to logits."""
        return getattr(self, self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one; 0 classes give the identity, so that the network returns embeddings."""
        self.num_classes = num_classes
        if num_classes:
            device = next(self.parameters()).device
            linear = nn.Linear(self.num_features, num_classes, device=device)
            self.init_classifier(linear)
            setattr(self, self.classifier_name, linear)
        else:
            setattr(self, self.classifier_name, nn.Identity())

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """The final feature map and those of stem and stages, in one pass.

        Args:
            x: images (B, C, H, W).
            indices: which maps to return, 0 being the stem's; an int n stands for the last n maps, None for all.
            norm: accepted for compatibility with timm and ignored.
            stop_early: with `intermediates_only`, skip the stages after the last requested map.
            output_fmt: must be "NCHW".
            intermediates_only: return only the list of maps.

        Returns:
            (final map, the input of `forward_head`; list of maps (B, C_i, H_i, W_i)), or only the list.

        Raises:
            ValueError: `output_fmt` is not "NCHW", or an index is out of range.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is not supported: these networks return 'NCHW' only")
        requested = _resolved_indices(indices, len(self.feature_info))
        x = self.stem(x)
        maps = [x] if 0 in requested else []
        for i, name in enumerate(self.stage_names, start=1):
            if intermediates_only and stop_early and i > max(requested):
                break
            x = getattr(self, name)(x)
            if i in requested:
                maps.append(x)
        return maps if intermediates_only else (self.final(x), maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """The final map (B, C', H', W') of images (B, C, H, W)."""
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return self.final(x)

    def become_branch(self) -> None:
        """Delete everything before the last stage; afterwards only `forward_branch` works."""
        for name in (*self.stem_names, *self.stage_names[:-1]):
            delattr(self, name)

    def forward_branch(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes), from the feature map before the last stage."""
        return self.forward_head(self.final(getattr(self, self.stage_names[-1])(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) from the final map; with `pre_logits`, the embedding (B, num_features)."""
        x = self.embed(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _resolved_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    if indices is None:
        return list(range(count))
    chosen = range(-indices, 0) if isinstance(indices, int) else indices
    if not all(-count <= i < count for i in chosen):
        raise ValueError(f"indices={indices}: out of range, the network has {count} feature maps")
    return [i % count for i in chosen]


def init_convolutions(module: nn.Module) -> None:
    """Initialise all convolutions by He's normal scheme in fan-out mode (k * k * output channels), with biases 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
