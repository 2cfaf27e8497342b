"""One undisturbed KD run and its teacher, for each file of tests."""

import pytest

from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct
from tests.helpers.tiny import TINY


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The spec and the record of an undisturbed run."""
    spec = spec_of([*TINY, f"outputs={tmp_path_factory.mktemp('whole')}"])
    return spec, conduct(spec)


@pytest.fixture(scope="module")
def teacher_record(whole):
    """What its teacher left."""
    return whole[0].dependencies["teacher"].record
