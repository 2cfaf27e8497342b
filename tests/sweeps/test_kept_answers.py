"""What the plan says of the teachers' answers: their size, how much is there, and nothing where none are kept."""

import numpy as np
import pytest

from kdbench.records.answer_file import AnswerFile
from kdbench.sweeps import grid, plan
from kdbench.sweeps.estimates import Estimates
from kdbench.sweeps.kept_answers import KeptAnswers

ROWS, ROW = 80 * 9, 4 * 4 + 8  # views of all images; bytes of four float32 and a checksum


@pytest.fixture
def said(words):
    """`said(*overrides)`: what the summary says of answers."""

    def of(*overrides):
        rows = plan.rows_of(grid.read(words(*overrides)), Estimates())
        return [line for line in plan.summary(rows).splitlines() if line.startswith("teachers' answers")]

    return of


def test_the_size_is_that_of_the_file_and_what_is_there_is_seen(said, tiny, tmp_path):
    (line,) = said("method=kd,rkd", "teacher.cache=always", "seed=1,2")
    assert line.startswith(f"teachers' answers: up to 0.0 MB of logits in {tmp_path}/outputs/answers (0 % of those to ")
    tiny("method=kd", "teacher.cache=always", "teacher.recipe.epochs=3", "recipe.epochs=6")
    (path,) = tmp_path.glob("outputs/answers/*/logits.f32")
    assert path.stat().st_size == ROWS * ROW
    file = AnswerFile(path, ROWS, 4, "float32")
    there = file.read(np.arange(ROWS))[1].mean()
    assert 0.2 < there < 0.7
    (line,) = said("method=kd,rkd", "seed=1,2")
    assert f"({100 * there:.0f} % of those to all training and validation images are there)" in line


def test_each_teacher_counts_once(words):
    rows = plan.rows_of(grid.read(words("method=kd,skd", "teacher=resnet14,resnet20", "seed=0,1")), Estimates())
    kept = [row["answers"] for row in rows if row["answers"]]
    assert len(kept) == 8
    assert {each["size"] for each in kept} == {ROWS * ROW}
    assert len({each["key"] for each in kept}) == 2
    assert "up to 0.0 MB of logits" in plan.summary(rows)


@pytest.mark.parametrize(
    ("epochs", "size"), [(1, None), (3, ROWS * ROW)], ids=["a view seldom comes twice", "views come again"]
)
def test_auto_counts_only_what_pays(words, epochs, size):
    (job,) = grid.read(words("method=kd", f"recipe.epochs={epochs}")).tasks
    kept = KeptAnswers().of(job.spec)
    assert (kept and kept.size) == size


@pytest.mark.parametrize("overrides", [["method=ce"], ["teacher.cache=never"], ["teacher.cache_gib=1e-6"],
                                       ["recipe.cutmix=1"], ["recipe.augment=randaugment"], ["recipe.erasing=0.5"],
                                       ["dataset.loader=streaming"]])  # fmt: skip
def test_nothing_is_said_where_nothing_is_kept(said, overrides):
    assert said("method=kd", "teacher.cache=always") != []
    if overrides[0].startswith("teacher.cache="):
        assert said("method=kd", *overrides) == []
    else:
        assert said("method=kd", "teacher.cache=always", *overrides) == []


def test_half_precision_takes_half(words):
    half = ["teacher.cache=always", "teacher.cache_rounding=float16"]
    (job,) = grid.read(words("method=kd", *half)).tasks
    assert KeptAnswers().of(job.spec).size == ROWS * (4 * 2 + 8)


def test_finished_jobs_need_no_answers(said, tiny):
    tiny("method=kd", "teacher.cache=always")
    assert said("method=kd", "teacher.cache=always") == []
