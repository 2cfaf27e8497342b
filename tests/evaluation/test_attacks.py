"""FGSM (Goodfellow et al., ICLR 2015) and PGD (Madry et al., ICLR 2018) compared with closed forms and plain loops."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.evaluation.attacks import EPS, STEP, STEPS, Tally, fgsm, pgd, robust_accuracy, transferability
from kdbench.models.features import evaluating


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(seed, *size):
    return torch.randn(*size, generator=generator(seed), dtype=torch.float64)


def pixels(seed, n, dtype=torch.float64):
    """Images with many pixels at or near 0 and 1."""
    return (0.5 + 0.5 * random(seed, n, 3, 4, 4)).clamp(0, 1).to(dtype)


def linear(classes, seed=1):
    weight, bias = random(seed, classes, 48), random(seed + 1, classes)
    return lambda images: images.flatten(1) @ weight.to(images.dtype).T + bias.to(images.dtype), weight.numpy()


def curved(classes=4, seed=3):
    """A smooth network whose gradient changes direction within the ball."""
    first, second = random(seed, 48, 32), random(seed + 1, 32, classes)
    return lambda images: torch.sin(2 * (images.flatten(1) - 0.5) @ first) @ second


def gradient(network, image, label):
    image = image.clone().requires_grad_()
    F.cross_entropy(network(image[None]), label[None]).backward()
    return image.grad.numpy()


def test_fgsm_finds_the_worst_case_for_two_linear_classes():
    network, weight = linear(2)
    images, labels = pixels(5, 20), torch.arange(20) % 2
    results = fgsm(network, images, labels)
    for image, label, attacked in zip(images.numpy(), labels, results.numpy(), strict=True):
        away = np.sign(weight[1 - label] - weight[label]).reshape(3, 4, 4)
        np.testing.assert_allclose(attacked, np.clip(image + 0.031 * away, 0, 1), rtol=0, atol=1e-15)


def test_fgsm_is_a_step_along_the_sign_of_the_cross_entropys_gradient():
    network, images, labels = curved(), pixels(6, 10), torch.arange(10) % 4
    results = fgsm(network, images, labels, eps=0.1)
    for image, label, attacked in zip(images, labels, results.numpy(), strict=True):
        expected = np.clip(image.numpy() + 0.1 * np.sign(gradient(network, image, label)), 0, 1)
        np.testing.assert_allclose(attacked, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("gap", [20.0, 1e3, 1e5])
def test_an_attack_does_not_stall_where_the_softmax_saturates(gap):
    weight = torch.from_numpy(linear(2)[1]).float()
    weight[0, ::2] += 0.5  # the sum of both classes is then not a multiple of their difference
    network = lambda images: images.flatten(1) @ weight.T + torch.tensor([gap, 0.0])  # noqa: E731
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    expected = 0.5 + 0.031 * (weight[1] - weight[0]).sign().view(1, 3, 4, 4)
    torch.testing.assert_close(fgsm(network, images, labels), expected, rtol=0, atol=1e-7)


def test_pgd_agrees_with_a_plain_loop():
    network, images, labels = curved(), pixels(7, 6), torch.arange(6) % 4
    start = torch.rand(images.shape, generator=generator(8), dtype=torch.float64)
    results = pgd(network, images, labels, generator(8), eps=0.1, steps=7, step=0.02)
    for image, label, u, attacked in zip(images, labels, start, results, strict=True):
        x = np.clip(image.numpy() + 0.1 * (2 * u.numpy() - 1), 0, 1)
        for _ in range(7):
            x = x + 0.02 * np.sign(gradient(network, torch.from_numpy(x), label))
            x = np.clip(np.clip(x, image.numpy() - 0.1, image.numpy() + 0.1), 0, 1)
        np.testing.assert_allclose(attacked.numpy(), x, rtol=0, atol=1e-12)


def test_pgd_with_enough_steps_finds_the_worst_case_for_a_linear_network():
    network, _ = linear(2)
    images, labels = pixels(9, 20), torch.arange(20) % 2
    attacked = pgd(network, images, labels, generator(), steps=21)  # 21 * 0.003 > 2 * 0.031
    torch.testing.assert_close(attacked, fgsm(network, images, labels), rtol=0, atol=1e-15)


def test_the_defaults_are_those_of_the_literature():
    assert (EPS, STEPS, STEP) == (0.031, 20, 0.003)
    network, images, labels = curved(), pixels(10, 3), torch.arange(3)
    torch.testing.assert_close(
        pgd(network, images, labels, generator()), pgd(network, images, labels, generator(), 0.031, 20, 0.003)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.031, 0.3])
def test_attacked_images_stay_in_the_ball_and_in_0_to_1(dtype, eps):
    network, images, labels = linear(4)[0], pixels(11, 30, dtype), torch.arange(30) % 4
    for attacked in (
        fgsm(network, images, labels, eps),
        pgd(network, images, labels, generator(), eps, step=0.1),
        pgd(network, images, labels, generator(), eps, steps=0),
    ):
        assert attacked.dtype == dtype
        assert not attacked.requires_grad
        assert (attacked - images).abs().max() <= eps + torch.finfo(dtype).eps
        assert attacked.min() >= 0
        assert attacked.max() <= 1


def test_pgd_is_no_weaker_than_fgsm():
    network, images = curved(), pixels(12, 50)
    labels = network(images).argmax(1)
    clean, single_step, many_steps = (
        F.cross_entropy(network(x), labels).item()
        for x in (
            images,
            fgsm(network, images, labels, 0.1),
            pgd(network, images, labels, generator(), 0.1, step=0.02),
        )
    )
    assert clean < single_step < many_steps


def test_only_the_generator_determines_the_start_of_pgd():
    network, images, labels = curved(), pixels(13, 5), torch.arange(5) % 4
    torch.manual_seed(1)
    rng_state = torch.get_rng_state()
    first, same_seed, other_seed = (pgd(network, images, labels, generator(s), steps=1) for s in (1, 1, 2))
    assert torch.equal(first, same_seed)
    assert not torch.equal(first, other_seed)
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_attacks_change_neither_network_nor_images():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).double()
    network[0].weight.requires_grad_(False)
    network[1].eval()
    state, images, labels = copy.deepcopy(network.state_dict()), pixels(14, 8), torch.arange(8) % 5
    before = images.clone()
    with evaluating(network):  # gradients are disabled
        one_by_one = torch.cat([fgsm(network, x[None], y[None]) for x, y in zip(images, labels, strict=True)])
        torch.testing.assert_close(fgsm(network, images, labels), one_by_one, rtol=0, atol=0)
        pgd(network, images, labels, generator())
    assert [m.training for m in network] == [True, False, True, True, True]
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(images, before)
    assert not images.requires_grad


def batches(n, size, *tensors):
    return [[t[i : i + size] for t in tensors] for i in range(0, n, size)]


def test_robust_accuracy_is_over_all_samples():
    network, images = curved(), pixels(15, 40)
    labels = torch.where(torch.arange(40) < 30, network(images).argmax(1), 0)
    attacked = fgsm(network, images, labels, 0.01)
    correct = [network(x[None])[0].argmax() == y for x, y in zip(attacked, labels, strict=True)]
    assert 0 < sum(correct) < 40
    tally = sum((robust_accuracy(network, *batch) for batch in batches(40, 16, attacked, labels)), Tally())
    assert tally.share == pytest.approx(sum(correct).item() / 40, abs=1e-15)
    assert int(tally.count) == 40


def test_transferability_agrees_with_a_plain_loop():
    source, images = curved(seed=3), pixels(16, 200)
    target = lambda images: source(images) + 1.2 * curved(seed=21)(images)  # noqa: E731
    labels = torch.where(torch.arange(200) < 180, source(images).argmax(1), 1)
    attacked = pgd(source, images, labels, generator(), 0.03, step=0.01)
    hits = count = 0
    for x, a, y in zip(images, attacked, labels, strict=True):
        predictions = [[network(i[None])[0].argmax().item() for i in (x, a)] for network in (source, target)]
        (source_clean, source_attacked), (target_clean, target_attacked) = predictions
        if source_clean == target_clean == y != source_attacked:
            count += 1
            hits += target_attacked != y.item()
    assert 0 < hits < count < 180
    total = Tally()
    for batch in batches(200, 64, images, attacked, labels):
        total += transferability(source, target, *batch)
    assert (int(total.hits), int(total.count)) == (hits, count)
    assert total.share == hits / count


def test_a_share_of_nothing_is_none():
    network, images = curved(), pixels(17, 5)
    wrong = (network(images).argmax(1) + 1) % 4
    tally = transferability(network, network, images, images, wrong)
    assert tally.share is None
    assert int(tally.count) == 0
    assert Tally().share is None


def test_nothing_synchronises_with_the_device():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).to("meta")
    images, labels = torch.empty(5, 3, 4, 4, device="meta"), torch.empty(5, dtype=torch.int64, device="meta")
    attacked = pgd(network, images, labels, generator())
    assert attacked.shape == images.shape
    tally = robust_accuracy(network, attacked, labels)
    tally += transferability(network, network, images, attacked, labels)
    assert tally.hits.is_meta
    assert tally.hits.shape == tally.count.shape == ()
