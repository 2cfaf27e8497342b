"""Fixtures for the tests of methods."""

import pytest
import torch


@pytest.fixture
def in_float64(monkeypatch):
    """Losses are computed in float64, where a method would convert to float32."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.is_floating_point() else x.double())
