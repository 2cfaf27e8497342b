"""Memorisation: what a network predicts for the training samples whose label is wrong."""

from torch import Tensor


def shares(predictions: Tensor, given: Tensor, true: Tensor, teacher: Tensor | None = None) -> dict[str, float]:
    """How often the predictions for wrongly labelled samples agree with the given label, the true one and the teacher.

    Args:
        predictions: (N,) int64, for training samples; correctly labelled ones are left out.
        given: (N,) int64, the labels trained on.
        true: (N,) int64, the true labels.
        teacher: (N,) int64, the predictions of the teacher; None if there is no teacher.

    Returns:
        Shares of the predictions that equal the `wrong` label given, the `true` label and the prediction of the
        `teacher`. The teacher may predict either label or a third class, so the shares need not sum to 1. Empty if no
        label is wrong.
    """
    wrong = given != true
    count = int(wrong.sum())
    if not count:
        return {}
    references = {"wrong": given, "true": true} | ({} if teacher is None else {"teacher": teacher})
    return {name: int(((predictions == labels) & wrong).sum()) / count for name, labels in references.items()}
