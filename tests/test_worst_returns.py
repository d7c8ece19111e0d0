"""Bounds of worst returns are what trying everything gives; stopped early they enclose it."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import compose
from test_planned import EPISODES, SEEDS, Everything, Walk, clean, game, modes, opened, planned

from rlx.agent import Policy
from rlx.evaluation import REPORT
from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor
from rlx.policies import Opened
from rlx.robustness.reachable import certified_reachable
from rlx.robustness.sweep import Game
from rlx.robustness.worst_returns import bound_returns
from rlx.threat import Boxes

BOXES = 200
EPS = [0.0, 0.1, 0.3]


@pytest.fixture(autouse=True)
def own_rounding(request):
    """--rounding changes what is computed by operations that no policy has."""
    if request.config.getoption("--rounding"):
        pytest.skip("the operations of another machine's rounding are no part of a policy")


@dataclass(frozen=True)
class Line(Walk):
    """`Walk`, with the lowest reward that there is: at −2.5, where an episode has ended."""

    @property
    def lowest_reward(self) -> float | None:
        return -4.9 if self.known else None


def on_line(agent="dqn", **env):
    """Untrained policies of the line, both of which can be moved."""
    policies = opened(agent, _target_="test_worst_returns.Line", **env)
    generator = torch.Generator().manual_seed(1)
    for parameter in policies.policy.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policies


class Certified(Everything):
    """The plain reference, of what certified reachable sets have found."""

    undecided = False

    def _reach(self, obs, scores, deciding):
        boxes = Boxes.of(self.space, torch.full(obs.shape[2:], float(self.radius)))
        budget = boxes.around(obs, torch.ones(obs.shape[:2]))
        reach = certified_reachable(scores, obs, budget, deciding, BOXES)
        self.undecided |= bool(reach.open.any())
        choices = reach.mask[0, 0].nonzero().flatten().tolist()
        return [(reach.obs[:, :, choice], 0) for choice in choices]


def every_lowest(policies, heads, eps, episodes=EPISODES):
    """(worst returns, whether all was decided) [S, E, P] of the plain reference."""
    lowest = np.empty((len(SEEDS), len(eps), episodes))
    decided = np.empty_like(lowest, dtype=bool)
    for index in np.ndindex(lowest.shape):
        everything = Certified(policies, index[0], heads, eps[index[1]])
        lowest[index] = everything.lowest(REPORT + index[2])[0]
        decided[index] = not everything.undecided
    return lowest, decided


@pytest.mark.parametrize("agent, mode", [("dqn", "action"), ("hdqn", "both"), ("hdqn", "goal")])
def test_all_is_followed_that_can_be_forced(agent, mode):
    policies = on_line(agent, max_episode_steps=6 if agent == "dqn" else 4)
    heads = modes(policies, mode)[mode].heads
    found = bound_returns(game(policies, EPS), heads, 10_000, BOXES)
    lowest, decided = every_lowest(policies, heads, EPS)
    assert decided.mean() > 0.8
    np.testing.assert_allclose(found.upper[decided], lowest[decided], rtol=1e-6)
    assert found.exact[decided].all()
    assert (found.lower <= found.upper).all()
    harmless = clean(policies).returns.numpy()
    assert np.array_equal(found.upper[:, 0], harmless) and found.exact[:, 0].all()
    assert (lowest[:, 2] < harmless - 0.5).any(), "there is something to find"


def test_nothing_that_an_attack_finds_is_below_the_bounds():
    policies = on_line("hdqn")
    attacked = planned().play(game(policies, EPS), modes(policies))
    for name, mode in modes(policies).items():
        found = bound_returns(game(policies, EPS), mode.heads, 10_000, BOXES)
        assert (found.lower <= attacked[name].returns + 1e-5).all()
        known = bound_returns(game(policies, EPS), mode.heads, 6, BOXES, attacked[name].returns)
        assert (known.upper <= attacked[name].returns).all()
        assert (known.lower <= found.lower).all()


def test_a_larger_budget_has_narrower_bounds_and_none_is_wrong():
    policies = on_line()
    budgets = [
        bound_returns(game(policies, EPS), ("action",), nodes, BOXES) for nodes in (1, 4, 8, 10_000)
    ]
    for fewer, more in itertools.pairwise(budgets):
        assert (fewer.lower <= more.lower).all() and (fewer.upper >= more.upper).all()
        assert (fewer.nodes <= more.nodes).all()
    assert not budgets[0].exact[:, 1:].any() and budgets[-1].exact.mean() > 0.8
    assert (budgets[2].lower > budgets[0].lower).any() and budgets[2].nodes.max() == 8


def test_without_a_lowest_reward_what_is_left_over_has_no_bound():
    policies = on_line(known=False)
    found = bound_returns(game(policies, [0.3, 0.0]), ("action",), 3, BOXES)
    assert np.isneginf(found.lower[:, 0]).any() and np.isfinite(found.upper).all()
    assert found.exact[:, 1].all(), "nothing can be moved at radius 0"
    summary = found.summary()
    assert np.isnan(summary["lower"][0]["iqm"]) and summary["lower"][1]["iqm"] < 9
    assert summary["exact"].tolist() == [0.0, 1.0]


def on_grid(env, agent):
    """Policies of a grid, whose observations are numbers."""
    node = compose("train", f"env={env}", "env.max_episode_steps=5").env
    node = {**node, **({"success": 1.0} if env == "chain" else {})}
    spec = env_spec(node)
    config = compose("train", f"agent={agent}", f"env={env}").agent
    policy = make_agent(config, spec, seed_tensor(SEEDS), 1).policy.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Opened(policy, spec, SEEDS, node, 0, torch.device("cpu"))


@pytest.mark.parametrize("env", ["maze", "chain"])
def test_of_numbers_every_other_one_is_tried(env):
    policies = on_grid(env, "q_table")
    eps = [0.0, 0.9, 1.0, 3.0]
    played = Game(policies, eps, np.array(1.0), 1, REPORT, 100, quiet=True)
    found = bound_returns(played, ("action",), 10_000, BOXES)
    lowest, decided = every_lowest(policies, ("action",), eps, episodes=1)
    assert decided.all() and found.exact.all()
    np.testing.assert_allclose(found.upper, lowest, rtol=1e-6)
    assert np.array_equal(found.upper[:, 1], found.upper[:, 0]), "no number is .9 away"
    assert found.nodes.max() <= 5 * 31, "ways to one cell are one node"


def test_what_a_policy_remembers_without_need_is_no_node_of_its_own(monkeypatch):
    policies = on_grid("maze", "hdqn")
    played = Game(policies, [9.0], np.array(1.0), 1, REPORT, 100, quiet=True)
    short = bound_returns(played, policies.policy.heads, 10_000, BOXES)
    monkeypatch.setattr(type(policies.policy), "memory", Policy.memory)
    whole = bound_returns(played, policies.policy.heads, 10_000, BOXES)
    assert short.exact.all() and whole.exact.all()
    np.testing.assert_array_equal(short.upper, whole.upper)
    assert short.nodes.sum() < whole.nodes.sum()


def test_certify_tells_the_worst_returns_and_attack_draws_both_bounds(rlx, tiny_runs, real_figures):
    run = tiny_runs / "train/dqn-cartpole"
    keys = ("eps=[0,0.02,0.2]", "episodes=2", "max_nodes=300", "scale=[1,1,0.2,1]")
    certified = rlx("certify", run, *keys, "returns=true", "attack.restarts=1")
    assert certified.code == 0, certified.err
    bounds = certified.summary["returns"]["action"]
    for lower, upper in zip(bounds["lower"], bounds["upper"], strict=True):
        assert lower["iqm"] <= upper["iqm"]
    assert bounds["exact"][0] == 1 and bounds["exact"][1] > 0 and bounds["nodes"][1] > 0
    assert len((certified.run / "returns.csv").read_text().splitlines()) == 1 + 3 * 2
    assert "Worst return, action attacked" in certified.out
    attacked = rlx("attack", run, *keys, "attack=pgd", "certify=true")
    assert attacked.code == 0, attacked.err
    with np.load(attacked.run / "returns.npz") as arrays:
        assert (arrays["returns/action/lower"] <= arrays["action"]).all()
        assert (arrays["returns/action/upper"] <= arrays["action"]).all()
    assert set(attacked.summary["certificates"]["heads"]) == {"action"}
    assert (attacked.run / "robustness.png").stat().st_size > 5000
    page = rlx("report", attacked.run, "format=md")
    assert page.code == 0, page.err
    assert "proved: not below" in next(page.run.glob("*.md")).read_text()


@pytest.mark.parametrize(
    ("train", "line", "named"),
    [
        (["env=chain"], ["returns=true"], "returns: the env is random"),
        (["env=gym", "env.id=CartPole-v1"], ["returns=true", "scale=std"], "cannot be copied"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(rlx, train, line, named):
    tiny = ("steps=200", "eval_every=200", "eval_episodes=1", "final_episodes=1", "num_envs=4")
    trained = rlx("train", "agent=dqn", *train, *tiny, "seeds=1", "agent.hidden=[8]")
    assert trained.code == 0, trained.err
    result = rlx("certify", trained.run, "episodes=1", *line)
    assert result.code == 2 and named in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (trained.run.parents[1] / "certify").exists()
