"""Attacks stay in their box, do what their names say, and are ordered as they should be."""

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from rlx.agent import Scores
from rlx.attacks.fgsm import FGSM
from rlx.attacks.noise import Noise
from rlx.attacks.pgd import PGD
from rlx.errors import ConfigError
from rlx.nn.networks import MLP
from rlx.nn.rng import Streams, seed_tensor
from rlx.objective import LOSSES, Objective
from rlx.robustness.scale import unit_scale
from rlx.threat import Budget

SEEDS, BATCH, FEATURES, CHOICES = 3, 200, 6, 4
LOW, HIGH = torch.full((FEATURES,), -1.0), torch.tensor([1.0, 1, 1, 1, 2, torch.inf])


def victim():
    streams = Streams(seed_tensor(range(SEEDS)), "victim")
    mlp = MLP(FEATURES, [32, 32], CHOICES, streams)
    for parameter in mlp.parameters():
        parameter.data *= 3
    net = Scores(mlp)
    obs = (streams.uniform(BATCH, FEATURES) * 2 - 1).contiguous()
    return net, obs


def budget(obs, eps, scale=(1, 1, 0.5, 2, 1, 3)):
    eps = torch.as_tensor(eps).expand(SEEDS, BATCH).unsqueeze(-1)
    return Budget((eps * torch.tensor(scale)).expand_as(obs), LOW, HIGH)


def drawer():
    streams = Streams(seed_tensor(range(SEEDS)), "draw")
    return lambda count: streams.uniform(BATCH, count)


def pgd(loss="margin", target=None, steps=10, step_size=0.25, restarts=3, random_start=False):
    return PGD(loss, target, steps, step_size, restarts, random_start)


GRADIENT_ATTACKS = [
    *(FGSM(loss, None) for loss in LOSSES if loss != "distance"),
    FGSM("ce", 2),
    pgd(),
    pgd(random_start=True),
    pgd("worst"),
    pgd("ce", 1),
]
NOISES = [Noise(kind, 1.0, True) for kind in ("uniform", "gaussian", "corners")]


@pytest.mark.parametrize("attack", [*GRADIENT_ATTACKS, *NOISES], ids=str)
def test_never_outside_its_box_nor_the_bounds_and_zero_is_nothing(attack):
    net, obs = victim()
    eps = torch.rand(SEEDS, BATCH) * 0.3
    eps[:, ::7] = 0
    box = budget(obs, eps)
    moved = attack.perturb(net, obs, box, drawer())
    assert ((moved - obs).abs() <= box.radius + 1e-6).all()
    assert (moved >= LOW - 1e-6).all() and (moved <= HIGH + 1e-6).all()
    assert torch.equal(moved[:, ::7], obs[:, ::7]) and not torch.equal(moved, obs)


@pytest.mark.rounding
@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=str)
def test_rows_are_independent(attack):
    net, obs = victim()
    box = budget(obs, 0.1)
    part = Budget(box.radius[:, :50], LOW, HIGH)

    def constant(rows):
        return lambda count: torch.full((SEEDS, rows, count), 0.3)

    whole = attack.perturb(net, obs, box, constant(BATCH))
    half = attack.perturb(net, obs[:, :50], part, constant(50))
    same = (whole[:, :50] - half).abs().amax(-1) < 1e-5
    # A gradient that is zero but for rounding may take either sign.
    assert same.float().mean() > 0.98


def test_an_observation_beyond_the_bounds_is_not_dragged_further_than_its_box():
    obs = torch.full((1, 1, FEATURES), -3.0)
    box = Budget(torch.full_like(obs, 0.1), LOW, HIGH)
    assert ((box.project(obs + 5, obs) - obs).abs() <= 0.1 + 1e-6).all()


def cross_entropy(net, obs, choice):
    return nn.functional.cross_entropy(
        net(obs).flatten(0, 1), choice.flatten(), reduction="none"
    ).view(choice.shape)


def test_targeted_goes_to_the_target_and_untargeted_away_from_the_choice():
    net, obs = victim()
    box = budget(obs, 0.02)

    def change(attack, choice):
        moved = attack.perturb(net, obs, box, drawer())
        return cross_entropy(net, moved, choice) - cross_entropy(net, obs, choice)

    clean = net(obs).argmax(-1)
    worst = net(obs).argmin(-1)
    target = torch.full_like(clean, 2)
    assert (change(FGSM("ce", None), clean) > 0).float().mean() > 0.95
    assert (change(FGSM("ce", 2), target) < 0).float().mean() > 0.95
    assert (change(FGSM("worst", None), worst) < 0).float().mean() > 0.95


@pytest.mark.rounding
def test_q_to_zero_is_the_sources_ascent_on_the_distance_to_zero():
    net, obs = victim()

    @Scores
    def low(x):  # all values below −1: there the gradient is minus the mean value's
        return net(x) - 100

    box = budget(obs, 0.01)
    moved = FGSM("q_to_zero", None).perturb(low, obs, box, drawer())
    at = obs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(low(at).mean(-1).sum(), at)
    expected = box.project(obs - box.radius * slope.sign(), obs)
    same = (moved - expected).abs() < 1e-6
    # Rounding may turn the sign of a slope that is next to nothing.
    assert same.float().mean() > 0.999


@pytest.mark.rounding
def test_margin_objective_is_positive_exactly_where_the_decision_flips():
    net, obs = victim()
    clean, moved = net(obs), net(obs + 0.2 * torch.randn_like(obs))
    flipped = moved.argmax(-1) != clean.argmax(-1)
    assert torch.equal(Objective("margin", None)(moved, clean) > 0, flipped)
    assert torch.equal(Objective("margin", 1)(moved, clean) > 0, moved.argmax(-1) == 1)


@pytest.mark.parametrize("gap", [1, 15, 50, 500])
def test_the_cross_entropy_keeps_its_gradient_where_the_choice_is_certain(gap):
    slopes = torch.randn(1, BATCH, FEATURES)

    @Scores
    def certain(x):  # two choices, `gap` apart
        return torch.stack([(slopes * x).sum(-1) + gap, -(slopes * x).sum(-1)], -1)

    obs = torch.zeros(1, BATCH, FEATURES)
    box = Budget(torch.full_like(obs, 1e-3), -torch.ones(FEATURES), torch.ones(FEATURES))
    for attack in (FGSM("ce", None), FGSM("margin", None), FGSM("worst", None), FGSM("ce", 1)):
        assert torch.equal(attack.perturb(certain, obs, box, drawer()), -1e-3 * slopes.sign())


@pytest.mark.rounding
def test_one_full_step_of_pgd_is_fgsm():
    net, obs = victim()
    box = budget(obs, 0.1)
    for loss in ("ce", "margin", "worst", "q_to_zero"):
        one_step = pgd(loss, steps=1, step_size=1.0, restarts=1).perturb(net, obs, box, drawer())
        torch.testing.assert_close(one_step, FGSM(loss, None).perturb(net, obs, box, drawer()))


def test_damage_is_ordered_noise_fgsm_pgd_and_grows_with_the_radius():
    net, obs = victim()

    def flipped(attack, eps):
        moved = attack.perturb(net, obs, budget(obs, eps), drawer())
        return float((net(moved).argmax(-1) != net(obs).argmax(-1)).float().mean())

    for eps in (0.02, 0.05, 0.1):
        noise = flipped(Noise("uniform", 1.0, True), eps)
        fgsm = flipped(FGSM("margin", None), eps)
        assert noise < fgsm <= flipped(pgd(), eps)
    assert flipped(pgd(), 0.02) < flipped(pgd(), 0.1)
    assert flipped(pgd(restarts=1), 0.05) <= flipped(pgd(restarts=4), 0.05)


def test_noise_kinds_have_their_shapes():
    net, obs = victim()
    obs = torch.zeros_like(obs)
    box = budget(obs, 0.2, scale=(1,) * FEATURES)
    moved = {
        kind: Noise(kind, 1.0, True).perturb(net, obs, box, drawer())
        for kind in ("uniform", "gaussian", "corners")
    }
    assert moved["uniform"].std() == pytest.approx(0.2 / 3**0.5, rel=0.05)
    assert moved["corners"].abs().unique().tolist() == [pytest.approx(0.2)]
    assert moved["gaussian"].std() == pytest.approx(0.1 * 0.88**0.5, rel=0.05)
    # The source study's: half the width, and not clipped.
    unclipped = Noise("uniform", 0.5, False).perturb(net, obs + 1, box, drawer())
    assert unclipped.max() > 1 and (unclipped - 1).abs().max() <= 0.1


def test_scales():
    box = gymnasium.spaces.Box(
        np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32)
    )
    np.testing.assert_allclose(unit_scale("bounds", box, np.zeros), [0.9, 0.07], rtol=1e-6)
    np.testing.assert_allclose(unit_scale([1, 2], box, np.zeros), [1, 2])
    np.testing.assert_allclose(unit_scale("std", box, lambda: np.array([3.0, 4.0])), [3, 4])
    open_box = gymnasium.spaces.Box(
        np.array([-1, -np.inf], np.float32), np.array([1, np.inf], np.float32)
    )
    with pytest.raises(ConfigError, match=r"scale=bounds: components \[1\]"):
        unit_scale("bounds", open_box, np.zeros)
    for bad, message in (
        ("bound", "Did you mean 'bounds'"),
        ([1], "2 numbers"),
        ([1, -1], "2 numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            unit_scale(bad, box, np.zeros)
    with pytest.raises(ConfigError, match="Box"):
        unit_scale("std", gymnasium.spaces.Discrete(3), np.zeros)


def test_unknown_losses_and_targets_are_refused():
    with pytest.raises(ConfigError, match="attack.loss=cee"):
        FGSM("cee", None)
    with pytest.raises(ConfigError, match="attack.target=-1"):
        FGSM("ce", -1)
    for width in (0, 1.5):
        with pytest.raises(ConfigError, match="attack.width"):
            Noise("corners", width, True)
    with pytest.raises(ConfigError, match="attack.target=1"):
        FGSM("worst", 1)
    net, obs = victim()
    with pytest.raises(ConfigError, match="0 to 3"):
        FGSM("ce", 4).perturb(net, obs, budget(obs, 0.1), drawer())


def test_continuous_actions_are_pushed_to_where_they_really_change():
    @Scores
    def high(x):  # mean action 3, cut at 2; only a step down is felt
        return (3 + 5 * x[..., :1]).clamp_min(-10)

    felt = Scores(high.function, (torch.tensor([-2.0]), torch.tensor([2.0])))
    obs = torch.zeros(2, 50, 1)
    box = Budget(torch.full_like(obs, 0.8), torch.tensor([-5.0]), torch.tensor([5.0]))
    streams = Streams(seed_tensor(range(2)), "draw")
    attack = PGD("distance", None, 5, 0.5, 6, False)
    moved = attack.perturb(felt, obs, box, lambda count: streams.uniform(50, count))
    assert (felt.decide(felt(moved)) - 2).abs().amax(-1).gt(1).float().mean() > 0.95
    with pytest.raises(ConfigError, match="choices are discrete"):
        attack.perturb(high, obs, box, lambda count: streams.uniform(50, count))
