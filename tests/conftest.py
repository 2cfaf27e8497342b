"""A small, fast run for tests: resnet8 on fake 8x8 images; a stand-in for W&B's server."""

import os
import threading
from collections.abc import Iterator

# before torch is imported: workers with two threads each would wait for one another on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from kdbench.config import composed
from kdbench.experiment import conduct
from tests.wandb_stand_in import Server

TINY = [
    "dataset=fake", "dataset.num_train=80", "dataset.num_test=40", "dataset.num_classes=4", "dataset.channels=1",
    "dataset.image_size=8", "dataset.crop_padding=1", "teacher=resnet14", "student=resnet8", "recipe.epochs=3",
    "recipe.batch_size=16", "logger=none", "trainer=cpu", "trainer.checkpoint_seconds=0",
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path):
    """`tiny(*overrides)`: conduct the tiny run under `tmp_path`, and return it."""

    def go(*overrides):
        cfg, _ = composed([*TINY, f"outputs={tmp_path}/outputs", *overrides])
        return conduct(cfg)

    return go


@pytest.fixture
def words(tmp_path):
    """`words(*overrides)`: the tiny run as command-line words."""
    return lambda *overrides: [*TINY, f"outputs={tmp_path}/outputs", *overrides]


@pytest.fixture
def server() -> Iterator[Server]:
    """A server for W&B runs on this machine."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
