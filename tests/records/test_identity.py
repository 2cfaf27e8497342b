"""Identity, directory, lock and status of a run."""

import copy
import json
import multiprocessing
import time

import pytest

from kdbench.config import composed
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from kdbench.run import Run, identify


def identity(*overrides, teacher="t", fingerprint=None, **files):
    cfg = from_overrides(list(overrides))
    return identify(cfg, fingerprint=fingerprint, teacher=teacher, **files)


@pytest.mark.parametrize(
    "override",
    ["outputs=/elsewhere", "dataset.root=/data", "dataset.download=true", "dataset.workers=1", "logger=csv",
     "force=true", "trainer.device=cpu", "trainer.compile=true", "trainer.progress=none",
     "trainer.checkpoint_seconds=3", "teacher.min_accuracy=0.5", "noise.clean_validation=true"],
)  # fmt: skip
def test_what_does_not_change_the_result_does_not_change_the_id(override):
    assert identity(override) == identity()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "method=ce", "method.alpha=0.5", "plus=[kd]", "student=resnet14", "dataset=mnist5k",
     "dataset.val_fraction=0", "noise=symmetric", "recipe.lr=0.1", "imbalance=step",
     "trainer.precision=bf16-mixed", "debug=smoke"],
)  # fmt: skip
def test_what_changes_the_result_changes_the_id(override):
    assert identity(override).id != identity().id


def test_teacher_and_image_tree_are_part_of_the_id():
    assert len({identity().id, identity(teacher="u").id, identity(fingerprint="f").id}) == 3


def test_a_teachers_file_and_how_it_is_used_are_part_of_the_id(tmp_path):
    def run_id(content, *words):
        (tmp_path / "t.pth").write_text(content)
        return spec_of(([f"teacher.checkpoint={tmp_path}/t.pth", *words])[0]).id

    once = run_id("a")
    assert run_id("a") == once
    others = [
        run_id("b"),
        run_id("a", "teacher.mean=[0.1]"),
        run_id("a", "teacher.std=[0.1]"),
        run_id("a", "teacher=resnet32"),
    ]
    assert len({once, *others}) == 5


def test_id_is_stable_and_the_name_readable():
    one = identity("method=kd", "noise=symmetric", "seed=3")
    assert one.name == "kd-resnet20-resnet8-digits-symmetric0.4-s3"
    assert one.id == identity("method=kd", "noise=symmetric", "seed=3").id
    assert identity("method=ce", teacher=None).name == "ce-resnet8-digits-s0"
    assert len(one.id) == 12


def test_a_setting_is_all_but_the_seed():
    assert identity("seed=0").setting == identity("seed=1").setting
    words = ["method.temperature=2", "recipe.epochs=3", "dataset.val_fraction=0", "method=at", "noise=symmetric"]
    words += ["student.name=resnet14", "trainer.precision=bf16-mixed"]
    different = [identity(), identity(teacher="u"), *map(identity, words)]
    assert len({one.setting for one in different}) == len(different)
    name, _, tail = identity("seed=7").setting.rpartition("-")
    assert name == "kd-resnet20-resnet8-digits"
    assert len(tail) == 8


def test_names_tell_settings_of_noise_and_imbalance_apart():
    def middle(*words):
        return identity(*words, "seed=3").name.removeprefix("kd-resnet20-resnet8-digits-").removesuffix("s3")

    assert middle("noise=pairflip", "noise.rate=0.2", "imbalance=longtail") == "pairflip0.2-longtail100-"
    assert middle("noise=symmetric", "noise.rate=0") == ""
    assert middle("noise=human", "imbalance=power_law") == "human_worst-power_law0.2-"
    assert middle("noise=file", "imbalance=counts") == "file-counts-"
    assert middle("noise=asymmetric", "noise.rate=null", "noise.matrix=m.npy") == "asymmetric-"


def test_a_file_of_labels_counts_by_its_content(tmp_path):
    def run_id(content, name="labels.npy"):
        (tmp_path / name).write_text(content)
        run = spec_of((["noise=file", f"noise.path={tmp_path / name}"])[0])
        assert str(tmp_path) not in json.dumps(run.identity.facts)
        return run.id

    assert run_id("a") == run_id("a", "same.npy") != run_id("b")
    assert identity("noise=symmetric", "noise.clean_validation=true").id != identity("noise=symmetric").id
    with pytest.raises(UserError, match=r"noise\.path=absent\.npy: cannot be read"):
        spec_of((["noise=file", "noise.path=absent.npy"])[0])


def test_facts_are_plain_json_without_paths():
    facts = identity("dataset.root=/secret").facts
    assert "/secret" not in json.dumps(facts)


@pytest.fixture
def run(tmp_path):
    return Run(identity(), tmp_path)


def status(run):
    return json.loads((run.directory / "status.json").read_text())


def test_status_tells_how_it_ended(run):
    with run.claimed():
        with run.recorded({"a": 1}):
            assert status(run)["state"] == "running"
        assert status(run)["state"] == "finished"
        with pytest.raises(ZeroDivisionError), run.recorded({"a": 1}):
            _ = 1 / 0
        assert (status(run)["state"], status(run)["reason"]) == ("failed", "ZeroDivisionError: division by zero")
        assert "Traceback" in (run.directory / "train.log").read_text()
        with pytest.raises(KeyboardInterrupt), run.recorded({"a": 1}):
            raise KeyboardInterrupt
        assert status(run)["state"] == "interrupted"


def test_force_keeps_the_old_record(run):
    with run.claimed():
        with run.recorded({"a": 1}):
            pass
        run.set_aside()
        assert not (run.directory / "status.json").exists()
        (old,) = (run.directory / "previous").iterdir()
        assert (old / "status.json").exists()
        assert run.checkpoints.is_dir()
        with run.recorded({"a": 1}):
            pass
        run.set_aside()  # within the same second
        assert len(list((run.directory / "previous").glob("*/status.json"))) == 2


def _hold(run, started, seconds):
    with run.claimed():
        started.set()
        time.sleep(seconds)


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_and_a_dead_owners_lock_is_free(run, killed):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    owner = context.Process(target=_hold, args=(copy.copy(run), started, 60 if killed else 1.5))
    owner.start()
    started.wait(60)
    if killed:
        owner.kill()
    before = time.monotonic()
    with run.claimed():
        waited = time.monotonic() - before
    owner.join()
    assert waited < 10
    assert killed or waited > 0.5


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Run(identity(), tmp_path / "file").claimed():
        pass
