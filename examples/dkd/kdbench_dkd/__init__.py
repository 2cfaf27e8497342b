"""Decoupled knowledge distillation, a small network and a data set as a plugin of kdbench."""
