"""Networks: the CIFAR models of the distillation literature and all timm models, behind one interface (`Features`)."""
