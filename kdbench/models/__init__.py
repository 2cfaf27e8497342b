"""Networks: the CIFAR models of the distillation literature and all timm models, behind one interface (`Features`).

`import kdbench.models.with_timm` registers the CIFAR models with timm, so that `timm.create_model("cifar_resnet20")`
makes one. Nothing else here needs timm before one of its own models is built.
"""
