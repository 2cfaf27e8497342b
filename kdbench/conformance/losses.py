"""Rules about the losses of a batch: what they depend on, and where they are finite."""

import torch
from torch import Tensor

from kdbench.conformance.subject import NotApplicable, Rule, RuleBroken, Subject, must
from kdbench.conformance.toys import Toy, batch_of, each_stage, features_of, step, total, toy_batch
from kdbench.data.batch import Batch
from kdbench.methods.machinery.meter import NonFiniteLoss
from kdbench.methods.method import Method
from kdbench.models.features import Features

# Numbers of classes, and the labels of a batch.
_FEW = ((2, [0, 1, 0, 0, 0, 0]), (2, [1] * 6), (5, [0, 0, 0, 0, 0, 3]))


def mean_over_samples(subject: Subject) -> None:
    """The loss of a batch in which each sample comes twice is that of the batch, unless `per_sample` is false."""
    single = subject.on_toys()
    if not all(part.per_sample for part in (single, *single.plus.values())):
        raise NotApplicable("its losses compare the samples of a batch with each other")
    student, teacher = (Toy(_twice(features_of(6, 4, seed))) for seed in (1, 2))
    double = subject.attached(student=student, teacher=teacher)
    state, shapes = single.state_dict(), {key: value.shape for key, value in double.state_dict().items()}
    same = {key: state[key] for key, shape in shapes.items() if key in state and state[key].shape == shape}
    double.load_state_dict(same, strict=False)  # the train-only modules
    images, labels, index = toy_batch()[:3]
    for number in range(len(single.stages)):
        single.stage, double.stage = single.stages[number], double.stages[number]
        torch.manual_seed(0)
        expected = single.batch_losses(Batch(images, labels, index))
        torch.manual_seed(0)
        losses = double.batch_losses(Batch(images.repeat(2, 1, 1, 1), labels.repeat(2), index.repeat(2)))
        must(losses.keys() == expected.keys(), f"the losses are {', '.join(losses)}, not {', '.join(expected)}")
        for key, value in expected.items():
            close = torch.allclose(losses[key], value, rtol=1.3e-6, atol=1e-5)
            why = f"{key} is {losses[key]:.6g} instead of {value:.6g}: if it compares samples, set per_sample = False"
            must(close, why)


def _twice(features: Features) -> Features:
    stages, embedding, logits = features
    return Features([torch.cat([s, s]) for s in stages], torch.cat([embedding] * 2), torch.cat([logits] * 2))


def gradients(subject: Subject) -> None:
    """A gradient reaches the student in each stage, in the end all that is trained, and never the teacher."""
    method = subject.attached()
    for stage in each_stage(method):
        step(method, batch_of()).backward()
        moved = any(p.grad.abs().sum() > 0 for p in method.student.parameters() if p.grad is not None)
        must(moved, f"no gradient reaches the student in the stage {stage.name}")
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    must(not without, f"no gradient reaches {', '.join(without[:3])}")
    if method.teacher is not None:
        reached = [name for name, p in method.teacher.named_parameters() if p.grad is not None]
        must(not reached, f"a gradient reaches the teacher: {', '.join(reached[:3])}")


def attention_to_the_teacher(subject: Subject) -> None:
    """Another teacher gives another gradient, and the same teacher the same."""
    method = subject.attached()
    if not any(isinstance(part, Method) for part in (method, *method.plus.values())):
        raise NotApplicable("it learns from no teacher")

    def gradient() -> Tensor:
        method.zero_grad()
        torch.manual_seed(0)
        step(method, batch_of()).backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])

    method.student.eval()  # fixed batch statistics, so that only the teacher differs
    first, again = gradient(), gradient()
    must(torch.equal(first, again), "the same step gives another gradient when it is repeated")
    assert method.teacher is not None
    for parameter in method.teacher.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    must(not torch.allclose(first, gradient()), "the student's gradient does not depend on the teacher")


def saturated_logits(subject: Subject) -> None:
    """Losses are float32 and finite under autocast, with finite gradients, even if all logits are saturated."""
    for dtype in (torch.float16, torch.bfloat16):
        method = subject.on_toys(scale=6e4, dtype=dtype)
        for _ in each_stage(method):
            with torch.autocast("cpu", dtype):
                losses = method.batch_losses(toy_batch())
                loss = total(losses)
            loss.backward()
            for key, value in losses.items():
                must(value.dtype == torch.float32, f"{key} is {value.dtype} under autocast to {dtype}, not float32")
                must(bool(torch.isfinite(value)), f"{key} is {value:g} for logits of ±60000 under autocast to {dtype}")
        for name, parameter in method.named_parameters():
            finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
            must(finite, f"the gradient of {name} is not finite for logits of ±60000 under autocast to {dtype}")


def few_classes(subject: Subject) -> None:
    """Two classes, a batch of a single class and one without some of the classes work."""
    refusals = []
    for classes, labels in _FEW:
        case = f"with {classes} classes and the labels {labels}"
        try:
            method = subject.on_toys(classes=classes)
        except NotApplicable as refusal:
            refusals.append(str(refusal))
            continue
        for _ in each_stage(method):
            loss = step(method, toy_batch(torch.tensor(labels)))
            loss.backward()
            must(bool(torch.isfinite(loss)), f"the loss is {loss:g} {case}")
        assert isinstance(method.student, Toy)
        gradient = method.student.logits.grad
        finite = gradient is not None and bool(torch.isfinite(gradient).all())
        must(finite, f"the student's logits have no finite gradient {case}")
    if refusals:
        raise NotApplicable(refusals[0])


def named_non_finite_loss(subject: Subject) -> None:
    """A loss that is not finite is not hidden: the error names it, the epoch and the step."""
    method = subject.on_toys()
    method.stage = method.stages[-1]
    step(method, toy_batch())
    assert isinstance(method.student, Toy)
    with torch.no_grad():
        method.student.logits[0, 0] = float("nan")
    step(method, toy_batch())
    try:
        method.loss_meter.means(7)
    except NonFiniteLoss as error:
        place = "is not finite at epoch 7, step 1"
        must(place in str(error), f"the error does not say where the loss stopped being finite: {error}")
        must("'ce'" in str(error) or "ce" not in method.loss_meter.names, f"the error does not name ce: {error}")
    else:
        raise RuleBroken("logits that are not a number go unnoticed: no loss is nan")


RULES = tuple(
    map(
        Rule.of,
        (
            mean_over_samples, gradients, attention_to_the_teacher, saturated_logits, few_classes,
            named_non_finite_loss,
        ),
    )
)  # fmt: skip
