"""Networks: the field's CIFAR models and every timm model behind one Features contract."""
