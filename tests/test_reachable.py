"""What a box can force is found where it is known, and nothing is claimed that is not so."""

from dataclasses import replace

import pytest
import torch

from rlx.agent import Scores
from rlx.nn.networks import MLP
from rlx.nn.rng import Streams, seed_tensor
from rlx.robustness.reachable import reachable
from rlx.threat import Budget

SEEDS, BATCH, FEATURES, CHOICES = 2, 100, 3, 4
OPEN = torch.full((FEATURES,), torch.inf)


def box(obs, radius, low=-OPEN, high=OPEN, whole=False):
    """The box of `radius` around `obs`."""
    return Budget(torch.as_tensor(radius, dtype=torch.float32).expand_as(obs), low, high, whole)


def drawer(batch=BATCH, seeds=SEEDS):
    streams = Streams(seed_tensor(range(seeds)), "draw")
    return lambda count: streams.uniform(batch, count)


def spread(low=-1.0, high=1.0, batch=BATCH, features=FEATURES):
    """Observations [S, batch, features], uniform between `low` and `high`."""
    draws = Streams(seed_tensor(range(SEEDS)), "obs").uniform(batch, features)
    return draws * (high - low) + low


def network(outputs=CHOICES):
    """An MLP whose decisions depend on the observation."""
    mlp = MLP(FEATURES, [32, 32], outputs, Streams(seed_tensor(range(SEEDS)), "victim"))
    for layer in mlp.layers:
        layer.weight.data *= 3
        layer.bias.data.zero_()  # else one choice is nearly everywhere the best
    return mlp


@Scores
def sign(obs):
    """Choice 0 where the first number is at least 0, choice 1 below, and never choice 2."""
    x = obs[..., 0]
    return torch.stack([x, -x, -9 - x.abs()], -1)


@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_reachable_of_a_linear_policy_is_what_the_radius_allows(steps):
    obs = spread()
    reach = reachable(sign, obs, box(obs, 0.3), drawer(), steps=steps, samples=0)
    x = obs[..., 0]
    assert torch.equal(reach.mask[..., 0], x >= -0.3)
    assert torch.equal(reach.mask[..., 1], x < 0.3)
    assert not reach.mask[..., 2].any()
    assert torch.equal(reach.clean, (x < 0).long())
    assert not reach.flat.any()


def test_the_bounds_of_the_space_cut_what_is_reachable():
    obs = spread(0.0, 1.0)
    low = torch.tensor([-0.1, -0.1, -0.1])
    reach = reachable(sign, obs, box(obs, 0.3, low=low), drawer(), steps=2, samples=2)
    assert torch.equal(reach.mask[..., 1], obs[..., 0] < 0.3), "-.1 is still in bounds"
    above = torch.tensor([0.0, 0.0, 0.0])
    reach = reachable(sign, obs, box(obs, 0.3, low=above), drawer(), steps=2, samples=2)
    assert not reach.mask[..., 1].any(), "nothing below the bound can be shown"


@pytest.mark.parametrize("samples", [0, 5])
def test_the_decision_at_each_observation_is_the_choice_and_lies_in_the_box(samples):
    net = Scores(network())
    obs = spread()
    budget = box(obs, torch.tensor([0.2, 0.1, 0.0]), low=-torch.ones(3), high=torch.ones(3))
    reach = reachable(net, obs, budget, drawer(), steps=3, samples=samples)
    for choice in range(CHOICES):
        shown = reach.obs[:, :, choice]
        assert ((shown - obs).abs() <= budget.radius + 1e-6).all()
        assert (shown.abs() <= 1).all()
        found = reach.mask[..., choice]
        assert (net.best(shown)[found] == choice).all()
        assert torch.equal(shown[~found], obs[~found]), "the clean one where none was found"
        assert torch.equal(reach.shown(torch.full_like(reach.clean, choice)), shown)
    assert torch.equal(reach.clean, net.best(obs))
    assert reach.mask.gather(-1, reach.clean.unsqueeze(-1)).all()
    assert 1.2 < reach.mask.sum(-1).float().mean() < CHOICES, "the test has something to look at"


def test_every_choice_is_a_target_whichever_is_the_clean_one():
    highest = Scores(lambda obs: obs)
    obs = 0.1 * torch.eye(4).unsqueeze(0)
    low = torch.full((4,), -9.0)
    budget = Budget(torch.full_like(obs, 0.2), low, -low)
    reach = reachable(highest, obs, budget, drawer(4, 1), steps=1, samples=0)
    assert reach.clean.tolist() == [[0, 1, 2, 3]]
    assert reach.mask.all()


def test_later_steps_find_a_choice_between_the_corners():
    """Choice 1 only between .05 and .15: steps that stay long jump over it for ever."""
    band = Scores(
        lambda x: torch.stack([torch.zeros_like(x[..., 0]), 0.05 - x[..., 0].sub(0.1).abs()], -1)
    )
    obs = torch.zeros(1, 1, 1)
    budget = Budget(torch.full_like(obs, 0.2), torch.tensor([-9.0]), torch.tensor([9.0]))
    found = [
        bool(reachable(band, obs, budget, drawer(1, 1), steps=steps, samples=0).mask[0, 0, 1])
        for steps in (1, 2, 3)
    ]
    assert found == [False, False, True], "at .2, then 0, then .1"


def test_gray_levels_are_moved_by_whole_ones_between_black_and_white():
    obs = spread(0, 255).round()
    whole = box(obs, 3.0, low=torch.zeros(3), high=torch.full((3,), 255.0), whole=True)
    bright = Scores(lambda x: torch.stack([x[..., 0] - 127.5, 127.5 - x[..., 0]], -1))
    reach = reachable(bright, obs, whole, drawer(), steps=3, samples=3)
    assert torch.equal(reach.mask[..., 0], obs[..., 0] >= 125)
    assert torch.equal(reach.mask[..., 1], obs[..., 0] <= 130)
    assert torch.equal(reach.obs, reach.obs.round())
    assert (reach.obs >= 0).all() and (reach.obs <= 255).all()


def test_where_scores_are_flat_chance_finds_what_gradients_do_not():
    """Observations are rounded to fiftieths, as some sensors do: the gradient is then 0."""
    rounded = Scores(lambda obs: sign(torch.round(obs * 50) / 50))
    obs = spread()
    blind = reachable(rounded, obs, box(obs, 0.3), drawer(), steps=3, samples=0)
    assert blind.flat.all()
    assert (blind.mask.sum(-1) == 1).all(), "no gradient leads anywhere"
    lucky = reachable(rounded, obs, box(obs, 0.3), drawer(), steps=3, samples=12)
    inside = obs[..., 0].abs() < 0.28
    assert (lucky.mask[..., :2].all(-1) == inside)[obs[..., 0].abs().sub(0.3).abs() > 0.02].all()


def test_only_rows_without_any_gradient_are_flat():
    half = Scores(lambda obs: sign(obs.clamp_min(0.5)))
    obs = spread()
    reach = reachable(half, obs, box(obs, 0.1), drawer(), steps=1, samples=0)
    assert torch.equal(reach.flat, obs[..., 0] < 0.5)


def test_continuous_actions_are_pushed_as_low_and_as_high_as_they_go():
    slopes = torch.tensor([[1.0, -2.0], [0.0, 3.0], [4.0, 0.5]])
    bounds = (torch.full((2,), -100.0), torch.full((2,), 100.0))
    linear = Scores(lambda obs: obs @ slopes, bounds)
    obs = spread()
    budget = box(obs, torch.tensor([0.1, 0.2, 0.0]))
    reach = reachable(linear, obs, budget, drawer(), steps=2, samples=0)
    assert reach.mask.shape == (SEEDS, BATCH, 5) and reach.mask.all()
    assert (reach.clean == 0).all() and torch.equal(reach.obs[:, :, 0], obs)
    action = linear(obs)
    # 0.1 · |1| + 0.2 · |0|, and 0.1 · |−2| + 0.2 · |3|
    for number, most in ((0, 0.1), (1, 0.8)):
        low = linear(reach.obs[:, :, 1 + 2 * number])[..., number]
        high = linear(reach.obs[:, :, 2 + 2 * number])[..., number]
        torch.testing.assert_close(low, action[..., number] - most)
        torch.testing.assert_close(high, action[..., number] + most)
    assert not reach.flat.any()


def test_a_push_of_a_continuous_action_never_does_the_opposite():
    """A hill within the box: every full step lands lower than where it began."""
    hill = Scores(lambda obs: -(obs[..., :1] - 0.05).abs(), (torch.tensor([-9.0]),) * 2)
    obs = torch.zeros(SEEDS, BATCH, FEATURES)
    reach = reachable(hill, obs, box(obs, 1.0), drawer(), steps=1, samples=0)
    assert (hill(reach.obs[:, :, 2]) >= hill(obs)).all()
    assert (hill(reach.obs[:, :, 1]) <= hill(obs)).all()


def test_a_radius_of_zero_leaves_but_the_clean_choice():
    obs = spread()
    for scores in (
        Scores(network()),
        Scores(network(), (torch.full((CHOICES,), -1.0), torch.ones(CHOICES))),
    ):
        reach = reachable(scores, obs, box(obs, 0.0), drawer(), steps=2, samples=2)
        assert (reach.mask.sum(-1) == 1).all()
        assert reach.mask.gather(-1, reach.clean.unsqueeze(-1)).all()
        assert torch.equal(reach.obs, obs.unsqueeze(2).expand_as(reach.obs))


@pytest.mark.rounding
@pytest.mark.parametrize("continuous", [False, True])
def test_no_row_depends_on_another(continuous):
    bounds = (-torch.ones(CHOICES), torch.ones(CHOICES)) if continuous else None
    net = Scores(network(), bounds)
    obs = spread()

    def constant(rows):
        return lambda count: torch.full((SEEDS, rows, count), 0.7)

    whole = reachable(net, obs, box(obs, 0.1), constant(BATCH), steps=3, samples=1)
    part = obs[:, 30:50]
    alone = reachable(net, part, box(part, 0.1), constant(20), steps=3, samples=1)
    same = (whole.mask[:, 30:50] == alone.mask).all(-1)
    same &= (whole.obs[:, 30:50] - alone.obs).abs().flatten(2).amax(-1) < 1e-5
    # A gradient that is zero but for rounding may take either sign.
    assert same.float().mean() > 0.95


def test_a_larger_box_holds_the_smaller_up_to_what_the_search_misses():
    net = Scores(network())
    obs = spread(batch=BATCH)
    small = reachable(net, obs, box(obs, 0.05), drawer(), steps=3, samples=4).mask
    large = reachable(net, obs, box(obs, 0.1), drawer(), steps=3, samples=4).mask
    assert (large | ~small).float().mean() > 0.98
    assert large.sum() > 1.1 * small.sum()


def test_the_steps_find_what_many_random_observations_find():
    """A plain search with ten thousand draws is no better than three gradient steps."""
    net = Scores(network())
    obs = spread(batch=40)
    draws = torch.rand(SEEDS, 40, 10_000, FEATURES) * 2 - 1
    with torch.no_grad():
        decisions = net((obs.unsqueeze(2) + 0.15 * draws).flatten(1, 2)).argmax(-1).view(2, 40, -1)
    found = torch.nn.functional.one_hot(decisions, CHOICES).any(2)
    reach = reachable(net, obs, box(obs, 0.15), drawer(40), steps=3, samples=4)
    assert (reach.mask & found).sum() > 0.9 * found.sum()
    assert (reach.mask & ~found).sum() < 0.05 * found.sum()


def test_where_a_search_decides_its_choice_counts_and_not_the_highest_score():
    """The choice is the score's opposite: what the gradient climbs is not what is taken."""
    opposite = replace(sign, choice=lambda obs: (obs[..., 0] >= 0).long())
    obs = spread()
    reach = reachable(opposite, obs, box(obs, 0.3), drawer(), steps=3, samples=4)
    x = obs[..., 0]
    assert torch.equal(reach.clean, (x >= 0).long())
    for choice in (0, 1):
        found = reach.mask[..., choice]
        assert (opposite.best(reach.obs[:, :, choice])[found] == choice).all()
    assert (reach.mask[..., :2].all(-1) == (x.abs() <= 0.3)).float().mean() > 0.9


def test_with_boxes_to_spend_the_set_is_exact():
    net = Scores(network())
    obs = spread()
    budget = box(obs, 0.05)
    found = reachable(net, obs, budget, drawer(), steps=1, samples=0)
    assert found.open is None
    exact = reachable(net, obs, budget, drawer(), steps=1, samples=0, max_boxes=2000)
    assert (exact.mask >= found.mask).all()
    assert exact.open.float().mean() < 0.01
    assert not (exact.open & exact.mask).any()
    for choice in range(CHOICES):
        shown = exact.obs[:, :, choice]
        assert ((shown - obs).abs() <= budget.radius + 1e-6).all()
        assert (net.best(shown)[exact.mask[..., choice]] == choice).all()
    # Whatever many points of the box lead to is in the set.
    for _ in range(300):
        point = obs + (torch.rand_like(obs) * 2 - 1) * 0.05
        seen = torch.nn.functional.one_hot(net.best(point), CHOICES).bool()
        assert not (seen & ~exact.mask & ~exact.open).any()
