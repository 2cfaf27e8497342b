"""DML and ONE as a whole: which loss trains which network, and what a prediction is."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import UserError
from tests.helpers.methods import COLOUR, Loader, batch_of, fit, method_of, total

# ------------------------------------------------------------------------------------------------ DML


def train_by_hand(networks, alternating, lr, weight_decay=5e-4):
    """Two epochs of mutual learning, as in algorithm 1 of the paper or with all predictions made before any update."""
    optimizers = [torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=weight_decay) for net in networks]
    count = len(networks)
    for _ in range(2):
        for images, labels, *_ in Loader():
            logits = [net(images).logits for net in networks]
            targets = [z.detach() for z in logits]
            for k, (net, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
                q = logits[k].log_softmax(1)
                mutual = sum(
                    (p.softmax(1) * (p.log_softmax(1) - q)).sum(1).mean() for j, p in enumerate(targets) if j != k
                )
                optimizer.zero_grad()
                (F.cross_entropy(logits[k], labels) + mutual / (count - 1)).backward()
                optimizer.step()
                if alternating and k < count - 1:
                    targets[k] = net(images).logits.detach()


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
@pytest.mark.parametrize("peers", ["[resnet8]", "[resnet14,wrn_10_2]"])
def test_dml_is_the_loop_written_by_hand(updates, peers, monkeypatch):
    # all in float64: in float32, the rounding errors of six steps with batches of 8 grow to 1e-4
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    monkeypatch.setattr(Loader, "__iter__", lambda _: (batch_of(seed=i, dtype=torch.float64) for i in range(3)))
    options = [f"method.peers={peers}", f"method.updates={updates}", "recipe.schedule=constant", "recipe.lr=0.01"]
    method = method_of("dml", *options).double()
    networks = copy.deepcopy([method.student, *method.peers])
    fit(method)
    train_by_hand(networks, updates == "alternating", lr=0.01)
    for trained, expected in zip([method.student, *method.peers], networks, strict=True):
        for a, b in zip(trained.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_dml_peers_start_differently_and_never_move_each_other():
    method = method_of("dml")
    student, peer = method.student, method.peers[0]
    assert not torch.equal(next(student.parameters()), next(peer.parameters()))
    updates = method.updates()
    total(updates[0].losses(batch_of())).backward()
    assert all(p.grad is None for p in peer.parameters())
    assert all(p.grad is not None for p in student.parameters())
    method.zero_grad()
    total(updates[1].losses(batch_of())).backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in peer.parameters())


def test_dml_schedules_drop_for_every_peer():
    method = method_of("dml", "recipe.epochs=8", "recipe.lr=0.01")  # drops at 5, 6 and 7
    trainer = fit(method)
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0.01e-3] * 2)


def test_dml_needs_another_peer():
    with pytest.raises(UserError, match=r"peers=\[\]"):
        method_of("dml", "method.peers=[]")


def test_dml_ensemble_is_the_mean_probability():
    method = method_of("dml", "method.peers=[resnet8,resnet14]").eval()
    logits = method.predictions(batch_of().images)
    assert list(logits) == ["student", "peer1", "peer2", "ensemble"]
    mean = sum(logits[name].softmax(1) for name in list(logits)[:3]) / 3
    torch.testing.assert_close(logits["ensemble"].softmax(1), mean)


# ------------------------------------------------------------------------------------------------ ONE


# one of each class of networks that have a stem, and the ResNets with the wide stem
@pytest.mark.parametrize("name", ["resnet14", "resnet8x4", "resnet50", "wrn_16_2", "vgg13", "lenet5"])
def test_one_splits_every_kind_of_resnet_wrn_vgg_and_lenet(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not support the meta device
    with torch.device("meta"):
        method = method_of("one", f"student={name}", sizes=COLOUR)
        logits = method.eval().predictions(torch.rand(2, 3, 32, 32))
    assert {key: tuple(z.shape) for key, z in logits.items()} == dict.fromkeys(
        ["student", "branch1", "branch2", "ensemble"], (2, 4)
    )
    student, gate, branch = (
        sum(p.numel() for p in module.parameters()) for module in (method.student, method.gate, method.branches[0])
    )
    assert 0 < branch < student
    assert method.extra_parameters() == 2 * branch + gate
    assert method.export().keys() == method.student.net.state_dict().keys()


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv1"])
def test_one_names_the_families_that_it_can_split(name):
    with pytest.raises(UserError, match="ResNet, WRN, VGG and LeNet"), torch.device("meta"):
        method_of("one", f"student={name}", sizes=COLOUR)


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_2", "vgg8", "lenet5"])
def test_a_branch_computes_what_the_whole_network_would(name):
    method = method_of("one", f"student={name}", sizes=COLOUR).eval()
    branch = method.branches[0]
    with torch.no_grad():  # give the branch the student's weights
        state = method.student.net.state_dict()
        branch.load_state_dict({key: state[key] for key in branch.state_dict()})
        logits = method.predictions(torch.rand(2, 3, 32, 32))
    assert torch.equal(logits["student"], logits["branch1"])
    assert not torch.equal(logits["student"], logits["branch2"])


def reached_by(method, name):
    """The parts that get a gradient from a loss: the shared trunk, the branches, the gate."""
    method.zero_grad()
    method.batch_losses(batch_of())[name].backward()

    def reached(*modules):
        return any(p.grad is not None and p.grad.abs().sum() > 0 for module in modules for p in module.parameters())

    net = method.student.net
    return {
        "trunk": reached(net.conv1, net.layer1, net.layer2),
        "branch0": reached(net.layer3, net.fc),
        "others": reached(*method.branches),
        "gate": reached(method.gate),
    }


def test_one_gradients_go_where_the_paper_says():
    method = method_of("one")
    assert reached_by(method, "ce") == {"trunk": True, "branch0": True, "others": False, "gate": False}
    assert reached_by(method, "branches_ce") == {"trunk": True, "branch0": False, "others": True, "gate": False}
    assert reached_by(method, "ensemble_ce") == {"trunk": True, "branch0": True, "others": True, "gate": True}
    assert reached_by(method, "one") == {"trunk": True, "branch0": True, "others": True, "gate": False}


def test_one_losses_are_those_of_the_paper():
    method, batch = method_of("one", "method.ramp=0.0"), batch_of()
    losses = {key: value.item() for key, value in method.batch_losses(batch).items()}
    logits, shared = method.split(method.student(batch.images))
    gate = method.gate(shared)
    ensemble = sum(gate[:, [i]] * z for i, z in enumerate(logits))
    cross_entropies = [F.cross_entropy(z, batch.labels).item() for z in logits]
    p = (ensemble / 3).softmax(1)
    consistency = sum(9 * (p * (p.log() - (z / 3).softmax(1).log())).sum(1).mean() for z in logits)
    assert losses == pytest.approx({
        "ce": cross_entropies[0], "branches_ce": cross_entropies[1] + cross_entropies[2],
        "ensemble_ce": F.cross_entropy(ensemble, batch.labels).item(), "one": consistency.item(),
    }, rel=1e-5)  # fmt: skip


def test_one_ramps_over_a_fraction_of_the_training():
    method, batch = method_of("one", "recipe.epochs=300"), batch_of()
    method.student.eval()
    values = []
    for epoch in (0, 40, 80, 299):
        method.enter_epoch(epoch)
        values.append(method.batch_losses(batch)["one"].item())
    assert [value / values[-1] for value in values] == pytest.approx([0.00674, 0.28650, 1, 1], rel=1e-3)


def test_one_last_norm_is_own_or_shared():
    own, shared = (method_of("one", "student=wrn_10_2", f"method.last_norm={norm}") for norm in ("own", "shared"))
    assert own.branches[0].bn1 is not own.student.net.bn1
    assert all(branch.bn1 is shared.student.net.bn1 for branch in shared.branches)
    assert own.extra_parameters() - shared.extra_parameters() == 2 * 2 * 128
    shared.training_step(batch_of(), 0).backward()
    with pytest.raises(UserError, match="last_norm=shared"):
        method_of("one", "student=resnet8", "method.last_norm=shared")


@pytest.mark.parametrize("name", ["one", "dml"])
def test_the_student_of_an_online_method_is_initialised_as_any_other(name):
    # the same command with another method starts from the same student
    expected, state = method_of("ce").student.state_dict(), method_of(name).student.state_dict()
    assert all(torch.equal(expected[key], state[key]) for key in expected)
