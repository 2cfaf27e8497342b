"""Evaluation of trained students; no training."""
