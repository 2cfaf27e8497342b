"""A teacher's answers that are read instead of computed: never another result, whatever state the files are in."""

import errno
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.machinery.frozen import Teacher
from kdbench.records import weights
from kdbench.records.answer_file import AnswerFile
from kdbench.specs.resolve import spec_of
from kdbench.training.callbacks import History
from kdbench.training.view_cache import AnswersInFiles, AnswersOnDevice
from tests.helpers.methods import batch_of, method_of
from tests.helpers.tiny import same

KEPT = ["teacher.cache=always"]
LOGITS = "logits.f32"


def outcome(record):
    """Everything of a run that must not depend on where the teacher's answers come from."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in record.epochs]
    result = {key: value for key, value in same(record.finished).items() if key != "weights_sha256"}
    tensors = {key: value.numpy().tobytes() for key, value in weights.read(record.weights, "").items()}
    return result, rows, tensors


def share_read(record):
    return record.finished["cost"]["teacher_answers_read"]


def file_of(root, name=LOGITS):
    (path,) = root.glob(f"outputs/answers/*/{name}")
    return path


@pytest.fixture
def forwards(monkeypatch):
    """The numbers of images in the teacher's forward passes while it teaches."""
    sizes, original = [], Teacher.forward

    def counted(self, images):
        if torch.is_grad_enabled():  # evaluation turns gradients off
            sizes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    return sizes


@pytest.mark.parametrize("method", [["method=kd"], ["method=rkd"], ["method=skd", "plus=[rkd]"], ["method=bss"],
                                    ["method=kd", "teacher.shuffle=class"], ["method=ce", "plus=[kd]"]])  # fmt: skip
def test_cold_half_filled_full_and_garbled_files_give_the_same_run(tiny, tmp_path, forwards, method):
    computed = tiny(*method, "teacher.cache=never")
    assert share_read(computed) is None
    assert not (tmp_path / "outputs" / "answers").exists()
    again = [*method, *KEPT, "force=true"]
    cold = tiny(*again)
    first = share_read(cold)
    assert 0 < first < 0.5  # views that come twice in three epochs
    half = tiny(*again)
    assert share_read(half) > 0.9
    for path in tmp_path.glob("outputs/answers/*/*.f32"):
        content = bytearray(path.read_bytes())
        content[: len(content) // 2] = np.random.default_rng(0).bytes(len(content) // 2)
        path.write_bytes(content)
    garbled = tiny(*again)
    assert 0.2 < share_read(garbled) < 0.9
    assert outcome(computed) == outcome(cold) == outcome(half) == outcome(garbled)


def test_what_is_there_is_not_computed_again(tiny, forwards):
    tiny("method=kd", *KEPT)
    forwards.clear()
    tiny("method=kd", *KEPT, "force=true")
    assert forwards == [16, 16]  # the first batch, and its images in other company


def test_runs_of_other_methods_seeds_noise_and_splits_share_the_files(tiny, tmp_path):
    tiny("method=kd", *KEPT, "recipe.epochs=6", "teacher.recipe.epochs=3")
    for overrides in (["method=skd"], ["seed=1"], ["noise=symmetric", "noise.rate=0.4", "teacher.condition=clean"]):
        record = tiny("method=kd", *KEPT, "teacher.recipe.epochs=3", *overrides)
        assert share_read(record) > 0.25, overrides
    assert len(list(tmp_path.glob("outputs/answers/*"))) == 1


def test_another_teacher_or_other_images_have_files_of_their_own(tiny, tmp_path):
    for number, overrides in enumerate((["seed=0"], ["teacher.seed=1"], ["dataset.padding_mode=reflect"]), 1):
        tiny("method=kd", *KEPT, *overrides)
        assert len(list(tmp_path.glob("outputs/answers/*"))) == number


def test_an_interrupted_run_continues_to_the_same_bits(tiny, tmp_path, monkeypatch):
    whole = tiny("method=kd", "teacher.cache=never")
    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1 and module.teacher is not None:
            raise KeyboardInterrupt

    words = ["method=kd", *KEPT, f"outputs={tmp_path}/other"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny(*words)
    assert outcome(tiny(*words)) == outcome(whole)


def test_auto_keeps_answers_only_where_it_pays(tiny, tmp_path):
    assert share_read(tiny("method=kd", "recipe.epochs=1")) is None
    assert not (tmp_path / "outputs" / "answers").exists()
    assert share_read(tiny("method=kd", "recipe.epochs=6", "teacher.recipe.epochs=1")) > 0
    assert share_read(tiny("method=skd", "recipe.epochs=1")) is not None  # the files are there now


@pytest.mark.parametrize("overrides", [["method=at"], ["method=fitnet"], ["method=kd", "plus=[sp]"],
                                       ["method=kd", "recipe.mixup=0.2"], ["method=kd", "recipe.augment=randaugment"],
                                       ["method=kd", "dataset.loader=streaming", "dataset.workers=0"]])  # fmt: skip
def test_what_cannot_be_kept_is_computed(tiny, tmp_path, overrides):
    assert share_read(tiny(*KEPT, "recipe.epochs=1", *overrides)) is None
    assert not (tmp_path / "outputs" / "answers").exists()


def test_a_limit_of_the_size_and_a_full_disk_are_said_and_the_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    whole = tiny("method=kd", "teacher.cache=never")
    small = tiny("method=kd", *KEPT, "teacher.cache_gib=1e-6", "force=true")
    assert "not kept: teacher.cache_gib=1e-06 allows less; they would take 0.0 MB" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    no_space = tiny("method=kd", *KEPT, "force=true")
    assert "not kept: only 0.0 MB are free on the disk" in capsys.readouterr().out
    monkeypatch.undo()

    def full(self, positions, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AnswerFile, "write", full)
    disk_full = tiny("method=kd", *KEPT, "force=true")
    assert capsys.readouterr().out.count("No space left on device") == 1
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "outputs" / "answers")
    (tmp_path / "outputs" / "answers").write_text("a file is in the way")
    in_the_way = tiny("method=kd", *KEPT, "force=true")
    assert "the teacher's answers are not kept" in capsys.readouterr().out
    assert outcome(whole) == outcome(small) == outcome(no_space) == outcome(disk_full) == outcome(in_the_way)


def test_answers_that_differ_from_the_computed_ones_are_not_read(tiny, tmp_path, capsys):
    whole = tiny("method=kd", "teacher.cache=never")
    tiny("method=kd", *KEPT, "force=true")
    path = file_of(tmp_path)
    file = AnswerFile(path, path.stat().st_size // 24, 4, "float32")
    values, there = file.read(np.arange(file.rows))
    file.write(np.flatnonzero(there), np.nextafter(values[there], np.float32(9)))  # as another kind of CPU may round
    again = tiny("method=kd", *KEPT, "force=true")
    assert f"computed, not read: on this machine they differ from those in {path}" in capsys.readouterr().out
    assert share_read(again) == 0
    assert outcome(again) == outcome(whole)


def test_a_teacher_whose_answers_depend_on_the_batch_is_not_read(tiny, monkeypatch, capsys):
    original = Teacher.forward

    def dependent(self, images):
        features = original(self, images)
        return features._replace(logits=features.logits + 1e-6 * images[0].mean())

    monkeypatch.setattr(Teacher, "forward", dependent)
    whole = tiny("method=kd", "teacher.cache=never")
    again = tiny("method=kd", *KEPT, "force=true")
    assert "they depend, by rounding, on the other images of a batch" in capsys.readouterr().out
    assert outcome(again) == outcome(whole)


def test_float16_is_another_run_whose_result_does_not_depend_on_the_files(tiny, words, tmp_path):
    half = ["method=kd", *KEPT, "teacher.cache_rounding=float16"]
    assert spec_of(words(*half)).id != spec_of(words("method=kd")).id
    cold, filled = tiny(*half), tiny(*half, "force=true")
    assert share_read(filled) > 0.9
    assert file_of(tmp_path, "logits.f16").stat().st_size == 80 * 9 * (4 * 2 + 8)  # 9 views, 4 numbers and a checksum
    unkept = tiny(*half, "teacher.cache_gib=1e-6", "force=true")
    assert share_read(unkept) is None
    assert outcome(cold) == outcome(filled) == outcome(unkept)
    assert outcome(cold)[2] != outcome(tiny("method=kd"))[2]


@pytest.mark.parametrize("cache", ["auto", "never"])
def test_rounding_without_keeping_is_refused(words, cache):
    with pytest.raises(
        UserError, match=rf"cache_rounding=float16 is not allowed with teacher.cache={cache}, only with"
    ):
        spec_of(words("method=kd", f"teacher.cache={cache}", "teacher.cache_rounding=float16"))


def test_the_keys_of_the_cache_are_not_part_of_the_identity(words):
    one, other = (spec_of(words("method=kd", f"teacher.cache={cache}")) for cache in ("never", "always"))
    assert one.id == other.id


@pytest.mark.parametrize("missing", [[], [3], [0, 5, 9], list(range(16)), list(range(40))])
def test_missing_answers_are_computed_in_groups_and_all_equal_a_forward_pass(tmp_path, missing):
    method = method_of("kd")
    batch = batch_of(40)._replace(views=torch.arange(40))
    expected = method.teacher(batch.images)
    file = AnswerFile(tmp_path / "x", 40, 4, "float32")
    there = np.setdiff1d(np.arange(40), missing)
    file.write(there, expected.logits.numpy()[there])
    sizes = []
    method.teacher.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    cache = AnswersInFiles(method.teacher, {"logits": file}, exact=False, group=8)
    assert torch.equal(cache(batch).logits, expected.logits)
    assert set(sizes) <= {8, 40}
    assert (cache.asked, cache.read) == (40, 40 - len(missing))
    assert file.read(np.arange(40))[1].all()


def test_answers_on_the_device_are_compared_once_and_then_gathered():
    method = method_of("kd")
    batch = batch_of(8)._replace(views=torch.arange(8) * 3)
    expected = method.teacher(batch.images)
    table = torch.zeros(24, 4)
    table[batch.views] = expected.logits
    cache, sizes = AnswersOnDevice(method.teacher, {"logits": table}, exact=True), []
    method.teacher.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for _ in range(3):
        assert torch.equal(cache(batch).logits, expected.logits)
    assert sizes == [8]
    wrong = AnswersOnDevice(method.teacher, {"logits": table + 1e-6}, exact=True)
    assert torch.equal(wrong(batch).logits, expected.logits)
    assert not wrong.trusted
    assert torch.equal(wrong(batch).logits, expected.logits)
