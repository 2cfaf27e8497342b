"""`kdbench cache`: answers that are computed in advance are those of a run, and no run computes them again."""

import errno
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from kdbench import cli
from kdbench.console import show_messages
from kdbench.methods.machinery.frozen import Teacher
from kdbench.records import weights
from kdbench.records.answer_file import AnswerFile
from kdbench.specs.resolve import spec_of
from kdbench.training import fill_cache
from tests.helpers.tiny import same

READS = ["teacher.cache=always", "force=true"]
BATCHES = 4 * 3 - 1  # of 16 of the 72 training images, in three epochs, without the first one, which is compared


def outcome(record):
    """Everything of a run that must not depend on where the teacher's answers come from."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in record.epochs]
    result = {key: value for key, value in same(record.finished).items() if key != "weights_sha256"}
    return result, rows, {key: value.numpy().tobytes() for key, value in weights.read(record.weights, "").items()}


def share_read(record):
    return record.finished["cost"]["teacher_answers_read"]


@pytest.fixture
def cache(words):
    """`cache(*overrides)`: the exit code of `kdbench cache` for the tiny run."""
    return lambda *overrides: cli.main(["cache", *words(*overrides)])


@pytest.fixture
def files(tmp_path):
    """`files(part)`: the file of this part of the answers, opened."""

    def opened(part="logits", width=4):
        (path,) = tmp_path.glob(f"outputs/answers/*/{part}.f32")
        return AnswerFile(path, 80 * 9, width, "float32")

    return opened


@pytest.fixture
def sizes(monkeypatch):
    """The numbers of images in the teacher's forward passes; once `sizes.limit` are made, Ctrl-C."""
    original = Teacher.forward

    class Sizes(list):
        limit = None

    sizes = Sizes()

    def counted(self, images):
        sizes.append(len(images))
        if sizes.limit is not None and len(sizes) > sizes.limit:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    return sizes


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (["method=kd", "trainer.precision=bf16-mixed"], ["logits"]),
        (["method=rkd", "plus=[kd]"], ["embedding", "logits"]),
    ],
)
def test_a_run_after_it_reads_all_answers_and_is_bit_identical(tiny, tmp_path, cache, method, parts, capsys):
    computed = tiny(*method, "teacher.cache=never")
    assert cache(*method) == 0
    printed = capsys.readouterr().out
    assert "answers of resnet14 to 72 images x 9 views" in printed
    assert "all answers are there" in printed
    assert sorted(path.stem for path in tmp_path.glob("outputs/answers/*/*.f32")) == parts
    assert share_read(after := tiny(*method, *READS)) == 1 - 16 / (16 * (BATCHES + 1))
    assert outcome(after) == outcome(computed)
    assert share_read(tiny(*method, "force=true")) > 0.9  # teacher.cache=auto too


def test_the_teacher_is_trained_if_it_is_missing_and_the_run_is_not(words, tmp_path, cache):
    assert cache("method=kd") == 0
    assert [path.name.split("-")[0] for path in tmp_path.glob("outputs/runs/*")] == ["ce"]


def test_the_teacher_is_not_asked_again(tiny, cache, sizes):
    cache("method=kd")
    sizes.clear()
    tiny("method=kd", *READS, "trainer.test_every=0")
    while_training = list(itertools.takewhile(lambda size: size == 16, sizes))
    assert len(while_training) == 2  # the first batch, and its images in other company
    sizes.clear()
    assert cache("method=kd") == 0
    assert sizes == [16] * 4  # two batches, each twice, to compare


@pytest.mark.parametrize("other", [["noise=symmetric", "noise.rate=0.4"], ["seed=3"],
                                   ["imbalance=longtail", "imbalance.factor=4"],
                                   ["dataset.val_fraction=0.3"]])  # fmt: skip
def test_runs_with_other_labels_seeds_and_splits_read_the_same_files(tiny, tmp_path, cache, other):
    teacher = tiny("method=ce", "student=resnet14", "recipe.epochs=1")
    common = ["method=kd", f"teacher.checkpoint={teacher.weights}", "recipe.batch_size=8"]
    assert cache(*common, "dataset.val_fraction=0") == 0
    computed = tiny(*common, *other, "teacher.cache=never")
    read = tiny(*common, *other, *READS)
    assert share_read(read) > 0.8
    assert outcome(read) == outcome(computed)
    assert len(list(tmp_path.glob("outputs/answers/*"))) == 1


def test_an_interrupted_filling_says_so_in_a_line_and_goes_on(tiny, cache, sizes, files, capsys):
    computed = tiny("method=kd", "teacher.cache=never")
    sizes.clear()
    sizes.limit = 12
    assert cache("method=kd") == 130
    printed = capsys.readouterr()
    assert printed.err.startswith("interrupted; the same command continues: kdbench cache ")
    assert printed.err.count("\n") == 1
    there = files().read(np.arange(720))[1].sum()
    assert 100 < there < 300
    sizes.limit = None
    sizes.clear()
    assert cache("method=kd") == 0
    assert len(sizes) == 4 + -(-(72 * 9 - there) // 16)
    assert files().read(np.arange(720))[1].sum() == 72 * 9
    assert outcome(tiny("method=kd", *READS)) == outcome(computed)


def test_two_at_once_fill_the_same_files(tiny, words, files):
    computed = tiny("method=kd", "teacher.cache=never")
    command = [sys.executable, "-m", "kdbench.cli", "cache", *words("method=kd")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert "all answers are there" in process.communicate()[0]
        assert process.returncode == 0
    assert files().read(np.arange(720))[1].sum() == 72 * 9
    assert outcome(tiny("method=kd", *READS)) == outcome(computed)


def test_filled_in_half_precision(tiny, tmp_path, cache):
    half = ["method=kd", "teacher.cache=always", "teacher.cache_rounding=float16"]
    computed = tiny(*half, "teacher.cache_gib=1e-6")
    assert cache(*half) == 0
    read = tiny(*half, "force=true")
    assert share_read(read) == 1
    assert outcome(read) == outcome(computed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=ce"], "method=ce learns from no teacher"),
        (["method=kd", "teacher.cache=never"], "teacher.cache=never is not possible here: auto or always"),
        (["method=kd", "recipe.mixup=0.2"], "recipe.mixup=0.2 is not possible: the views"),
        (["method=kd", "recipe.augment=randaugment"], "recipe.augment=randaugment is not possible"),
        (["method=kd", "dataset.loader=streaming"], "dataset.loader=streaming is not possible"),
        (["method=at"], "method=at reads stages of the teacher; only logits and embedding can be kept"),
        (["method=kd", "plus=[sp]"], "method=kd+sp reads logits and stages of the teacher"),
        (["method=kd", "teacher.cache_gib=1e-6"], "teacher.cache_gib=1e-06 allows less than the 0.0 MB"),
        (["method=kd", "teacher=resnet999"], "teacher=resnet999 is not known"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_a_line_before_a_teacher_is_trained(
    cache, capsys, tmp_path, overrides, message
):
    assert cache(*overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_teacher_whose_answers_depend_on_the_batch_is_refused(cache, monkeypatch, capsys):
    original = Teacher.forward

    def dependent(self, images):
        features = original(self, images)
        return features._replace(logits=features.logits + 1e-6 * images[0].mean())

    monkeypatch.setattr(Teacher, "forward", dependent)
    assert cache("method=kd") == 2
    assert "cache_rounding=exact is not possible" in (error := capsys.readouterr().err)
    assert "they depend, by rounding, on the other images of a batch" in error


def test_the_progress_is_shown_as_asked(words, monkeypatch, capsys):
    spec = spec_of(words("method=kd", "trainer.progress=lines"))
    show_messages()
    with fill_cache._progress(spec, "resnet14-0", 40) as advance:
        for _ in range(40):
            advance(1)
    assert capsys.readouterr().out.splitlines() == [f"resnet14-0  {tenth}0 %" for tenth in range(1, 11)]
    with fill_cache._progress(spec_of(words("method=kd", "trainer.progress=none")), "resnet14-0", 2) as advance:
        advance(2)
    assert capsys.readouterr().out == ""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(fill_cache, "console", terminal)
    with fill_cache._progress(spec_of(words("method=kd")), "resnet14-0", 4) as advance:
        advance(3)
        terminal.print("")  # draws the bar
    assert "resnet14-0" in screen.getvalue()
    assert "75%" in screen.getvalue()


def test_a_full_disk_is_a_line(cache, monkeypatch, capsys):
    def full(self, positions, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AnswerFile, "write", full)
    assert cache("method=kd") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the teacher's answers cannot be kept: [Errno 28] No space left on device")


def test_a_refusal_imports_no_torch():
    code = "import sys; from kdbench import cli; cli.main(['cache', 'method=ce']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
