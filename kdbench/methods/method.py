"""The contract of a method: what its author defines. `kd.py` is the shortest example, `ls.py` one without a teacher.

A method is a class in a file of its own, with a YAML file of its options in `conf/method/`. It derives from `Method`,
or from `MethodWithoutTeacher`, takes its options in `__init__` and defines `losses`. Everything else is optional:

    prepare             create modules that are trained with the student and then discarded; reject impossible pairs
    first_stages        train something else before the recipe's own epochs
    lr_multipliers      train some of these modules with another learning rate
    transform_teacher   change the teacher's features before any loss uses them
    predictions         return the logits of other classifiers that are trained beside the student
    batch_losses        compute all losses of a batch, e.g. with more forward passes than one of each network
    warning             warn when the values in `watched` are a sign of trouble
    receive             load what the runs left behind that the YAML declares as `dependencies`

Available in all of them are `self.student`, `self.teacher`, `self.progress` (the epoch, and how many there are),
`self.label_weight` (of the cross-entropy on the labels, 1 unless set), `self.watched` (scalars to record) and
`self.another_network(name, number)`. A class whose losses read the labels only through `label_loss` or
`batch.over_labels`, or not at all, says so with `mixed_labels = True`; the others are refused together with mixup and
CutMix. The optional methods are documented in `machinery/hooks.py`.
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
        """Create train-only modules from the shapes of the features; raise `UserError` if the pair cannot work."""

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """Named losses beside the cross-entropy on the labels, each already weighted; float32 scalars."""
        raise NotImplementedError

    def forward_both(self, batch: Batch) -> tuple[Features, Features]:
        """Features of student and teacher for a batch, in the run's precision."""
        return self.student(batch.images), self.teacher.answers(batch)

    def prepare_for(self, student: Shapes, teacher: Shapes | None) -> None:
        """Call `prepare`.

        Raises:
            TypeError: there is no teacher, because the YAML lacks `needs: [teacher]`.
        """
        if teacher is None:
            raise TypeError(f"{type(self).__name__} needs a teacher: its YAML must say needs: [teacher]")
        self.prepare(student, teacher)

    def losses_of(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Call `losses`."""
        assert teacher is not None  # checked by prepare_for
        return self.losses(student, teacher, batch)


class MethodWithoutTeacher(DistillationModule):
    """A method whose own losses need no teacher, though a loss added to it may need one."""

    reads = ()

    def prepare(self, student: Shapes) -> None:
        """Create train-only modules from the shapes of the features; raise `UserError` if the student cannot work."""

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """Named losses beside the cross-entropy on the labels, each already weighted; float32 scalars."""
        raise NotImplementedError

    def prepare_for(self, student: Shapes, teacher: Shapes | None) -> None:
        """Call `prepare`."""
        self.prepare(student)

    def losses_of(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Call `losses`."""
        return self.losses(student, batch)
