"""Networks: the CIFAR models of the distillation literature and all timm models, behind one interface (`Features`).

After `import kdbench.models`, `timm.create_model("cifar_resnet20")` makes a CIFAR model.
"""

from kdbench.models import registry  # noqa: F401  registers the CIFAR networks with timm
