"""Evaluation of trained students; trains nothing."""
