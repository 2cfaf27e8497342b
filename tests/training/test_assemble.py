"""The networks of a run: which they are, and which weights they start from."""

import torch

from kdbench.records import weights
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import assemble, untrained_teacher
from tests.helpers.tiny import TINY


def method_of(*overrides):
    spec = spec_of([*TINY, *overrides])
    return assemble(spec, untrained_teacher(spec))


def equal(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_arguments_of_student_and_teacher():
    method = method_of("student.kwargs.width=4", "teacher.kwargs={width:6}")
    assert method.student.shapes.embedding == 16
    assert method.teacher.network.shapes.embedding == 24


def test_the_student_alone_starts_from_its_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(path, method_of("method=ce", "seed=5").export(), {})
    method = method_of("method=dml", f"student.init={path}")
    state = weights.read(path, "file")
    assert equal(state, method.export())
    assert not equal(state, method.peers[0].export_state())
    plain = method_of("method=dml")
    assert not equal(state, plain.export())
    assert equal(plain.peers[0].export_state(), method.peers[0].export_state())


def test_a_peer_has_the_arguments_of_the_student_only_under_its_name():
    method = method_of("method=dml", "student.kwargs.width=4", "method.peers=[resnet8,resnet14]")
    assert [peer.shapes.embedding for peer in method.peers] == [16, 64]
