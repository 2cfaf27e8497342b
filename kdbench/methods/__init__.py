"""Distillation methods: one file each. The contract they follow is in `method.py`."""
