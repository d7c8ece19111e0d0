"""Bounds hold at whatever can be shown, are exact where that is known, and decide small boxes."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlx.agent import Scores
from rlx.errors import ConfigError
from rlx.nn.encoders import Differences, ObsEncoder
from rlx.nn.networks import MLP, ConvNet, QNetwork, RunningNorm, SeedConv, SeedGRU
from rlx.nn.rng import Streams, seed_tensor
from rlx.robustness.bounds import Box, crown, interval, margins_of
from rlx.robustness.branching import branch, decide
from rlx.robustness.layers import read_network
from rlx.threat import Budget

SEEDS, BATCH, FEATURES, CHOICES = 2, 6, 3, 4
IDS = seed_tensor(range(SEEDS))
OPEN = torch.full((FEATURES,), torch.inf)


@pytest.fixture(autouse=True)
def own_rounding(request):
    """--rounding changes what is computed by operations that no policy has."""
    if request.config.getoption("--rounding"):
        pytest.skip("the operations of another machine's rounding are no part of a policy")


def normalised():
    """An actor as PPO has it: observations normalised and cut, then tanh."""
    norm = RunningNorm(FEATURES, IDS)
    norm.update(Streams(IDS, "moments").uniform(50, FEATURES) * 0.2)
    return nn.Sequential(norm, MLP(FEATURES, [16, 16], CHOICES, Streams(IDS, "net"), torch.tanh))


def told_a_goal():
    """A controller that is told a goal, another one in each row."""
    goal = nn.functional.one_hot(torch.arange(SEEDS * BATCH).view(SEEDS, BATCH) % 5, 5).float()
    net = MLP(FEATURES + 5, [16], CHOICES, Streams(IDS, "net"))

    def scores(obs):
        rows = goal if obs.shape[1] == BATCH else goal.repeat_interleave(obs.shape[1] // BATCH, 1)
        return net(torch.cat([rows, obs], -1))

    return scores


def scaled():
    """Observations divided by their bounds, and a dueling head."""
    space = spaces.Box(-np.full(FEATURES, 4, np.float32), np.full(FEATURES, 4, np.float32))
    encoder = ObsEncoder(space, IDS, scaled=True)
    return nn.Sequential(encoder, QNetwork(FEATURES, [16, 16], CHOICES, True, Streams(IDS, "net")))


def remembering():
    """An actor as PPO has it with a memory, which is another one in each row."""
    norm = RunningNorm(FEATURES, IDS)
    gru = SeedGRU(FEATURES, 8, Streams(IDS, "gru"))
    net = strong(nn.ModuleList([gru, MLP(8, [16], CHOICES, Streams(IDS, "net"), torch.tanh)]))
    memory = Streams(IDS, "memory").uniform(BATCH, 8) * 2 - 1

    def scores(obs):
        count = obs.shape[1] // BATCH
        rows = memory if obs.shape[1] == BATCH else memory.repeat_interleave(count, 1)
        return net[1](gru(norm(obs), rows))

    return scores


def multiplied():
    """What was computed before is used once more, and multiplied."""
    net = MLP(FEATURES, [16], CHOICES, Streams(IDS, "net"))
    other = MLP(FEATURES, [8], CHOICES, Streams(IDS, "other"), torch.tanh)

    def scores(obs):
        gate = torch.sigmoid(other(obs) * 3)
        return net(obs) * gate + obs.sum(-1, keepdim=True) * (1 - gate) / 2

    return scores


POLICIES = {
    "relu": lambda: MLP(FEATURES, [16, 16, 16], CHOICES, Streams(IDS, "net")),
    "tanh": lambda: MLP(FEATURES, [16, 16, 16], CHOICES, Streams(IDS, "net"), torch.tanh),
    "dueling": scaled,
    "goal": told_a_goal,
    "normalised": normalised,
    "gru": remembering,
    "products": multiplied,
}


def strong(policy, factor=2.0):
    """`policy` with larger weights, so that its decisions depend on the observation."""
    if isinstance(policy, nn.Module):
        for parameter in policy.parameters():
            parameter.data *= factor
    return policy


def observations(batch=BATCH, features=FEATURES):
    return Streams(IDS, "obs").uniform(batch, features) * 2 - 1


def box_around(obs, radius):
    return Box(obs.double() - radius, obs.double() + radius)


def within(box, count):
    """`count` points of each box, float32 [S, B · count, n], corners among them."""
    low, high = (end.repeat_interleave(count, 1) for end in box)
    place = torch.rand(low.shape, dtype=torch.float64)
    place[:, ::2] = place[:, ::2].round()
    points = (low + place * (high - low)).float()
    return points.maximum(low.float()).minimum(high.float())


def objective(batch=BATCH, choices=CHOICES):
    """Scores, minus scores, and their differences from the first one."""
    eye = torch.eye(choices, dtype=torch.float64)
    rows = torch.cat([eye, -eye, eye[:1] - eye])
    return rows.expand(SEEDS, batch, *rows.shape)


@pytest.mark.parametrize("name", POLICIES)
def test_a_network_is_read_off_a_policy(name):
    policy = strong(POLICIES[name]())
    obs = observations()
    network = read_network(Scores(policy), obs)
    torch.testing.assert_close(network(obs), policy(obs).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(3 * obs), policy(3 * obs).double(), rtol=1e-5, atol=1e-5)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(network.at(rows)(obs[:, rows]), network(obs)[:, rows])
    torch.testing.assert_close(network.of_seed(1)(obs[1:]), network(obs)[1:])


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.2, 2.0])
def test_no_point_of_a_box_is_beyond_its_bounds(name, radius):
    policy = strong(POLICIES[name]())
    obs = observations()
    network = read_network(Scores(policy), obs)
    box = Box(*(end.float().double() for end in box_around(obs, radius)))
    points = within(box, 10_000)
    with torch.no_grad():
        scores = policy(points).unflatten(1, (BATCH, -1)).double()
    values = torch.einsum("sbpa,sbka->sbpk", scores, objective())
    by_crown = crown(network, box, objective()).lower
    by_interval = interval(network, box, objective())
    lowest = values.amin(2)
    assert (by_crown <= lowest).all()
    assert (by_interval <= lowest).all()
    assert (by_crown >= by_interval - 1e-9).all()
    if radius == 0.0:
        torch.testing.assert_close(by_crown, lowest, rtol=1e-3, atol=1e-3)


def test_a_linear_policy_has_exact_bounds():
    policy = MLP(FEATURES, [], CHOICES, Streams(IDS, "net"))
    obs = observations()
    weight = policy.layers[0].weight.double()
    box = box_around(obs, 0.25)
    network = read_network(Scores(policy), obs)
    exact = network(obs) - 0.25 * weight.abs().sum(1, keepdim=True)
    lower = crown(network, box, objective()).lower[..., :CHOICES]
    torch.testing.assert_close(lower, exact, rtol=0, atol=1e-5)
    by_interval = interval(network, box, objective())[..., :CHOICES]
    torch.testing.assert_close(by_interval, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", [torch.relu_, torch.tanh])
def test_splitting_comes_close_to_a_fine_grid(activation):
    policy = strong(MLP(2, [8], 2, Streams(IDS, "net"), activation))
    obs = observations(1, 2)
    network = read_network(Scores(policy), obs)
    side = torch.linspace(-0.5, 0.5, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    least = network(obs.double() + grid).amin(1, keepdim=True)
    cuts = torch.linspace(-0.5, 0.5, 33, dtype=torch.float64)
    corners = torch.cartesian_prod(cuts[:-1], cuts[:-1])
    cells = Box(obs.double() + corners, obs.double() + corners + cuts[1] - cuts[0])
    lower = crown(network, cells, objective(len(corners), 2)).lower[..., :2].amin(1, keepdim=True)
    assert (lower <= least + 1e-9).all()
    torch.testing.assert_close(lower, least, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", POLICIES)
def test_bounds_fall_as_the_box_grows(name):
    obs = observations()
    network = read_network(Scores(strong(POLICIES[name]())), obs)
    boxes = [box_around(obs, radius) for radius in (0.0, 0.02, 0.1, 0.5)]
    bounds = [interval(network, box, objective()) for box in boxes]
    for smaller, larger in itertools.pairwise(bounds):
        assert (larger <= smaller).all()
    # The lines of CROWN are chosen anew for each box: a larger one may have luckier ones.
    means = [float(crown(network, box, objective()).lower.mean()) for box in boxes]
    assert means == sorted(means, reverse=True)


def decided(policy, obs, radius, max_boxes=2000, found=None, **sides):
    budget = Budget(torch.full_like(obs, radius), sides.get("low", -OPEN), sides.get("high", OPEN))
    scores = Scores(policy)
    with torch.no_grad():
        clean = scores.best(obs)
        if found is None:
            found = nn.functional.one_hot(clean, CHOICES).bool()
        return decide(scores, obs, budget, found, max_boxes), clean, budget


@pytest.mark.parametrize("activation", [torch.relu_, torch.tanh])
def test_all_of_a_small_box_is_decided(activation):
    policy = strong(MLP(2, [16, 16], CHOICES, Streams(IDS, "net"), activation), 3.0)
    obs = observations(40, 2)
    result, _, _ = decided(policy, obs, 0.3, low=-torch.ones(2), high=torch.ones(2))
    assert result.open.float().mean() < 0.02
    side = torch.linspace(-0.3, 0.3, 61)
    grid = torch.cartesian_prod(side, side)
    points = (obs.unsqueeze(2) + grid).clamp(-1, 1)
    with torch.no_grad():
        choices = policy(points.flatten(1, 2)).argmax(-1).unflatten(1, (40, -1))
    seen = nn.functional.one_hot(choices, CHOICES).amax(2).bool()
    assert not (seen & ~result.found & ~result.open).any(), "what was excluded is not there"
    assert (result.found.sum(-1) > 1).any() and (result.found.sum(-1) == 1).any()
    assert (result.found & ~seen).float().mean() < 0.02


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_decided_is_so(name):
    policy = strong(POLICIES[name](), 3.0)
    obs = observations()
    result, clean, budget = decided(policy, obs, 0.1)
    with torch.no_grad():
        for choice in range(CHOICES):
            shown = result.obs[:, :, choice]
            assert ((shown - obs).abs() <= budget.radius + 1e-6).all()
            new = result.found[..., choice] & (clean != choice)
            assert (policy(shown).argmax(-1)[new] == choice).all()
        points = within(Box(*(end.double() for end in budget.ends(obs))), 10_000)
        seen = policy(points).argmax(-1).unflatten(1, (BATCH, -1))
    reached = nn.functional.one_hot(seen, CHOICES).amax(2).bool()
    assert not (reached & ~result.found & ~result.open).any()
    assert (result.boxes <= 2000).all()


def test_a_small_budget_leaves_things_open_and_never_errs():
    policy = strong(POLICIES["relu"](), 3.0)
    obs = observations()
    little, _, _ = decided(policy, obs, 0.3, max_boxes=3)
    much, _, _ = decided(policy, obs, 0.3, max_boxes=20_000)
    assert little.open.sum() > much.open.sum()
    excluded = ~little.found & ~little.open
    assert not (excluded & much.found).any()
    assert (little.boxes <= 3).all()


def test_a_decision_that_can_be_changed_is_left_when_two_choices_are_found():
    policy = strong(POLICIES["relu"](), 3.0)
    obs = observations()
    network = read_network(Scores(policy), obs).of_seed(0)
    clean = nn.functional.one_hot(policy(obs)[0].argmax(-1), CHOICES).bool()
    whole = branch(network, obs[0] - 0.3, obs[0] + 0.3, clean, 5000)
    early = branch(network, obs[0] - 0.3, obs[0] + 0.3, clean, 5000, stop_at_two=True)
    movable = whole.found.sum(1) > 1
    assert torch.equal(early.found.sum(1) > 1, movable)
    assert (early.boxes <= whole.boxes).all() and early.boxes.sum() < whole.boxes.sum()


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e3])
def test_no_decision_within_rounding_is_certified(factor):
    """Two scores that float32 cannot tell apart are open, however large the weights are."""
    net = MLP(FEATURES, [16], 1, Streams(IDS, "net"))

    def scores(obs):
        value = net(obs) * factor
        # The same number by another order of additions: which is larger is a matter of rounding.
        return torch.cat([value + 0.1 - 0.1, value], -1)

    obs = observations()
    budget = Budget(torch.zeros_like(obs), -OPEN, OPEN)
    found = torch.zeros(SEEDS, BATCH, 2, dtype=torch.bool)
    with torch.no_grad():
        result = decide(Scores(scores), obs, budget, found, 100)
    assert not result.by_bounds.any()
    assert (result.open | result.found).all()


def test_a_product_with_a_memory_is_exact_where_nothing_else_moves():
    """r · h is no looser than a linear function: h is another number in each row, and known."""
    memory = Streams(IDS, "memory").uniform(BATCH, CHOICES) * 2 - 1
    net = MLP(FEATURES, [], CHOICES, Streams(IDS, "net"))
    obs = observations()
    network = read_network(Scores(lambda obs: net(obs) * memory), obs)
    weight = net.layers[0].weight.double().abs().sum(1, keepdim=True)
    exact = network(obs) - 0.25 * weight * memory.abs().double()
    lower = crown(network, box_around(obs, 0.25), objective()).lower[..., :CHOICES]
    torch.testing.assert_close(lower, exact, rtol=0, atol=1e-5)


def test_layers_are_the_same_at_every_step_and_for_any_number_of_rows():
    net = SeedGRU(FEATURES, 4, Streams(IDS, "gru"))
    obs = observations()

    def read(memory, rows):
        return read_network(Scores(lambda obs: net(obs, memory[:, :rows])), obs[:, :rows])

    begun = read(torch.zeros(SEEDS, BATCH, 4), BATCH)
    later = read(Streams(IDS, "memory").uniform(BATCH, 4), BATCH)
    alone = read(Streams(IDS, "memory").uniform(BATCH, 4), 1)
    for others in (later, alone):
        for one, other in zip(begun.layers, others.layers, strict=True):
            assert one.sources == other.sources and one.activation == other.activation
            assert torch.equal(one.weight, other.weight)


def test_scores_that_do_not_depend_on_the_observation_are_certified_at_any_radius():
    def scores(obs):
        return torch.tensor([1.0, 2.0, 0.0, -1.0]).expand(*obs.shape[:2], -1)

    result, _, _ = decided(scores, observations(), 1e6)
    assert result.by_bounds.all()
    assert torch.equal(result.found[0, 0], torch.tensor([False, True, False, False]))


def part_of_what_changes(obs):
    hidden = obs * 2
    part = hidden[..., :2]
    hidden.relu_()
    return part


@pytest.mark.parametrize(
    ("scores", "named"),
    [
        (lambda obs: obs.exp(), "operation exp"),
        (lambda obs: obs / obs, "by what is no constant"),
        (lambda obs: torch.cat(obs.split(3, 1), 1), "operation split"),
        (lambda obs: obs - obs.mean(1, keepdim=True), "operation mean"),
        (lambda obs: obs.mean() + obs, "operation mean"),
        (lambda obs: obs.cumsum(1), "operation cumsum"),
        (lambda obs: obs.transpose(0, 1).transpose(0, 1), "operation transpose"),
        (part_of_what_changes, "in place"),
        (lambda obs: obs.half().float(), "_to_copy"),
        (lambda obs: obs.flatten(), "operation view"),
    ],
)
def test_what_has_no_bounds_is_named(scores, named):
    with pytest.raises(ConfigError, match="there are some for discrete choices") as error:
        read_network(Scores(scores), observations())
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def seeing(layers, frames=1):
    """Q-values of images as DQN has them: of the newest frame, and how it differs from others."""
    rows = 3
    net = ConvNet((frames, 16, 16), layers, True, 1.0, IDS, Streams(IDS, "net"))
    encoder = Differences(net, 1) if frames > 1 else net
    for name, buffer in net.named_buffers():
        buffer.copy_(Streams(IDS, name).uniform(*buffer.shape[1:]) + 0.2)
    head = strong(QNetwork(net.features, [16], CHOICES, True, Streams(IDS, "head")), 3.0)
    past = Streams(IDS, "past").uniform(rows, frames, 16, 16)[:, :, 1:]

    def scores(obs):
        images = obs.unflatten(2, (1, 16, 16)) if obs.dim() == 3 else obs
        before = past.repeat_interleave(images.shape[1] // rows, 1)
        return head(encoder(torch.cat([before, images], 2)))

    return scores, Streams(IDS, "images").uniform(rows, 1, 16, 16)


@pytest.mark.parametrize("most", [1 << 22, 100])
@pytest.mark.parametrize(("layers", "frames"), [([[4, 4, 2], [4, 3, 1]], 1), ([[4, 8, 4]], 3)])
def test_no_image_of_a_box_is_beyond_its_bounds(monkeypatch, most, layers, frames):
    """Whether a convolution's weights are kept with their zeros, or without."""
    monkeypatch.setattr("rlx.robustness.weights.DENSE", most)
    scores, obs = seeing(layers, frames)
    network = read_network(Scores(scores), obs)
    assert network.has_convolutions == (most == 100)
    rows = objective(obs.shape[1])
    with torch.no_grad():
        exact = scores(obs).double()
        torch.testing.assert_close(network(obs.flatten(2)), exact, rtol=1e-4, atol=1e-4)
        one = network.of_seed(1).at(torch.tensor([2])).float()(obs[1:, 2:].flatten(2))
        torch.testing.assert_close(one.double(), exact[1:, 2:], rtol=1e-4, atol=1e-4)
    for radius in (0.0, 0.002, 0.05):
        box = Box(*(end.float().double() for end in box_around(obs.flatten(2), radius)))
        with torch.no_grad():
            values = scores(within(box, 1000)).unflatten(1, (obs.shape[1], -1)).double()
        lowest = torch.einsum("sbpa,sbka->sbpk", values, rows).amin(2)
        by_crown, _, rounding = crown(network, box, rows)
        by_interval = interval(network, box, rows)
        assert (by_crown <= lowest).all() and (by_interval <= lowest).all()
        assert (by_crown >= by_interval - 1e-9).all()
        if radius == 0:
            assert (lowest - by_crown <= 2 * rounding).all()
            assert (rounding < 0.02 * exact.abs().amax()).all()
        else:
            assert by_crown.mean() > by_interval.mean()


def test_a_linear_convolution_has_exact_bounds(monkeypatch):
    monkeypatch.setattr("rlx.robustness.weights.DENSE", 100)
    conv = SeedConv(1, 2, 3, 2, Streams(IDS, "net"))
    obs = Streams(IDS, "images").uniform(3, 1, 8, 8)
    network = read_network(Scores(lambda obs: conv(obs).flatten(2)), obs)
    shift = 0.1 * conv.weight.double().abs().sum((2, 3, 4)).repeat_interleave(9, 1)
    exact = conv(obs).flatten(2).double() - shift.unsqueeze(1)
    choices = network.choices
    eye = torch.eye(choices, dtype=torch.float64).expand(SEEDS, 3, -1, -1)
    for bounds in (
        crown(network, box_around(obs.flatten(2), 0.1), eye).lower,
        interval(network, box_around(obs.flatten(2), 0.1), eye),
    ):
        torch.testing.assert_close(bounds, exact, rtol=0, atol=1e-5)


def test_gradients_pass_through_convolutions(monkeypatch):
    monkeypatch.setattr("rlx.robustness.weights.DENSE", 100)
    scores, obs = seeing([[4, 4, 2]])
    network = read_network(Scores(scores), obs).float()
    flat = obs.flatten(2).requires_grad_()
    (own,) = torch.autograd.grad(network(flat)[..., 0].sum(), flat)
    image = obs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scores(image)[..., 0].sum(), image)
    torch.testing.assert_close(own, expected.flatten(2), rtol=1e-3, atol=1e-3)


def test_a_layer_of_too_many_weights_is_named(monkeypatch):
    monkeypatch.setattr("rlx.robustness.weights.MOST", 1000)
    scores, obs = seeing([[4, 4, 2]])
    with pytest.raises(ConfigError, match="a layer of 50,176 weights; there may be 1,000"):
        read_network(Scores(scores), obs)


def test_a_search_and_continuous_actions_have_no_bounds():
    obs = observations()
    with pytest.raises(ConfigError, match="a search decides"):
        read_network(Scores(lambda obs: obs, choice=lambda obs: obs.argmax(-1)), obs)
    with pytest.raises(ConfigError, match="actions are continuous"):
        read_network(Scores(lambda obs: obs, bounds=(obs, obs)), obs)


def test_margins_are_the_best_score_minus_each():
    scores = torch.tensor([[[1.0, 4.0, 2.0]]], dtype=torch.float64)
    margins = (margins_of(scores.argmax(-1), 3) @ scores.unsqueeze(-1)).squeeze(-1)
    assert margins.tolist() == [[[3.0, 0.0, 2.0]]]
