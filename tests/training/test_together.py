"""Runs of one teacher that are trained together: bit for bit what each would be alone."""

import os
import signal

import pytest

from kdbench.methods.machinery.frozen import Teacher
from kdbench.records import weights
from kdbench.records.record import Record
from kdbench.specs.resolve import spec_of
from kdbench.sweeps.groups import companions, group_of
from kdbench.training import memory, signals
from kdbench.training.callbacks import History
from kdbench.training.conduct import conduct
from kdbench.training.together import Postponed, conduct_together
from tests.helpers.tiny import LIGHT, TINY, launch, same

SHORT = ["recipe.epochs=2", "trainer.progress=none", "logger=csv"]
METHODS = [
    ["method=kd"], ["method=at"], ["method=bss"], ["method=fitnet", "method.training=staged"], ["method=fsp"],
    ["method=rkd"], ["method=rkd_a"], ["method=rkd_d"], ["method=sp"], ["method=skd", "teacher.shuffle=class"],
    ["method=ce", "plus=[kd,at]"], ["method=dml", "plus=[kd]"], ["method=one", "plus=[sp]"],
    ["method=lwkd", *LIGHT, "plus=[rkd]"], ["method=tfkd_reg", "plus=[skd]"], ["method=ls", "plus=[fitnet]",
     "plus.fitnet.training=joint"],
]  # fmt: skip


def specs_of(folder, overrides, methods):
    return [spec_of([*TINY, *SHORT, f"outputs={folder}", *overrides, *method]) for method in methods]


def outcome(record):
    """Everything of a run that must not depend on whether others were trained beside it."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in record.epochs]
    result = {key: value for key, value in same(record.finished).items() if key != "weights_sha256"}
    tensors = {key: value.numpy().tobytes() for key, value in weights.read(record.weights, "").items()}
    return result, rows, tensors


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.cache=never"],
        ["teacher.cache=always"],
        ["teacher.cache=always", "teacher.cache_rounding=float16"],
        ["recipe.ema=0.9", "recipe.accumulate=2", "noise=symmetric", "noise.rate=0.4", "dataset.loader=streaming",
         "dataset.workers=0"],
    ],
    ids=["computed", "kept", "rounded", "streaming"],
)  # fmt: skip
def test_every_method_gives_the_same_run_together_and_alone(tmp_path, overrides):
    methods = METHODS
    if "recipe.accumulate=2" in overrides:  # methods with several optimisers refuse it
        methods = [method for method in METHODS if method[0] not in ("method=dml", "method=lwkd")]
    together = specs_of(tmp_path / "together", overrides, methods)
    assert conduct_together(together) == [None] * len(methods)
    for spec, alone in zip(together, specs_of(tmp_path / "alone", overrides, methods), strict=True):
        assert outcome(conduct(alone)) == outcome(spec.record), spec.name
        assert spec.record.finished["cost"]["trained_together"] == len(methods)
        assert alone.record.finished["cost"]["trained_together"] == 1
        assert len(list(spec.directory.rglob("metrics.csv"))) == 1
        assert {line.split()[3].strip(":") for line in spec.record.log.read_text().splitlines() if "epoch" in line} <= {
            spec.name
        }


def test_the_teacher_answers_each_batch_once(tmp_path, monkeypatch):
    sizes, original = [], Teacher.forward

    def counted(self, images):
        sizes.append(len(images))
        return original(self, images)

    specs = specs_of(tmp_path, ["teacher.cache=never"], [["method=kd"], ["method=at"], ["method=rkd"], ["method=sp"]])
    conduct(specs[0].dependencies["teacher"])
    monkeypatch.setattr(Teacher, "forward", counted)
    conduct_together(specs)
    assert sizes.count(16) == 2 * (72 // 16)
    assert set(sizes) == {16, 40}  # training, and the test set of each run


def test_one_that_fails_leaves_the_others_as_they_were(tmp_path):
    methods = [["method=kd"], ["method=at", "method.weight=1e38"], ["method=sp"]]
    together = specs_of(tmp_path / "together", [], methods)
    failures = conduct_together(together)
    assert [failure is None for failure in failures] == [True, False, True]
    assert "is not finite" in str(failures[1])
    assert [spec.record.state for spec in together] == ["finished", "failed", "finished"]
    assert "NonFiniteLoss" in together[1].record.log.read_text()
    for number in (0, 2):
        (alone,) = specs_of(tmp_path / "alone", [], [methods[number]])
        assert outcome(conduct(alone)) == outcome(together[number].record)


@pytest.fixture
def interrupted_after(monkeypatch):
    """`interrupted_after(name, epoch)`: Ctrl-C when a run whose name begins so has finished this epoch."""

    def patch(name, epoch):
        signals.listen()
        original = History.on_train_epoch_end

        def end(self, trainer, module):
            original(self, trainer, module)
            if self.writer.record.name.startswith(name) and trainer.current_epoch == epoch:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(History, "on_train_epoch_end", end)

    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield patch
    for number, handler in before:
        signal.signal(number, handler)
    signals._arrived.clear()


@pytest.mark.parametrize("continued", ["alone", "together"])
def test_an_interrupt_ends_all_and_each_continues_to_the_same_bits(tmp_path, interrupted_after, monkeypatch, continued):
    methods, long = [["method=kd"], ["method=at"], ["method=rkd"]], ["recipe.epochs=4"]
    together = specs_of(tmp_path / "together", long, methods)
    conduct(together[0].dependencies["teacher"])
    interrupted_after("at-", 1)
    with pytest.raises(KeyboardInterrupt):
        conduct_together(together)
    signals._arrived.clear()  # a process ends after an interrupt, but this one goes on
    assert [Record(spec.directory).state for spec in together] == ["interrupted"] * 3
    assert [Record(spec.directory).status["reason"] for spec in together] == ["KeyboardInterrupt"] * 3
    monkeypatch.undo()
    if continued == "together":
        assert conduct_together(together) == [None] * 3
    for spec, alone in zip(together, specs_of(tmp_path / "alone", long, methods), strict=True):
        assert outcome(conduct(spec)) == outcome(conduct(alone))


def test_one_that_is_behind_catches_up(tmp_path, interrupted_after, monkeypatch):
    methods, long = [["method=kd"], ["method=at"], ["method=sp"]], ["recipe.epochs=3"]
    together = specs_of(tmp_path / "together", long, methods)
    conduct(together[0].dependencies["teacher"])
    interrupted_after("at-", 1)
    with pytest.raises(KeyboardInterrupt):
        conduct(together[1])
    signals._arrived.clear()
    monkeypatch.undo()
    assert conduct_together(together) == [None] * 3
    for spec, alone in zip(together, specs_of(tmp_path / "alone", long, methods), strict=True):
        assert outcome(conduct(alone)) == outcome(spec.record)


def test_a_run_without_memory_beside_the_others_is_postponed(tmp_path, monkeypatch):
    shares = iter([0.5, 0.1])  # the first run is not asked
    monkeypatch.setattr(memory, "free_share", lambda _: next(shares))
    specs = specs_of(tmp_path, [], [["method=kd"], ["method=at"], ["method=sp"]])
    outcomes = conduct_together(specs)
    assert [type(outcome) for outcome in outcomes].count(Postponed) == 1
    states = [spec.record.state for spec in specs]
    assert sorted(states) == ["finished", "finished", "new"]
    assert isinstance(outcomes[states.index("new")], Postponed)


def test_a_run_that_is_done_or_impossible_is_no_hindrance(tmp_path):
    done, other = specs_of(tmp_path, [], [["method=kd"], ["method=at"]])
    conduct(done)
    (impossible,) = specs_of(tmp_path, ["student=lenet5"], [["method=fitnet"]])
    outcomes = conduct_together([done, impossible, other])
    assert outcomes[0] is outcomes[2] is None
    assert "fitnet" in str(outcomes[1])
    assert other.record.state == "finished"


@pytest.mark.parametrize("overrides", [["seed=1"], ["teacher=resnet20"], ["teacher.seed=1"], ["recipe.batch_size=8"],
                                       ["noise=symmetric", "noise.rate=0.2", "teacher.condition=clean"],
                                       ["imbalance=step", "teacher.condition=clean"], ["recipe.cutout=2"],
                                       ["trainer.precision=bf16-mixed"], ["dataset.crop_padding=2"],
                                       ["teacher.cache=never"]])  # fmt: skip
def test_runs_with_other_batches_or_another_teacher_are_not_of_one_group(tmp_path, overrides):
    (one,) = specs_of(tmp_path, [], [["method=kd"]])
    (other,) = specs_of(tmp_path, overrides, [["method=kd"]])
    assert group_of(one) != group_of(other)


def test_what_groups_share_and_who_is_alone(tmp_path):
    one, *others = specs_of(
        tmp_path,
        [],
        [
            ["method=kd"],
            ["method=at"],
            ["student=wrn_16_1"],
            ["teacher.shuffle=batch"],
            ["recipe.ema=0.9", "teacher.recipe.ema=null"],
        ],
    )
    assert {group_of(other) for other in others} == {group_of(one)}
    alone = specs_of(tmp_path, [], [["method=ce"], ["method=dml"], ["method=kd", "trainer.deterministic=true"]])
    assert [group_of(spec) for spec in alone] == [None] * 3


def test_jobs_are_grouped_up_to_the_limit(tmp_path):
    class Job:
        def __init__(self, spec):
            self.spec = spec

    def jobs(together):
        specs = specs_of(tmp_path, [f"trainer.together={together}"], [[f"method.alpha={n / 20}"] for n in range(12)])
        return [Job(spec) for spec in specs]

    for together, expected in (("1", 1), ("3", 3), ("null", 8)):
        first, *others = jobs(together)
        assert companions(first, others) == [first, *others[: expected - 1]]


def sweep(tmp_path, *overrides):
    process = launch(["-m", *TINY, *SHORT, f"outputs={tmp_path}/sweep", *overrides, "trainer.together=null"])
    output = process.communicate(timeout=250)[0]
    return process.returncode, output


def test_a_sweep_trains_its_jobs_in_groups(tmp_path):
    code, output = sweep(tmp_path, "method=kd,rkd,ce", "recipe.lr=0.05,1e38", "teacher.recipe.lr=0.05")
    print(output)
    assert code == 1
    assert "3 of 6 jobs failed" in output
    records = [Record(path) for path in sorted((tmp_path / "sweep" / "runs").iterdir())]
    finished = [record.finished["cost"]["trained_together"] for record in records if record.state == "finished"]
    assert sorted(finished) == [1, 1, 4, 4]  # the teacher, ce; kd and rkd with both learning rates
    assert "job 1/6" in output


def test_other_launchers_are_refused(tmp_path):
    code, output = sweep(tmp_path, "method=kd,at", "hydra/launcher=joblib")
    assert code == 2
    assert "trainer.together is not possible with this launcher, only 1: use hydra/launcher=basic" in output
    assert not (tmp_path / "sweep" / "runs").exists()


@pytest.mark.slow
def test_a_group_that_is_killed_continues_to_the_same_bits(tmp_path):
    words = ["method=kd,at,rkd", "recipe.epochs=30", "teacher.recipe.epochs=2"]
    whole = ["-m", *TINY, *SHORT, f"outputs={tmp_path}/whole", *words]
    assert launch(whole).wait() == 0
    for _ in range(3):
        process = launch(["-m", *TINY, *SHORT, f"outputs={tmp_path}/sweep", *words, "trainer.together=null"])
        with pytest.raises(Exception):  # noqa: B017, PT011
            process.wait(20)
        process.kill()
        process.wait()
    code, _ = sweep(tmp_path, *words)
    assert code == 0
    for path in (tmp_path / "whole" / "runs").iterdir():
        assert outcome(Record(path)) == outcome(Record(tmp_path / "sweep" / "runs" / path.name))
