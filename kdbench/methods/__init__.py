"""Distillation methods: one file each, over the contract in base.py."""
