"""Fixtures: a small, fast run; a stand-in for W&B's server."""

import os
import threading
from collections.abc import Iterator

# before torch is imported: workers with two threads each would wait for one another on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct
from tests.helpers.tiny import TINY
from tests.helpers.wandb_server import Server


@pytest.fixture
def words(tmp_path):
    """`words(*overrides)`: the overrides of the tiny run, with its records under `tmp_path`."""
    return lambda *overrides: [*TINY, f"outputs={tmp_path}/outputs", *overrides]


@pytest.fixture
def tiny(words):
    """`tiny(*overrides)`: conduct the tiny run, and return its record."""
    return lambda *overrides: conduct(spec_of(words(*overrides)))


@pytest.fixture
def server() -> Iterator[Server]:
    """A server for W&B runs on this machine."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
