"""What a network says of the training samples whose label is wrong."""

from torch import Tensor


def shares(predictions: Tensor, given: Tensor, true: Tensor, teacher: Tensor | None = None) -> dict[str, float]:
    """How the samples whose given label is not the true one are predicted.

    Args:
        predictions: (N,) int64, of training samples; those whose label is right are left out.
        given: (N,) int64, the labels trained on.
        true: (N,) int64.
        teacher: (N,) int64, what the teacher predicts; None where there is no teacher.

    Returns:
        Shares predicted as the `wrong` label given, as the `true` label, and as the `teacher` predicts, which may be
        either of the two or a third class, so the shares need not sum to 1; empty where no label is wrong.
    """
    wrong = given != true
    count = int(wrong.sum())
    if not count:
        return {}
    answers = {"wrong": given, "true": true} | ({} if teacher is None else {"teacher": teacher})
    return {name: int(((predictions == answer) & wrong).sum()) / count for name, answer in answers.items()}
