"""After `import kdbench.models.with_timm`, `timm.create_model("cifar_resnet20")` makes a CIFAR model."""

from kdbench.models.registry import register_with_timm

register_with_timm()
