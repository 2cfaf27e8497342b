"""Records as `kdbench-train` leaves them, with figures that the tests choose."""

import json
from functools import lru_cache

import pytest

from kdbench.config.frozen import FrozenDict
from kdbench.config.overrides import from_overrides
from kdbench.records.identity import needs_teacher
from kdbench.specs.resolve import resolve

COMMON = ["dataset=digits", "teacher=resnet20", "student=resnet8", "recipe=quick", "logger=none"]


@lru_cache
def configuration(overrides):
    return from_overrides([*COMMON, *overrides])


@pytest.fixture
def record(tmp_path):
    """`record(*overrides, seed=0, accuracy=0.9, ...)`: write the record of the run with these overrides."""

    def write(*overrides, seed=0, accuracy=0.9, role=None, state="finished", epochs=(), **sections):
        cfg = FrozenDict.of({**configuration(overrides), "seed": seed, "outputs": str(tmp_path)})
        spec = resolve(cfg)
        teacher = None
        if needs_teacher(cfg):
            teacher_id = spec.identity.facts["dependencies"]["teacher"]
            teacher = {"name": cfg["teacher"]["name"], "id": teacher_id, "test_accuracy": 0.97}
        result = {
            "id": spec.id,
            "name": spec.name,
            "role": role or ("distill" if teacher else "baseline"),
            "test": {"accuracy": accuracy, "top5": None, "nll": 1 - accuracy, **sections.pop("test", {})},
            "members": None,
            "val": {"accuracy": accuracy - 0.01},
            "best_on_test": {"accuracy": None, "epoch": None, "selection_rule": False},
            "cost": {"train_seconds": 10.0 + seed, "teacher_seconds": 5.0 if teacher else None},
            "teacher": teacher,
            "versions": {"torch": "2.15.0"},
            "config": cfg,
            **sections,
        }
        spec.directory.mkdir(parents=True)
        if state == "finished":
            (spec.directory / "result.json").write_text(json.dumps(result))
        else:
            (spec.directory / "config.yaml").write_text(json.dumps(cfg))  # JSON is YAML
        reason = None if state == "finished" else "OSError: disk full"
        status = {"state": state, "reason": reason, "updated": f"2026-11-21T12:00:{seed:02d}+0000"}
        (spec.directory / "status.json").write_text(json.dumps(status))
        (spec.directory / "env.json").write_text(json.dumps({"host": "here", "gpu": None}))
        lines = [{"epoch": i, "val/accuracy": value} for i, value in enumerate(epochs)]
        (spec.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return spec

    return write
