"""Rules about what the class of a method declares: what it reads of the teacher, and that it takes two labels."""

from typing import Any

import torch
from torch import Tensor

from kdbench.conformance.networks import teacher_of
from kdbench.conformance.subject import NotApplicable, Rule, Subject, must
from kdbench.conformance.toys import batch_of, each_stage
from kdbench.data.batch import Batch, Mixed
from kdbench.methods.machinery.module import DistillationModule
from kdbench.methods.machinery.reads import EVERYTHING
from kdbench.models.features import Features

_SHARE = 0.3  # of a mixed batch's own labels


def declared_reads(subject: Subject) -> None:
    """The losses depend on what `reads` declares of the teacher, and on nothing else of it."""
    method = subject.attached()
    teacher_of(method)
    for each in (method, *method.plus.values()):
        if each.reads is EVERYTHING:
            raise NotApplicable(f"{type(each).__name__} has no `reads`, so no answers of the teacher are kept for it")
    declared = method.teacher_reads()
    expected, called = _losses_without(subject, None)
    used = {part for part in ("stages", "embedding", "logits") if _depend_on(part, subject, expected)}
    used |= {"network"} if called else set()
    for part in EVERYTHING:
        must(part in declared or part not in used, f"it {_use(part)}, but does not declare it: reads = ({part!r}, ...)")
    if "stages" in used:  # nothing is kept then, so it costs nothing to declare more, as some options may need
        return
    for part in EVERYTHING:
        never = f"it declares that it {_use(part)}, but never does: take {part!r} out of `reads`"
        must(part in used or part not in declared, never)


def _use(part: str) -> str:
    return "calls the teacher" if part == "network" else f"reads the teacher's {part}"


def _depend_on(part: str, subject: Subject, expected: dict[str, Tensor]) -> bool:
    """Whether losses change if a part of the teacher's features is empty, as parts that are not kept are."""
    try:
        losses, _ = _losses_without(subject, part)
    except Exception:  # a method may fail in any way without what it reads
        return True
    return losses.keys() != expected.keys() or any(not torch.equal(losses[key], expected[key]) for key in expected)


def _losses_without(subject: Subject, part: str | None) -> tuple[dict[str, Tensor], bool]:
    """Losses of every epoch, without a part of the teacher's features, and whether they have called the teacher."""
    method, batch = subject.attached(), batch_of()
    teacher = teacher_of(method)
    features = teacher.compute(batch)
    if part is not None:
        empty: Any = [] if part == "stages" else batch.images.new_empty(len(batch.images), 0)
        features = Features(**{**features._asdict(), part: empty})
    teacher.answers = lambda _: features
    calls: list[bool] = []
    for module in teacher.network.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(True))
    losses: dict[str, Tensor] = {}
    for epoch in range(method.total_epochs):
        method.enter_epoch(epoch)
        torch.manual_seed(0)
        losses |= {f"{epoch}/{key}": loss.detach() for key, loss in method.batch_losses(batch).items()}
    return losses, bool(calls)


def mixed_labels(subject: Subject) -> None:
    """Each loss of images with two labels is the mean of those for one label each, weighted by their shares."""
    method = subject.attached()
    if not all(part.mixed_labels for part in (method, *method.plus.values())):
        raise NotApplicable("it does not declare `mixed_labels`: mixup and CutMix are refused with it")
    for key, (value, expected) in mixed_values(method, batch_of()).items():
        close = torch.allclose(value, expected, rtol=1.3e-6, atol=1e-5)
        why = "read labels only through `label_loss` and `batch.over_labels`, or set mixed_labels = False"
        must(close, f"{key} is {value:.6g} instead of {expected:.6g} for mixed labels: {why}")


def mixed_values(method: DistillationModule, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Losses and watched values of a mixed batch, and what they are to be, by stage and name.

    Args:
        method: attached.
        batch: not mixed; another label is added to each image.
    """
    classes = method.student.shapes.num_classes
    partners = (batch.labels + 1 + torch.arange(len(batch.labels)) % (classes - 1)) % classes
    mixed, own, others = (
        _values(method, each)
        for each in (
            batch._replace(mixed=Mixed(partners, torch.tensor(_SHARE))), batch, batch._replace(labels=partners),
        )
    )  # fmt: skip
    must(mixed.keys() == own.keys() == others.keys(), f"the losses of a mixed batch are {', '.join(mixed)}")
    return {key: (mixed[key], _SHARE * own[key] + (1 - _SHARE) * others[key]) for key in mixed}


def _values(method: DistillationModule, batch: Batch) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    method.enter_epoch(0)
    for stage in each_stage(method):
        torch.manual_seed(0)
        of_stage = {**method.batch_losses(batch), **method.watched}
        values |= {f"{stage.name}/{key}": value.detach() for key, value in of_stage.items()}
    return values


RULES = tuple(map(Rule.of, (declared_reads, mixed_labels)))
