"""Decoupled knowledge distillation as a plugin of kdbench."""
