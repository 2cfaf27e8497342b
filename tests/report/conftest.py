"""Records as `kdbench-train` leaves them, with figures of our own choosing."""

import copy
import json
from functools import lru_cache

import pytest

from kdbench.config import composed
from kdbench.specs.resolve import spec_of
from kdbench.run import needs_teacher
from kdbench.teachers import own_config

COMMON = ["dataset=digits", "teacher=resnet20", "student=resnet8", "recipe=quick", "logger=none"]


@lru_cache
def configuration(words):
    return from_overrides([*COMMON, *words])


@pytest.fixture
def record(tmp_path):
    """`record(*words, seed=0, accuracy=0.9, ...)`: write the record of the run that these words mean."""

    def write(*words, seed=0, accuracy=0.9, role=None, state="finished", epochs=(), **sections):
        cfg = copy.deepcopy(configuration(words)) | {"seed": seed, "outputs": str(tmp_path)}
        run = run_of(cfg)
        taught = needs_teacher(cfg)
        run.directory.mkdir(parents=True)
        teacher = None
        if taught:
            known = run.identity.facts["teacher"]
            teacher = {"name": cfg["teacher"]["name"], "id": known, "test_accuracy": 0.97}
        result = {
            "id": run.id,
            "name": run.name,
            "role": role or ("distill" if taught else "baseline"),
            "test": {"accuracy": accuracy, "top5": None, "nll": 1 - accuracy, **sections.pop("test", {})},
            "members": None,
            "val": {"accuracy": accuracy - 0.01},
            "best_on_test": {"accuracy": None, "epoch": None, "selection_rule": False},
            "cost": {"train_seconds": 10.0 + seed, "teacher_seconds": 5.0 if taught else None},
            "teacher": teacher,
            "versions": {"torch": "2.15.0"},
            "config": cfg,
            **sections,
        }
        times = {"updated": f"2026-11-21T12:00:{seed:02d}+0000"}
        if state == "finished":
            (run.directory / "result.json").write_text(json.dumps(result))
        else:
            (run.directory / "config.yaml").write_text(json.dumps(cfg))  # JSON is YAML
        reason = None if state == "finished" else "OSError: disk full"
        (run.directory / "status.json").write_text(json.dumps({"state": state, "reason": reason, **times}))
        (run.directory / "env.json").write_text(json.dumps({"host": "here", "gpu": None}))
        lines = [{"epoch": i, "val/accuracy": value} for i, value in enumerate(epochs)]
        (run.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return write


@pytest.fixture
def teacher_of():
    """`teacher_of(*words)`: the words' teacher as a run of its own, by its id."""
    return lambda *words: run_of(own_config(configuration(words))).id
