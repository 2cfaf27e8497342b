"""Every kind of mirror has its options, and an error of a mirror never reaches the run."""

import logging
from typing import Any

import pytest
import yaml

from kdbench import loggers
from kdbench.config.groups import CONF
from kdbench.config.rules import rules_of
from kdbench.errors import UserError
from tests.helpers.mirrors import OPTIONS, info


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_an_error_is_one_warning(tmp_path, fake_wandb, caplog, broken):
    fake_wandb.broken = broken
    with caplog.at_level(logging.WARNING, "kdbench"):
        mirror = loggers.start({**OPTIONS, "mode": "offline"}, info(tmp_path))
        for epoch in range(3):
            mirror.log({"train/loss": 1.0}, epoch)
        mirror.finish({"test": {"accuracy": 0.5}}, 1)
        mirror.finish({}, 0)
    action = {"init": "start"}.get(broken, broken)
    assert caplog.messages == [f"wandb mirror is off for this run: {action}: RuntimeError: {broken} is broken"]
    assert len(fake_wandb.log) == {"init": 0, "log": 1, "finish": 3}[broken]
    assert fake_wandb.finish == ([] if broken == "init" else [1])


def test_the_user_can_interrupt_a_mirror(tmp_path, fake_wandb, monkeypatch):
    mirror = loggers.start(OPTIONS, info(tmp_path))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loggers.WandB, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mirror.log({}, 0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"logger\.kind=mlflow .* wandb, csv, tensorboard, none"):
        loggers.check({"kind": "mlflow"})


def test_none_writes_nothing(tmp_path):
    mirror = loggers.start({"kind": "none"}, info(tmp_path))
    mirror.log({"train/loss": 1.0}, 0)
    mirror.finish({}, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", sorted((CONF / "logger").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_defaults_of_a_kind_follow_their_rules(file):
    values = yaml.safe_load(file.read_text())
    rules = rules_of(f"logger/{file.stem}")
    assert values["kind"] == file.stem
    assert set(rules) == set(values)
    assert [key for key, rule in rules.items() if rule.refusal(values[key])] == []
    loggers.check(values)


def test_every_kind_has_options():
    assert {file.stem for file in (CONF / "logger").glob("*.yaml")} == set(loggers._KINDS)
    assert set(yaml.safe_load((CONF / "logger" / "wandb.yaml").read_text())) == set(OPTIONS)
