"""Small methods, each of which breaks a single rule of `kdbench.conformance`; `WRONG` says which, and what is said."""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.stages import first_stage
from kdbench.methods.method import Method, MethodWithoutTeacher

OWN_STEP = "# plus: it makes the training step itself"


class Sound(Method):
    """KD with a weight; what the others do wrong, it does right."""

    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def losses(self, student, teacher, batch):
        return {"soft": self.beta * kd_loss(student.logits, teacher.logits, 4.0)}


class TeacherForNothing(MethodWithoutTeacher):
    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def losses(self, student, batch):
        return {"small": self.beta * student.logits.square().mean()}


class HiddenOption(Sound):
    def __init__(self, beta, gamma=1.0):
        super().__init__(beta)


class AnyOption(Sound):
    def __init__(self, **options):
        super().__init__(**options)


class LostInPlus(Sound):
    def batch_losses(self, batch):
        student, teacher = self.forward_both(batch)
        losses = self.named_losses(student, teacher, batch)
        return {**losses, "small": student.logits.float().square().mean()}


class Refuses(Sound):
    def prepare(self, student, teacher):
        raise UserError("mine works on Sundays only")


class UsesTeacherMethods(Sound):
    def losses(self, student, teacher, batch):
        return {"soft": self.beta * kd_loss(student.logits, self.teacher.logits(batch.images), 4.0)}


class TeacherInTrainMode(Sound):
    def forward_both(self, batch):
        for module in self.teacher.network.modules():
            module.training = True
        features = super().forward_both(batch)
        self.teacher.eval()
        return features


class TeacherChanges(Sound):
    def on_train_end(self):
        for parameter in self.teacher.parameters():
            parameter.mul_(0.5)


class ScoredInTrainMode(Sound):
    def predictions(self, images):
        self.student.train()
        return super().predictions(images)


class TrainedInEvalMode(Sound):
    def on_train_batch_start(self, *_):
        self.student.eval()


class OtherPredictions(Sound):
    def predictions(self, images):
        return {"student": -self.student(images).logits}


class StillParameter(Sound):
    def prepare(self, student, teacher):
        self.offset = nn.Parameter(torch.zeros(3))

    def losses(self, student, teacher, batch):
        losses = super().losses(student, teacher, batch)
        return {**losses, "offset": 0 * self.offset.sum()}


class NotOptimised(Sound):
    scales = ()

    def losses(self, student, teacher, batch):
        self.scales = self.scales or [torch.ones((), device=student.logits.device, requires_grad=True)]
        return {key: loss * self.scales[0] for key, loss in super().losses(student, teacher, batch).items()}


class ExportsTooMuch(Sound):
    def prepare(self, student, teacher):
        self.adapter = nn.Linear(student.num_classes, teacher.num_classes)

    def losses(self, student, teacher, batch):
        return {"soft": self.beta * kd_loss(self.adapter(student.logits), teacher.logits, 4.0)}

    def export(self):
        return {**super().export(), **self.adapter.state_dict()}


class TeacherInCheckpoint(Sound):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["guide"] = {"layers": [p.clone() for p in self.teacher.parameters()]}


class SumOverBatch(Sound):
    def losses(self, student, teacher, batch):
        return {"soft": self.beta * F.kl_div(student.logits.log_softmax(1), teacher.logits.softmax(1), reduction="sum")}


class ComparesSamples(Sound):
    def losses(self, student, teacher, batch):
        distances = [torch.cdist(z, z + 1e-3) for z in (student.logits, teacher.logits)]
        return {"soft": self.beta * (distances[0] - distances[1]).square().mean() + distances[0][0].std()}


class FirstStageWithoutStudent(MethodWithoutTeacher):
    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def prepare(self, student):
        self.adapter = nn.Linear(student.num_classes, student.num_classes)

    def first_stages(self, recipe):
        return [first_stage("warm", {"epochs": 0.1, "lr": 1.0}, recipe, partial(self.adapted, False))]

    def adapted(self, trained, student, teacher, batch):
        logits = student.logits if trained else student.logits.detach()
        return {"adapted": self.beta * F.cross_entropy(self.adapter(logits), batch.labels)}

    def losses(self, student, batch):
        return self.adapted(True, student, None, batch)


class IgnoresTeacher(Sound):
    def losses(self, student, teacher, batch):
        return {"soft": self.beta * (student.logits.square().mean() + 0 * teacher.logits.sum())}


class NanWhenSaturated(Sound):
    def losses(self, student, teacher, batch):
        p, q = teacher.logits.softmax(1), student.logits.softmax(1)
        return {"soft": self.beta * (p * (p / q).log()).sum(1).mean()}


class ThreeClasses(Sound):
    def losses(self, student, teacher, batch):
        best = teacher.logits.topk(3).indices
        return {"soft": self.beta * F.mse_loss(student.logits.gather(1, best), teacher.logits.gather(1, best))}


class HidesNan(Sound):
    def batch_losses(self, batch):
        return {key: loss.nan_to_num() for key, loss in super().batch_losses(batch).items()}


class ReadsWithoutDeclaration(Sound):
    reads = ("logits",)

    def batch_losses(self, batch):
        student, teacher = self.forward_both(batch)
        losses = self.named_losses(student, teacher, batch)
        means = [features.embedding.float().mean(1) for features in (student, teacher)]
        return {**losses, "size": F.mse_loss(*means)}


class CallsTheTeacher(Sound):
    reads = ("logits",)

    def batch_losses(self, batch):
        return self.named_losses(self.student(batch.images), self.teacher(batch.images), batch)


class DeclaresTooMuch(Sound):
    reads = ("logits", "embedding")


class DeclaresCalls(Sound):
    reads = ("logits", "network")


class LosesALabel(Sound):
    mixed_labels = True

    def losses(self, student, teacher, batch):
        again = F.cross_entropy(student.logits, batch.labels)
        return {**super().losses(student, teacher, batch), "again": again}


class Waits(Sound):
    def losses(self, student, teacher, batch):
        largest = student.logits.abs().max().item()
        return {key: loss / max(largest / 1e9, 1) for key, loss in super().losses(student, teacher, batch).items()}


class Logs(Sound):
    def losses(self, student, teacher, batch):
        losses = super().losses(student, teacher, batch)
        self.log("soft_loss", losses["soft"])
        return losses


class ForgetsItsState(Sound):
    level = 1.0

    def on_train_epoch_end(self):
        self.level *= 2

    def losses(self, student, teacher, batch):
        return {key: self.level * loss for key, loss in super().losses(student, teacher, batch).items()}


class Wrong(NamedTuple):
    """A faulty method: its class, the only rule that it breaks, a part of what is said, and of its YAML."""

    method: type
    rule: str
    said: str
    needs: str = "[teacher]"
    header: str = "# needs: a teacher"
    key: str = "beta: 1.0  # float >= 0: weight of the loss"


WRONG = (
    Wrong(TeacherForNothing, "declared_teacher", "learns from no teacher, but"),
    Wrong(HiddenOption, "declared_options", "gamma is an argument"),
    Wrong(AnyOption, "declared_options", "takes **options, which hides"),
    Wrong(Sound, "declared_options", "beta of", key="beta: 1.0"),
    Wrong(LostInPlus, "addable", "its loss small is lost"),
    Wrong(Refuses, "acceptance", "works on Sundays only: student=resnet8 teacher=resnet14; name others"),
    Wrong(UsesTeacherMethods, "addable", "'UsesTeacherMethods' object has no attribute 'teacher'"),
    Wrong(TeacherInTrainMode, "frozen_teacher", "is in train mode during the training"),
    Wrong(TeacherChanges, "frozen_teacher", "training changes the teacher: "),
    Wrong(ScoredInTrainMode, "modes", "in train mode while it is scored"),
    Wrong(TrainedInEvalMode, "modes", "in eval mode while it is trained"),
    Wrong(OtherPredictions, "modes", "other logits as the student's"),
    Wrong(StillParameter, "moving_parameters", "training does not move offset"),
    Wrong(NotOptimised, "train_only_modules", "no optimiser sees, of shapes ()"),
    Wrong(ExportsTooMuch, "train_only_modules", "exported is not the student alone"),
    Wrong(TeacherInCheckpoint, "checkpoint", "the checkpoint holds the teacher: guide.layers.0"),
    Wrong(SumOverBatch, "mean_over_samples", "set per_sample = False"),
    Wrong(ComparesSamples, "mean_over_samples", "set per_sample = False"),
    Wrong(FirstStageWithoutStudent, "gradients", "in the stage warm", needs="[]", header="# plus: it has a stage"),
    Wrong(IgnoresTeacher, "attention_to_the_teacher", "does not depend on the teacher"),
    Wrong(NanWhenSaturated, "saturated_logits", "soft is"),
    Wrong(ThreeClasses, "few_classes", "selected index k out of range"),
    Wrong(HidesNan, "named_non_finite_loss", "logits that are not a number go unnoticed", header=OWN_STEP),
    Wrong(ReadsWithoutDeclaration, "declared_reads", "it reads the teacher's embedding, but does", header=OWN_STEP),
    Wrong(CallsTheTeacher, "declared_reads", "it calls the teacher, but does not declare it", header=OWN_STEP),
    Wrong(DeclaresTooMuch, "declared_reads", "it declares that it reads the teacher's embedding, but never does"),
    Wrong(DeclaresCalls, "declared_reads", "it declares that it calls the teacher, but never does"),
    Wrong(LosesALabel, "mixed_labels", "set mixed_labels = False"),
    Wrong(Waits, "no_wait", "Tensor.item() cannot be called on meta tensors"),
    Wrong(Logs, "no_logging", "it logs 'soft_loss'"),
    Wrong(ForgetsItsState, "resumption", "continued after epoch 1 of 2, the loss "),
)


def yaml_of(name, wrong):
    """The file of a faulty method."""
    return f"""# A faulty method
{wrong.header}
name: {name}  # fixed: the name of the method
_target_: {__name__}.{wrong.method.__name__}  # fixed: the class
needs: {wrong.needs}  # fixed: what the runner must provide
{wrong.key}
"""
