"""DML and ONE as wholes: who is updated by what, what is recorded, what one network costs."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from kdbench.config import composed
from kdbench.errors import UserError
from kdbench.models.build import build
from kdbench.config.networks import NETWORKS
from tests.helpers.methods import SIZES, Loader, batch_of, fit, get_class, method_of


def online(name, student="resnet8", sizes=SIZES, epochs=2, **changes):
    cfg = from_overrides([f"method={name}", f"student={student}", f"recipe.epochs={epochs}", "recipe.lr=0.01"])
    own = {k: v for k, v in cfg["method"].items() if k not in ("name", "needs", "_target_")} | changes

    def another(other, number):
        torch.manual_seed(number)
        return build(other or student, **sizes)

    return get_class(cfg["method"]["_target_"])(**own).attach(another(None, 0), None, None, cfg["recipe"], another)


# ------------------------------------------------------------------------------------------------ DML


def by_hand(networks, alternating, weight_decay=5e-4, lr=0.01):
    """Two epochs of mutual learning, as the paper's algorithm 1 or with predictions made before all updates."""
    optimizers = [torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=weight_decay) for net in networks]
    count = len(networks)
    for _ in range(2):
        for images, labels, _ in Loader():
            logits = [net(images).logits for net in networks]
            seen = [z.detach() for z in logits]
            for k, (net, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
                q = logits[k].log_softmax(1)
                mutual = sum(
                    (p.softmax(1) * (p.log_softmax(1) - q)).sum(1).mean() for j, p in enumerate(seen) if j != k
                )
                optimizer.zero_grad()
                (F.cross_entropy(logits[k], labels) + mutual / (count - 1)).backward()
                optimizer.step()
                if alternating and k < count - 1:
                    seen[k] = net(images).logits.detach()


def _double(batch):
    return batch._replace(images=batch.images.double())


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
@pytest.mark.parametrize("peers", [["resnet8"], ["resnet14", "wrn_10_2"]])
def test_dml_is_the_loop_written_by_hand(updates, peers, monkeypatch):
    # all in float64: in float32 six steps with batches of 8 take rounding errors up to 1e-4
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    monkeypatch.setattr(Loader, "__iter__", lambda _: (_double(batch_of(seed=i)) for i in range(3)))
    method = online("dml", peers=peers, updates=updates).double()
    networks = copy.deepcopy([method.student, *method.peers])
    recipe = method.stage.recipe | {"schedule": "constant"}
    method.stages[0] = method.stage = method.stage._replace(recipe=recipe)
    fit(method)
    by_hand(networks, updates == "alternating")
    for made, expected in zip([method.student, *method.peers], networks, strict=True):
        for a, b in zip(made.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_dml_peers_start_differently_and_never_move_each_other():
    method = online("dml")
    student, peer = method.student, method.peers[0]
    assert not torch.equal(next(student.parameters()), next(peer.parameters()))
    turns = method.turns()
    torch.stack(list(turns[0].terms(batch_of()).values())).sum().backward()
    assert all(p.grad is None for p in peer.parameters())
    assert all(p.grad is not None for p in student.parameters())
    method.zero_grad()
    torch.stack(list(turns[1].terms(batch_of()).values())).sum().backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in peer.parameters())


def test_dml_schedules_drop_for_every_peer():
    method = online("dml", epochs=8)  # drops at 5, 6 and 7
    trainer = fit(method)
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0.01e-3] * 2)


def test_dml_needs_another_peer():
    with pytest.raises(UserError, match=r"peers=\[\]"):
        online("dml", peers=[])


def test_dml_ensemble_is_the_mean_probability():
    method = online("dml", peers=["resnet8", "resnet14"]).eval()
    found = method.predictions(batch_of().images)
    assert list(found) == ["student", "peer1", "peer2", "ensemble"]
    mean = sum(found[name].softmax(1) for name in list(found)[:3]) / 3
    torch.testing.assert_close(found["ensemble"].softmax(1), mean)


# ------------------------------------------------------------------------------------------------ ONE

LARGE = {**SIZES, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
SPLIT = [name for name in NETWORKS if name.startswith(("resnet", "wrn", "vgg", "lenet"))]


@pytest.mark.parametrize("name", SPLIT)
def test_one_splits_every_resnet_wrn_vgg_and_lenet(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know the meta device
    with torch.device("meta"):
        method = online("one", name, LARGE)
        found = method.eval().predictions(torch.rand(2, 3, 32, 32))
    assert {key: tuple(z.shape) for key, z in found.items()} == dict.fromkeys(
        ["student", "branch1", "branch2", "ensemble"], (2, 4)
    )
    whole = sum(p.numel() for p in method.student.parameters())
    gate = sum(p.numel() for p in method.gate.parameters())
    branch = sum(p.numel() for p in method.branches[0].parameters())
    assert 0 < branch < whole
    assert method.extra_parameters() == 2 * branch + gate
    assert method.export().keys() == method.student.net.state_dict().keys()


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv1"])
def test_one_names_the_families_it_knows(name):
    with pytest.raises(UserError, match="ResNet, WRN, VGG and LeNet"):
        online("one", name, LARGE)


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_2", "vgg8", "lenet5"])
def test_a_branch_computes_what_the_whole_network_would(name):
    method = online("one", name, LARGE).eval()
    branch = method.branches[0]
    with torch.no_grad():  # give the branch the student's weights
        state = method.student.net.state_dict()
        branch.load_state_dict({key: state[key] for key in branch.state_dict()})
        found = method.predictions(torch.rand(2, 3, 32, 32))
    assert torch.equal(found["student"], found["branch1"])
    assert not torch.equal(found["student"], found["branch2"])


def gradients(method, *terms):
    """Whether any gradient of these terms reaches the branches, their common trunk and the gate."""
    method.zero_grad()
    made = method.terms(batch_of())
    sum(made[term] for term in terms).backward()

    def reached(*parts):
        return any(p.grad is not None and p.grad.abs().sum() > 0 for part in parts for p in part.parameters())

    net = method.student.net
    return {
        "trunk": reached(net.conv1, net.layer1, net.layer2),
        "branch0": reached(net.layer3, net.fc),
        "others": reached(*method.branches),
        "gate": reached(method.gate),
    }


def test_one_gradients_go_where_the_paper_says():
    method = online("one")
    assert gradients(method, "ce") == {"trunk": True, "branch0": True, "others": False, "gate": False}
    assert gradients(method, "branches_ce") == {"trunk": True, "branch0": False, "others": True, "gate": False}
    assert gradients(method, "ensemble_ce") == {"trunk": True, "branch0": True, "others": True, "gate": True}
    assert gradients(method, "one") == {"trunk": True, "branch0": True, "others": True, "gate": False}


def test_one_terms_are_the_papers():
    method, batch = online("one", ramp=0.0), batch_of()
    terms = {key: value.item() for key, value in method.terms(batch).items()}
    logits, shared = method.split(method.student(batch.images))
    gate = method.gate(shared)
    together = sum(gate[:, [i]] * z for i, z in enumerate(logits))
    each = [F.cross_entropy(z, batch.labels).item() for z in logits]
    p = (together / 3).softmax(1)
    pull = sum(9 * (p * (p.log() - (z / 3).softmax(1).log())).sum(1).mean() for z in logits)
    assert terms == pytest.approx({
        "ce": each[0], "branches_ce": each[1] + each[2],
        "ensemble_ce": F.cross_entropy(together, batch.labels).item(), "one": pull.item(),
    }, rel=1e-5)  # fmt: skip


def test_one_ramps_over_a_fraction_of_the_training():
    method, batch = online("one", epochs=300), batch_of()
    method.student.eval()
    values = []
    for epoch in (0, 40, 80, 299):
        method.enter(epoch)
        values.append(method.terms(batch)["one"].item())
    assert [value / values[-1] for value in values] == pytest.approx([0.00674, 0.28650, 1, 1], rel=1e-3)


def test_one_last_norm_is_own_or_shared():
    own, shared = online("one", "wrn_10_2", LARGE), online("one", "wrn_10_2", LARGE, last_norm="shared")
    assert own.branches[0].bn1 is not own.student.net.bn1
    assert all(branch.bn1 is shared.student.net.bn1 for branch in shared.branches)
    assert own.extra_parameters() - shared.extra_parameters() == 2 * 2 * 128
    shared.training_step(batch_of_colour(), 0).backward()
    with pytest.raises(UserError, match="last_norm=shared"):
        online("one", "resnet8", LARGE, last_norm="shared")


def batch_of_colour():
    batch = batch_of()
    return batch._replace(images=torch.rand(8, 3, 32, 32))


def test_the_student_of_an_online_method_is_initialised_as_any_other():
    # the same command with another method starts from the same student
    torch.manual_seed(0)
    alone = method_of("ce").student.state_dict()
    for name in ("one", "dml"):
        found = method_of(name).student.state_dict()
        assert all(torch.equal(alone[key], found[key]) for key in alone)
