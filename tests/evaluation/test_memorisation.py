import torch

from kdbench.evaluation.memorisation import shares

TRUE = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
GIVEN = torch.tensor([0, 1, 2, 3, 1, 2, 3, 0])  # the last four are wrong
PREDICTIONS = torch.tensor([3, 1, 2, 3, 1, 2, 2, 1])
TEACHER = torch.tensor([3, 1, 2, 3, 0, 2, 1, 1])


def test_shares_are_over_the_wrongly_labelled_samples_only():
    assert shares(PREDICTIONS, GIVEN, TRUE) == {"wrong": 0.5, "true": 0.25}


def test_the_teacher_may_predict_the_wrong_label_or_a_third_class():
    assert shares(PREDICTIONS, GIVEN, TRUE, TEACHER) == {"wrong": 0.5, "true": 0.25, "teacher": 0.5}


def test_without_wrong_labels_there_are_no_shares():
    assert shares(PREDICTIONS, TRUE, TRUE, TEACHER) == {}
