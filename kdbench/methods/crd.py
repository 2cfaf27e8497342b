"""CRD: Tian, Krishnan & Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699).

    L = CE(z_s, y) + beta (NCE(v^s, M^t) + NCE(v^t, M^s)),   v = P e / ||P e||
    NCE(v, M) = - 1/B sum_b [ log h(v_b, M_b) + sum_m log (1 - h(v_b, M_m)) ]
    h(v, w) = p / (p + m/N),   p = exp(v . w / tau) / Z

where P projects an embedding e to 128 dimensions, trained with the student and then discarded, M is a memory bank
with a row for each of the N training images, M_b is the row of the same image, and the m others are rows of images with
other labels. In each step, the rows of its images become the normalised mean of the old row and v. Z, one for each of
the two terms, is N times the mean of the exponentials in the first step and constant from then on.

Defaults are those of RepDistiller (tau is 0.1 in the paper). As there, the labels are those of the training, with
noise if there is any. Departures: M_b is the row after its update, so that the student learns from the teacher's
embedding of the same view of the image, as the paper describes; `positive: stored` is RepDistiller's, where it is that
of the last epoch, and in the first epoch random. Negatives are drawn with replacement, uniformly from all images of
other labels, so that classes may differ in size and a step never waits for the device (RepDistiller draws without
replacement where it can, and fails on classes of different sizes). The logarithms are computed from the scores, without
RepDistiller's constant of 1e-7. The banks are part of the checkpoint: 2 N times 128 numbers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.data.streams import derive
from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

_ROWS_WITHOUT_DATA = 64  # of the banks of a method that is not trained on a data module


def nce_loss(scores: Tensor, log_z: Tensor, count: int) -> Tensor:
    """Noise-contrastive loss of one positive and m negatives for each sample.

    Args:
        scores: v . w / tau (B,1+m), the positive first.
        log_z: logarithm of the normalisation Z, a scalar.
        count: N, rows of the memory bank.

    Returns:
        Scalar: sum over positive and negatives, mean over the batch.
    """
    odds = scores - log_z - math.log((scores.shape[1] - 1) / count)  # log of h / (1 - h)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()


def negative_rows(labels: Tensor, counts: Tensor, number: int) -> Tensor:
    """Random rows of other labels, from a bank whose rows are sorted by label.

    Args:
        labels: (B,).
        counts: (K,), rows of each label.
        number: m, for each label.

    Returns:
        (B,m), drawn uniformly and with replacement.
    """
    own, first = counts[labels, None], (counts.cumsum(0) - counts)[labels, None]
    others = counts.sum() - own
    uniform = torch.rand(len(labels), number, dtype=torch.float64, device=labels.device)
    drawn = torch.minimum((uniform * others).long(), others - 1)
    return drawn + own * (drawn >= first)


class CRD(Method):
    """The student's embedding of an image is close to the teacher's of the same image, and far from those of others."""

    per_sample = False
    reads = ("embedding",)

    rows: Tensor
    counts: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor
    step: tuple[Tensor, Tensor, Tensor, Tensor]  # indices of the batch's rows, the new rows, log Z

    def __init__(
        self, weight: float, dimension: int, negatives: int, temperature: float, momentum: float, positive: str
    ) -> None:
        super().__init__()
        self.weight, self.dimension, self.negatives = weight, dimension, negatives
        self.temperature, self.momentum, self.positive = temperature, momentum, positive

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Create the projections and banks for a few images; `setup` replaces these by banks for the training set."""
        self.student_projection = nn.Linear(student.embedding, self.dimension)
        self.teacher_projection = nn.Linear(teacher.embedding, self.dimension)
        index = torch.arange(_ROWS_WITHOUT_DATA)
        self._create_banks(index % student.num_classes, index, _ROWS_WITHOUT_DATA)

    def setup(self, stage: str) -> None:
        """Create banks for the training set; Lightning calls this before it loads a checkpoint.

        Raises:
            UserError: all training images are of one class.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:  # trained on a loader alone
            return
        labels, index = torch.as_tensor(data.train_labels), torch.as_tensor(data.train_index)
        if len(labels.unique()) == 1:
            raise UserError("crd is not possible with a training set of a single class: it draws images of other ones")
        self._create_banks(labels, index, data.source_size)

    def _create_banks(self, labels: Tensor, index: Tensor, source_size: int) -> None:
        """Create banks with a row for each image, sorted by label.

        Args:
            labels: (N,).
            index: (N,), positions of the images in their source.
            source_size: number of images in the source.
        """
        rows = torch.zeros(source_size, dtype=torch.long)
        rows[index[labels.argsort(stable=True)]] = torch.arange(len(index))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("counts", labels.bincount(minlength=self.student.shapes.num_classes), persistent=False)
        generator = torch.Generator().manual_seed(derive(self.seed, "crd"))
        bound = math.sqrt(3 / self.dimension)  # rows of norm 1 in the mean, as in RepDistiller
        for name in ("student_bank", "teacher_bank"):
            uniform = torch.rand(len(index), self.dimension, generator=generator)
            self.register_buffer(name, bound * (2 * uniform - 1))
        self.register_buffer("log_z", torch.full((2,), math.inf))

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`crd`, the sum of both directions; what it leaves in `step` is for the update of the banks."""
        ours = F.normalize(self.student_projection(student.embedding), dim=1)
        theirs = F.normalize(self.teacher_projection(teacher.embedding), dim=1)
        rows = self.rows[batch.index]
        with torch.no_grad():
            stored = self.student_bank[rows], self.teacher_bank[rows]
            updated = self._mean(stored[0], ours), self._mean(stored[1], theirs)
        student_rows, teacher_rows = updated if self.positive == "updated" else stored
        others = negative_rows(batch.labels, self.counts, self.negatives)
        directions = (ours, teacher_rows, self.teacher_bank), (theirs, student_rows, self.student_bank)
        scores = [self._scores(*direction, others) for direction in directions]
        count = len(self.student_bank)
        with torch.no_grad():
            means = torch.stack([each.flatten().logsumexp(0) - math.log(each.numel()) for each in scores])
            log_z = torch.where(self.log_z.isinf(), means + math.log(count), self.log_z)
        self.step = rows, *updated, log_z
        losses = [nce_loss(each, constant, count) for each, constant in zip(scores, log_z, strict=True)]
        return {"crd": self.weight * torch.stack(losses).sum()}

    def _mean(self, rows: Tensor, anchors: Tensor) -> Tensor:
        return F.normalize(self.momentum * rows + (1 - self.momentum) * anchors, dim=1)

    def _scores(self, anchors: Tensor, positives: Tensor, bank: Tensor, others: Tensor) -> Tensor:
        # All scores are computed, and some are chosen: copies of the chosen rows would take far more memory.
        negatives = (anchors @ bank.T).gather(1, others)
        return torch.cat([(anchors * positives).sum(1, keepdim=True), negatives], dim=1) / self.temperature

    def on_after_backward(self) -> None:
        """Update the memory banks; the backward pass was the last to need the old rows."""
        rows, student_rows, teacher_rows, log_z = self.step
        self.log_z.copy_(log_z)
        self.student_bank.index_copy_(0, rows, student_rows)
        self.teacher_bank.index_copy_(0, rows, teacher_rows)
