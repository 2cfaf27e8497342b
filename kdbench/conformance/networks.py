"""Rules about what becomes of the networks: which are trained, in which mode, and what is kept of them."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdbench.conformance.subject import NotApplicable, Rule, Subject, must
from kdbench.conformance.toys import Loader, batch_of, each_stage, fit, step
from kdbench.evaluation.passes import score, score_student
from kdbench.methods.machinery.frozen import Teacher
from kdbench.methods.machinery.module import DistillationModule


def teacher_of(method: DistillationModule) -> Teacher:
    """The teacher of a method; raises `NotApplicable` if it has none."""
    if method.teacher is None:
        raise NotApplicable("it has no teacher")
    return method.teacher


def frozen_teacher(subject: Subject) -> None:
    """The teacher is in eval mode whenever it is used, and training changes nothing of it."""
    method = subject.attached()
    teacher = teacher_of(method)
    before = copy.deepcopy(teacher.state_dict())
    must(bool(before), "the teacher has no parameters and buffers")
    modes: list[bool] = []
    hooks = [
        module.register_forward_pre_hook(lambda used, _: modes.append(used.training)) for module in teacher.modules()
    ]

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            modes.extend(module.training for module in teacher.modules())

    fit(method, Watch())
    for hook in hooks:
        hook.remove()
    must(bool(modes), "training made no step")
    must(not any(modes), "the teacher, or a part of it, is in train mode during the training")
    method.train()
    teacher.train()
    must(not any(module.training for module in teacher.modules()), "the teacher can be switched to train mode")
    after = teacher.state_dict()
    changed = [key for key in before if key not in after or not torch.equal(before[key], after[key])]
    must(not changed, f"training changes the teacher: {_some(changed)}")
    trained = [key for key, p in teacher.named_parameters() if p.grad is not None or p.requires_grad]
    must(not trained, f"parameters of the teacher have a gradient or require one: {_some(trained)}")


def modes(subject: Subject) -> None:
    """The networks are in eval mode while they are scored, and in train mode whenever they are trained."""
    method = subject.attached()
    in_scoring: list[bool] = []
    in_training: list[bool] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            in_training.extend(module.training for module in method.modules())

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            def predict(images: Tensor) -> dict[str, Tensor]:
                in_scoring.extend(module.training for module in method.modules())
                logits = method.predictions(images)
                in_scoring.extend(module.training for module in method.modules())
                return logits

            scores = score(trainer, method, Loader(), predict)
            must(bool(in_scoring) and not any(in_scoring), "a module is in train mode while it is scored")
            right = all(0 <= classifier["accuracy"] <= 1 for classifier in scores.values())
            must(right, f"`predictions` gives accuracies outside of [0, 1]: {scores}")
            must("student" in scores, f"`predictions` gives {', '.join(scores)}, but no student")
            same = scores["student"] == score_student(trainer, method, Loader())
            must(same, "`predictions` gives other logits as the student's than the student itself")

    fit(method, Watch())
    must(bool(in_training) and all(in_training), "a module is in eval mode while it is trained")
    must(bool(in_scoring), "training scored nothing")


def moving_parameters(subject: Subject) -> None:
    """Training moves every parameter."""
    method = subject.attached()
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    fit(method)
    after = dict(method.named_parameters())
    must(after.keys() == before.keys(), "the parameters after the training are not those before it")
    still = [name for name in before if torch.equal(before[name], after[name])]
    must(not still, f"training does not move {_some(still)}")


def train_only_modules(subject: Subject) -> None:
    """Whatever the losses depend on and can be trained is optimised, and only the student is exported."""
    method = subject.attached()
    optimizers, schedules = method.configure_optimizers()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    must(len(set(optimised)) == len(optimised), "a parameter is in two optimisers")
    trainable = {id(p): name for name, p in method.named_parameters() if p.requires_grad}
    left_out = [name for key, name in trainable.items() if key not in optimised]
    must(not left_out, f"no optimiser has {_some(left_out)}")
    must(set(optimised) <= trainable.keys(), "an optimiser has parameters that are not those of the method")
    must(len(optimizers) == len(schedules), f"{len(optimizers)} optimisers have {len(schedules)} schedules")
    for _ in each_stage(method):
        hidden = [leaf for leaf in _leaves(step(method, batch_of())) if id(leaf) not in trainable]
        shapes = [str(tuple(leaf.shape)) for leaf in hidden]
        must(not hidden, f"a loss depends on tensors that no optimiser sees, of shapes {_some(shapes)}")
    student = method.student.net.state_dict().keys()
    must(method.export().keys() == student, f"exported is not the student alone: {_some(method.export().keys())}")
    trained, exported = (sum(p.numel() for p in module.parameters()) for module in (method, method.student))
    extra = method.extra_parameters()
    must(extra == trained - exported, f"extra_parameters is {extra}, but {trained - exported} are not the student's")


def checkpoint(subject: Subject) -> None:
    """Checkpoints hold nothing of the teacher, load without unpickling, and fit a new instance of the method."""
    method = subject.attached()
    trainer = fit(method)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.ckpt"
        trainer.save_checkpoint(file)
        content = torch.load(file, weights_only=True)
    state = content["state_dict"]
    held = [key for key in state if "teacher" in key.split(".")]
    if method.teacher is not None:
        weights = [p for p in method.teacher.parameters() if p.ndim > 1]
        for key, tensor in tensors(content):
            if any(tensor.shape == p.shape and torch.equal(tensor, p) for p in weights):
                held.append(key)
    must(not held, f"the checkpoint holds the teacher: {_some(held)}")
    subject.attached().load_state_dict(state)


def tensors(node: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, with the keys that lead to it."""
    if isinstance(node, Tensor):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from tensors(value, f"{path}.{number}")


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that `backward` gives a gradient."""
    waiting, seen, leaves = [loss.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [function for function, _ in node.next_functions]
    return leaves


def _some(names: Any) -> str:
    """The first names of many."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


RULES = tuple(map(Rule.of, (frozen_teacher, modes, moving_parameters, train_only_modules, checkpoint)))
