"""The contract of a method: what its author defines. `kd.py` is the shortest example, `ls.py` one without a teacher.

A method is a class in a file of its own, with a YAML of its options in `conf/method/`. It derives from `Method`, or
from `MethodWithoutTeacher`, takes its options in `__init__` and defines `losses`. Everything else is optional:

    prepare             make modules that are trained with the student and thrown away; refuse impossible pairs
    first_stages        train something else before the recipe's own epochs
    lr_multipliers      another learning rate for some of these modules
    transform_teacher   change what counts as the teacher's features
    predictions         logits of other classifiers that are trained beside the student
    batch_losses        take the whole step: more forward passes than one of the student and one of the teacher
    warning             say when what `watched` shows means trouble
    receive             take what other runs, the `dependencies` of the YAML, have left

Given are `self.student`, `self.teacher`, `self.progress` (epoch of epochs), `self.label_weight` (of the cross-entropy
on the labels, 1 unless set), `self.watched` (scalars to record) and `self.another_network(name, number)`. The hooks
are documented in `machinery/hooks.py`.
"""

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.machinery.frozen import Teacher
from kdbench.methods.machinery.module import DistillationModule
from kdbench.models.features import Features, Shapes


class Method(DistillationModule):
    """A method that learns from a teacher."""

    teacher: Teacher

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Make train-only modules from the shapes of the features; raise `UserError` if the pair cannot work."""

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """Named losses beside the cross-entropy on the labels, each already weighted; float32 scalars."""
        raise NotImplementedError

    def forward_both(self, images: Tensor) -> tuple[Features, Features]:
        """Features of student and teacher of images (B,C,H,W) in [0,1], in the run's precision."""
        return self.student(images), self.teacher(images)

    def prepare_for(self, student: Shapes, teacher: Shapes | None) -> None:
        """Call `prepare`; raises `TypeError` without a teacher, which `needs: [teacher]` in the YAML asks for."""
        if teacher is None:
            raise TypeError(f"{type(self).__name__} needs a teacher: its YAML must say needs: [teacher]")
        self.prepare(student, teacher)

    def losses_of(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Call `losses`."""
        assert teacher is not None  # prepare_for has seen to it
        return self.losses(student, teacher, batch)


class MethodWithoutTeacher(DistillationModule):
    """A method whose own loss needs no teacher, though a loss added to it may."""

    def prepare(self, student: Shapes) -> None:
        """Make train-only modules from the shapes of the features; raise `UserError` if the student cannot work."""

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """Named losses beside the cross-entropy on the labels, each already weighted; float32 scalars."""
        raise NotImplementedError

    def prepare_for(self, student: Shapes, teacher: Shapes | None) -> None:
        """Call `prepare`."""
        self.prepare(student)

    def losses_of(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Call `losses`."""
        return self.losses(student, batch)
