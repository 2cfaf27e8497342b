"""What the CIFAR networks share: the way through stem, stages, pooling and classifier."""

from collections.abc import Sequence

from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """A stem, some stages, a pooling and a linear classifier, with the methods of a timm model.

    A family gives `stem`, the modules named in `stage_names` and, where it has them, `final` (what stands
    between the last stage and the pooling), another `embed` and `init_classifier`. Its `__init__` builds
    the modules and then calls `reset_classifier`. Module names are those of RepDistiller, so that the
    teachers published there load, unless the family says otherwise.

    Attributes:
        num_classes: width of the logits.
        num_features: width of the embedding, the input of the classifier.
        feature_info: for the stem and each stage `num_chs`, `reduction` (pixels of the image per pixel of
            the map) and `module` (its name), as timm's.
        stage_names: the modules of the stages.
        stem_names: the modules of the stem; empty where a family does not say, and cannot become a branch.
        final_norm: the module that normalises between the last stage and the pooling, where there is one.
        classifier_name: the linear layer.
    """

    stage_names: tuple[str, ...] = ("layer1", "layer2", "layer3")
    stem_names: tuple[str, ...] = ()
    final_norm: str | None = None
    classifier_name = "fc"

    def __init__(self, num_classes: int, num_features: int, maps: Sequence[tuple[int, int]]):
        """`maps`: (channels, reduction) of the stem and of each stage."""
        super().__init__()
        self.num_classes = num_classes
        self.num_features = num_features
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": name}
            for (channels, reduction), name in zip(maps, ("stem", *self.stage_names), strict=True)
        ]

    def stem(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the first map."""
        raise NotImplementedError

    def final(self, x: Tensor) -> Tensor:
        """The last stage's map -> the map that is pooled."""
        return x

    def embed(self, x: Tensor) -> Tensor:
        """The final map (B, C', H', W') -> the embedding (B, num_features): the mean over the pixels."""
        return x.mean((2, 3))

    def init_classifier(self, linear: nn.Linear) -> None:
        """The family's initialisation of the classifier; PyTorch's own unless overridden."""

    def get_classifier(self) -> nn.Module:
        """The linear layer from embedding to logits."""
        return getattr(self, self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier for so many classes; with 0 an identity, so that the net gives embeddings."""
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
        """The final map and the maps of stem and stages, in one pass.

        Args:
            x: images (B, C, H, W).
            indices: which maps, 0 being the stem; the last so many for an int, all for None.
            norm: timm's; these networks have no norm to add to a map.
            stop_early: with `intermediates_only`, leave out the stages after the last wanted map.
            output_fmt: only "NCHW".
            intermediates_only: return the list of maps alone.

        Returns:
            (final map, as `forward_head` takes it; list of maps (B, C_i, H_i, W_i)), or the list.

        Raises:
            ValueError: another `output_fmt`, or an index that is not there.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: these networks give 'NCHW' only")
        wanted = _wanted(indices, len(self.feature_info))
        x = self.stem(x)
        maps = [x] if 0 in wanted else []
        for i, name in enumerate(self.stage_names, start=1):
            if intermediates_only and stop_early and i > max(wanted):
                break
            x = getattr(self, name)(x)
            if i in wanted:
                maps.append(x)
        return maps if intermediates_only else (self.final(x), maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the final map (B, C', H', W')."""
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return self.final(x)

    def become_branch(self) -> None:
        """Forget all that comes before the last stage; only `forward_branch` works afterwards."""
        for name in (*self.stem_names, *self.stage_names[:-1]):
            delattr(self, name)

    def forward_branch(self, x: Tensor) -> Tensor:
        """The map before the last stage -> logits (B, num_classes)."""
        return self.forward_head(self.final(getattr(self, self.stage_names[-1])(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The final map -> logits (B, num_classes), or the embedding (B, num_features) with `pre_logits`."""
        x = self.embed(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _wanted(indices: int | Sequence[int] | None, count: int) -> list[int]:
    if indices is None:
        return list(range(count))
    chosen = range(-indices, 0) if isinstance(indices, int) else indices
    if not all(-count <= i < count for i in chosen):
        raise ValueError(f"indices={indices}: there are {count} maps")
    return [i % count for i in chosen]


def init_convolutions(module: nn.Module) -> None:
    """He's normal initialisation by fan-out (k * k * output channels) for every convolution; biases 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
