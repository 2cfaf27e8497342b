"""Teacher files of other projects: read without running code, renamed to fit our networks, all others refused."""

import os
from argparse import Namespace
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from kdbench.errors import UserError
from kdbench.models import with_timm  # noqa: F401  registers the CIFAR networks with timm
from kdbench.records import teacher_files, weights


def network(name="resnet8", num_classes=4, in_chans=1):
    """A network in eval mode whose statistics and counters are those of some training."""
    net = timm.create_model(f"cifar_{name}", num_classes=num_classes, in_chans=in_chans)
    for _ in range(2):
        net(torch.rand(4, in_chans, 8, 8))
    return net.eval()


def outputs(net):
    torch.manual_seed(0)
    return net.eval()(torch.rand(2, 1, 8, 8)).detach()


@pytest.fixture(scope="module")
def trained():
    return network()


@pytest.fixture(scope="module")
def other():
    """A network of the same architecture with other weights."""
    return network()


@pytest.fixture
def loaded(tmp_path):
    """`loaded(content)`: what a file with this content gives a new network, and the notes on how it was read."""

    def loaded(content, name="resnet8", **options):
        path = tmp_path / "t.pth"
        torch.save(content, path, **options)
        return load(path, name)

    return loaded


def load(path, name="resnet8"):
    net = timm.create_model(f"cifar_{name}", num_classes=4, in_chans=1)
    notes = load_into(net, path)
    return outputs(net), notes


def load_into(net, path):
    state, notes = teacher_files.state_for(net, path, "teacher.checkpoint")
    weights.load_into(net, state, f"teacher.checkpoint={path}")
    return notes


@pytest.fixture
def refused(tmp_path):
    """`refused(content)`: the one line with which a file with this content is refused."""

    def refused(content, name="resnet8"):
        path = tmp_path / "t.pth"
        torch.save(content, path)
        with pytest.raises(UserError) as caught:
            load(path, name)
        assert "\n" not in str(caught.value)
        assert f"teacher.checkpoint={path}" in str(caught.value)
        return str(caught.value)

    return refused


def prefixed(prefix, net):
    return {prefix + key: value for key, value in net.state_dict().items()}


def without_counters(state):
    return OrderedDict((key, value) for key, value in state.items() if "num_batches_tracked" not in key)


def sgd(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def checkpoints(net, other):
    """Content by kind, the notes expected: as the projects' own training scripts write it."""
    state, options = net.state_dict(), Namespace(model="resnet8", lr=0.05, lr_decay_epochs=[150, 180, 210])
    distiller = {**prefixed("module.student.", net), **prefixed("module.teacher.", other)}
    distiller["module.conv_reg.conv.weight"] = torch.rand(3)
    accuracy = np.float64(72.34)
    others = len(state) + 1
    return {
        "state dict": (state, []),
        "RepDistiller last": (
            {"opt": options, "model": state, "optimizer": sgd(network())},
            ["read model"],
        ),
        "RepDistiller best": ({"epoch": 240, "model": state, "best_acc": accuracy}, ["read model"]),
        "numpy arrays": ({"model": state, "accuracies": np.arange(3.0), "n": np.int64(3)}, ["read model"]),
        "PyTorch 0.4": (
            {"epoch": 240, "model": without_counters(state), "accuracy": torch.tensor(72.3)},
            ["read model", "num_batches_tracked added"],
        ),
        "mdistiller student": ({"model": state}, ["read model"]),
        "mdistiller distiller": (
            {"epoch": 240, "model": distiller, "optimizer": sgd(network()), "best_acc": accuracy},
            ["read model", "prefix module.student. removed", f"other tensors left out: {others}"],
        ),
        "mdistiller distiller without DataParallel": (
            {"model": {key.removeprefix("module."): value for key, value in distiller.items()}},
            ["read model", "prefix student. removed", f"other tensors left out: {others}"],
        ),
        "DataParallel": (prefixed("module.", net), ["prefix module. removed"]),
        "net": ({"net": prefixed("module.", net), "acc": 72.3}, ["read net", "prefix module. removed"]),
        "compiled": (prefixed("net._orig_mod.", net), ["prefix net._orig_mod. removed"]),
        "prefix alone": (prefixed("student.", net), ["prefix student. removed"]),
        "teacher alone": (prefixed("teacher.", net), ["prefix teacher. removed"]),
        "all at once": (
            {"state_dict": without_counters(prefixed("model.module.", net)), "opt": options},
            ["read state_dict", "prefix model.module. removed", "num_batches_tracked added"],
        ),
    }


KINDS = list(checkpoints(network(), network()))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_the_field_load(kind, trained, other, loaded):
    content, notes = checkpoints(trained, other)[kind]
    result = loaded(content)
    assert torch.equal(result[0], outputs(trained))
    assert result[1] == notes


@pytest.mark.parametrize("kind", ["RepDistiller last", "RepDistiller best", "PyTorch 0.4"])
def test_the_older_file_format_loads_too(kind, trained, other, loaded):
    content, notes = checkpoints(trained, other)[kind]
    result = loaded(content, _use_new_zipfile_serialization=False)
    assert torch.equal(result[0], outputs(trained))
    assert result[1] == notes


def test_scalars_of_numpy_1_load(trained, tmp_path):
    path = tmp_path / "t.pth"
    torch.save({"model": trained.state_dict(), "best_acc": np.float64(7)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(load(path)[0], outputs(trained))


def test_safetensors_may_have_prefixes(trained, tmp_path):
    path = tmp_path / "t.safetensors"
    save_file(prefixed("module.", trained), path)
    result, notes = load(path)
    assert torch.equal(result, outputs(trained))
    assert notes == ["prefix module. removed"]


def test_a_checkpoint_of_lightning_loads(trained, tmp_path):
    class Module(pl.LightningModule):
        def __init__(self, lr, width, net):
            super().__init__()
            self.save_hyperparameters(ignore="net")
            self.net = net
            self.criterion = nn.CrossEntropyLoss(torch.ones(4))

        def training_step(self, images):
            return self.net(*images).sum()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.net.parameters(), 0.0, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])]

    path = tmp_path / "t.ckpt"
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ModelCheckpoint(tmp_path)],
    )  # fmt: skip
    images = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(2, 1, 8, 8)), 2)
    module = Module(0.1, Namespace(stem=np.float64(16)), trained)
    trainer.fit(module, images)
    trainer.save_checkpoint(path)
    result, notes = load(path)
    assert torch.equal(result, outputs(trained))
    assert notes == ["read state_dict", "prefix net. removed", "other tensors left out: 1"]


def test_a_checkpoint_of_timm_loads(trained, other, tmp_path):
    average = ModelEmaV3(trained)
    average.module.load_state_dict(other.state_dict())
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    options = Namespace(model="resnet8", opt="sgd", mean=(0.5,))
    saver = CheckpointSaver(trained, optimizer, options, average, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0, np.float64(72.3))
    result, notes = load(tmp_path / "last.pth.tar")
    assert torch.equal(result, outputs(trained))
    assert notes == ["read state_dict", "state_dict_ema left out"]


def test_of_a_distiller_the_student_is_taken_unless_only_the_teacher_fits(trained, loaded):
    large = network("resnet14")
    content = {"model": {**prefixed("module.student.", trained), **prefixed("module.teacher.", large)}}
    result, notes = loaded(content, "resnet14")
    assert torch.equal(result, outputs(large))
    assert notes[1] == "prefix module.teacher. removed"
    assert "module.student." in loaded(content)[1][1]


def test_the_shapes_decide_between_networks_of_the_same_names(loaded):
    narrow, wide = network("wrn_10_2"), timm.create_model("cifar_wrn_10_2", num_classes=4, in_chans=3).eval()
    content = {**prefixed("student.", wide), **prefixed("teacher.", narrow)}
    result, notes = loaded(content, "wrn_10_2")
    assert torch.equal(result, outputs(narrow))
    assert notes[0] == "prefix teacher. removed"


def mobilenetv2_of_repdistiller(state):
    """Our names in RepDistiller's: groups of 1, 2, 3, 4, 3, 3 and 1 blocks; the classifier in an `nn.Sequential`."""
    blocks = [f"blocks.{group}.{i}." for group, size in enumerate([1, 2, 3, 4, 3, 3, 1]) for i in range(size)]
    stages = [f"stage{stage}.{i}." for stage, size in ((1, 3), (2, 3), (3, 7), (4, 4)) for i in range(size)]
    names = {**dict(zip(stages, blocks, strict=True)), "classifier.": "classifier.0."}

    def theirs(key):
        ours = next((prefix for prefix in names if key.startswith(prefix)), None)
        return names[ours] + key.removeprefix(ours) if ours else key

    return {theirs(key): value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.student."])
def test_mobilenetv2_of_repdistiller_and_mdistiller_loads(prefix, loaded):
    net = network("mobilenetv2")
    theirs = mobilenetv2_of_repdistiller(net.state_dict())
    assert {"blocks.0.0.conv.0.weight", "blocks.6.0.conv.7.running_mean", "classifier.0.bias"} <= theirs.keys()
    result, notes = loaded({"model": {prefix + key: value for key, value in theirs.items()}}, "mobilenetv2")
    assert torch.equal(result, outputs(net))
    assert notes[-1] == "blocks of MobileNetV2 renamed"
    theirs["blocks.0.1.conv.0.weight"] = theirs["blocks.1.0.conv.0.weight"]  # one of our names twice
    with pytest.raises(UserError, match="belongs to another network"):
        loaded(theirs, "mobilenetv2")


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["beside", "in options", "in an array", "inside"])
def test_code_beside_the_weights_is_refused_and_never_run(place, legacy, trained, tmp_path):
    victim = tmp_path / "victim"
    attack = Runs(os.mkdir, str(victim))
    array = np.empty(1, dtype=object)
    array[0] = attack
    content = {
        "beside": {"model": trained.state_dict(), "epoch": attack},
        "in options": {"model": trained.state_dict(), "opt": Namespace(lr=attack)},
        "in an array": {"model": trained.state_dict(), "best_acc": array},
        "inside": {**trained.state_dict(), "fc.bias": attack},
    }[place]
    path = tmp_path / "t.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"could run code") as caught:
        load(path)
    assert "mkdir" in str(caught.value)
    assert not victim.exists()


def test_reading_allows_nothing_to_others(trained, loaded):
    before = torch.serialization.get_safe_globals()
    loaded({"model": trained.state_dict(), "opt": Namespace(lr=1), "best_acc": np.float64(7)})
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_anything_else_in_the_pickle_is_named(trained, refused):
    assert "fractions.Fraction" in refused({"model": trained.state_dict(), "lr": Runs(Fraction, 1, 2)})


def test_nothing_but_counters_may_be_missing(trained, refused):
    for name in ("bn1.running_mean", "layer1.0.bn1.bias", "fc.bias"):
        state = without_counters(trained.state_dict())
        del state[name]
        assert f"belongs to another network: it lacks {name} (1 missing, 0 foreign)" in refused(state)
    assert "has layer4.bn.num_batches_tracked besides" in refused(
        {**trained.state_dict(), "layer4.bn.num_batches_tracked": torch.tensor(0)}
    )


def test_a_buffer_of_that_name_elsewhere_may_not_be_missing(trained, tmp_path):
    net = timm.create_model("cifar_resnet8", num_classes=4, in_chans=1)
    net.layer1.register_buffer("num_batches_tracked", torch.tensor(0))
    path = tmp_path / "t.pth"
    torch.save(trained.state_dict(), path)
    with pytest.raises(UserError, match=r"lacks layer1\.num_batches_tracked"):
        load_into(net, path)


def test_added_counters_are_zero_and_others_are_kept(trained, tmp_path):
    state = dict(trained.state_dict())
    del state["bn1.num_batches_tracked"]
    torch.save(state, tmp_path / "t.pth")
    net = timm.create_model("cifar_resnet8", num_classes=4, in_chans=1)
    assert load_into(net, tmp_path / "t.pth") == ["num_batches_tracked added"]
    assert net.bn1.num_batches_tracked == 0
    assert net.layer1[0].bn1.num_batches_tracked == 2


def test_other_classes_and_other_networks_are_refused_through_any_wrapper(trained, other, refused):
    many = network(num_classes=6)
    assert "has 6 classes, but the data set has 4" in refused({"model": prefixed("module.student.", many)})
    assert "belongs to another network" in refused({"state_dict": prefixed("model.", trained)}, "resnet14")
    assert "holds no state dict" in refused({"model": {}})
    assert "holds no state dict" in refused({"model": [1, 2], "opt": Namespace()})
    assert "holds no state dict" in refused({3: torch.zeros(1)})


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"PK\x03\x04" + bytes(90), b"\x80\x02}q\x00.", b"\x80\x02" + bytes(30)]
)
def test_broken_files_are_refused_in_one_line(data, tmp_path):
    path = tmp_path / "t.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^teacher\.checkpoint=\S+ (is refused|holds no state dict)[^\n]*$"):
        load(path)


def test_safetensors_are_written_and_read(trained, tmp_path):
    path = tmp_path / "t.safetensors"
    weights.save(path, trained.state_dict(), {"name": "resnet8"})
    assert load(path)[1] == []
    state = weights.read(path, "teacher")
    assert all(torch.equal(value, state[key]) for key, value in trained.state_dict().items())
    path.write_bytes(b"hello")
    with pytest.raises(SafetensorError):
        weights.read(path, "teacher")
