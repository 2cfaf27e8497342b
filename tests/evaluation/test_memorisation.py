import torch

from kdbench.evaluation.memorisation import shares

TRUE = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
GIVEN = torch.tensor([0, 1, 2, 3, 1, 2, 3, 0])  # the last four are wrong
PREDICTIONS = torch.tensor([3, 1, 2, 3, 1, 2, 2, 1])
TEACHER = torch.tensor([3, 1, 2, 3, 0, 2, 1, 1])


def test_shares_are_of_the_wrongly_labelled_alone():
    assert shares(PREDICTIONS, GIVEN, TRUE) == {"wrong": 0.5, "true": 0.25}


def test_the_teachers_label_may_be_the_wrong_or_a_third_one():
    assert shares(PREDICTIONS, GIVEN, TRUE, TEACHER) == {"wrong": 0.5, "true": 0.25, "teacher": 0.5}


def test_without_wrong_labels_there_is_nothing_to_say():
    assert shares(PREDICTIONS, TRUE, TRUE, TEACHER) == {}
