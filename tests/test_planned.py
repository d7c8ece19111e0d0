"""The planned adversary finds what trying everything finds, and is never above clean play."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import compose
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlx.agent import Policy, Scores, greedy
from rlx.attacks.fgsm import FGSM
from rlx.attacks.planned import Planned
from rlx.envs.batched import Dynamics
from rlx.errors import ConfigError
from rlx.evaluation import REPORT, evaluate
from rlx.experiment import env_spec, make_agent, make_env
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import take
from rlx.policies import Opened
from rlx.robustness.courses import Trace
from rlx.robustness.planner import Search, lowest_of_each, packed
from rlx.robustness.reachable import reachable
from rlx.robustness.sweep import Game, sweep
from rlx.robustness.value import ReturnToGo
from rlx.threat import Boxes, Mode

CPU = torch.device("cpu")
SEEDS = [3, 8]
EPISODES = 3
EPS = [0.0, 0.1, 0.25]
ALL = 4096
"""A width that no episode of the walk fills."""


@dataclass(frozen=True)
class Walk(Dynamics):
    """Walk half a step to the left (0) or right (1) on a line; each place has a reward of its own.

    State [B, 1]: the place, −1 to 1 at first; the episode ends beyond −2 and 2. `smooth`: the
    action is the step itself, a number from −½ to ½. `known`: whether the env says what the lowest
    reward is.
    """

    smooth: bool = False
    known: bool = True
    noisy: bool = False

    observation_space = spaces.Box(-4, 4, (2,), np.float32)
    max_episode_steps: ClassVar[int] = 6
    initial_draws = 1

    @property
    def action_space(self) -> spaces.Space:  # type: ignore[override]
        return spaces.Box(-0.5, 0.5, (1,), np.float32) if self.smooth else spaces.Discrete(2)

    @property
    def lowest_reward(self) -> float | None:  # type: ignore[override]
        return -2.0 if self.known else None

    @property
    def transition_draws(self) -> int:  # type: ignore[override]
        return int(self.noisy)

    def initial(self, draws: Tensor) -> Tensor:
        return draws * 2 - 1

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        step = action[:, 0].clamp(-0.5, 0.5) if self.smooth else action - 0.5
        place = state[:, 0] + step
        return place.unsqueeze(1), 1 - 0.7 * (place - 0.4).square(), place.abs() > 2

    def observe(self, state: Tensor) -> Tensor:
        return torch.cat([state, torch.sin(3 * state)], 1)


def opened(agent="dqn", **env):
    """Untrained policies in the walk, of which the decisions depend on the place."""
    node = {"_target_": "test_planned.Walk", **env}
    spec = env_spec(node)
    config = compose("train", f"agent={agent}", "env=cartpole", "agent.hidden=[16]").agent
    policy = make_agent(config, spec, seed_tensor(SEEDS), 1).policy.requires_grad_(False)
    for name, parameter in policy.named_parameters():
        parameter *= 100 if name == "actor.layers.1.weight" else 3
        if name.endswith("bias"):
            parameter *= 0
    return Opened(policy, spec, SEEDS, node, 0, CPU)


def game(policies, eps=EPS, episodes=EPISODES, max_num_envs=100_000):
    return Game(policies, eps, np.array([1.0, 1.0]), episodes, REPORT, max_num_envs, quiet=True)


def planned(width=ALL, steps=2, samples=0):
    return Planned(width, steps, samples, rounds=2, learning_episodes=4, updates=20)


def modes(policies, *names):
    every = planned().modes(policies.policy.heads)
    return {name: every[name] for name in names or every}


def clean(policies, episodes=EPISODES):
    return evaluate(policies.policy, policies.make_env, len(SEEDS), episodes, REPORT, CPU)


class Everything:
    """The plain reference: one episode of one policy, every combination at every step."""

    def __init__(self, policies: Opened, row: int, heads, radius: float):
        self.policy = take(policies.policy, torch.tensor([row]))
        self.space = policies.spec.observation_space
        self.env = make_env(policies.env, 1, CPU, 0)
        self.heads = heads
        self.radius = radius

    def lowest(self, reset_seed: int) -> tuple[float, int, int]:
        """(return, length, changed decisions) of the worst course."""
        obs, _ = self.env.reset(seed=[reset_seed])
        return self._from(obs.unsqueeze(0), torch.ones(1, 1, dtype=torch.bool), None)

    def _from(self, obs, first, carry) -> tuple[float, int, int]:
        carry = self.policy.initial_carry(1) if carry is None else carry
        before = {name: value.clone() for name, value in self.env.state_dict().items()}
        worst = (float("inf"), 0, 0)
        for action, next_carry, changed in self._options(obs, first, carry, {}, 0):
            self.env.load_state_dict(before)
            next_obs, reward, terminated, truncated, _ = self.env.step(action.flatten(0, 1))
            total, length = float(reward), 1
            if not (terminated | truncated):
                rest = self._from(next_obs.unsqueeze(0), torch.zeros_like(first), next_carry)
                total, length = total + rest[0], 1 + rest[1]
                changed += rest[2]
            worst = min(worst, (total, length, changed), key=lambda course: course[0])
        return worst

    def _options(self, obs, first, carry, shown, changed):
        """All that can be done at a step: (action, carry, changed decisions)."""
        undecided = [head for head in self.heads if head not in shown]
        found = []

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if head in shown:
                return scores.best(shown[head])
            if undecided and head == undecided[0]:
                found.append(self._reach(obs, scores, deciding))
            return scores.best(obs)

        action, next_carry = self.policy.act(obs, first, carry, choose)
        if not undecided:
            yield action, next_carry, changed
            return
        for moved, flipped in found[0]:
            further = {**shown, undecided[0]: moved}
            yield from self._options(obs, first, carry, further, changed + flipped)

    def _reach(self, obs, scores, deciding):
        """The observations that force something, and whether they change the decision."""
        boxes = Boxes.of(self.space, torch.full(obs.shape[2:], float(self.radius)))
        budget = boxes.around(obs, torch.ones(obs.shape[:2]))
        reach = reachable(scores, obs, budget, torch.empty, steps=2, samples=0)
        if not deciding:
            return [(obs, 0)]
        choices = reach.mask[0, 0].nonzero().flatten().tolist()
        clean = scores.best(obs)
        found = []
        for choice in choices:
            moved = reach.obs[:, :, choice]
            far = (scores.best(moved) - clean).abs().amax()
            found.append((moved, int(far > 0.05 * (1 if scores.continuous else 0))))
        return found


def every_lowest(policies, heads, eps, episodes=EPISODES):
    """(returns, lengths, changed decisions) [S, E, P] of the plain reference."""
    found = np.array(
        [
            [
                [
                    Everything(policies, row, heads, radius).lowest(REPORT + episode)
                    for episode in range(episodes)
                ]
                for radius in eps
            ]
            for row in range(len(SEEDS))
        ]
    )
    return found[..., 0], found[..., 1], found[..., 2]


def alike(one, other):
    """Whether nearly all episodes have the same return: rounding may break a tie."""
    return np.isclose(one, other, rtol=1e-5, atol=1e-5).mean() > 0.85


@pytest.mark.rounding
def test_all_courses_are_followed_of_a_policy_with_one_head():
    policies = opened()
    played = planned().play(game(policies), modes(policies))["action"]
    returns, lengths, changed = every_lowest(policies, ("action",), EPS)
    assert alike(played.returns, returns)
    assert alike(played.lengths, lengths)
    assert alike(played.flips["action"], changed)
    np.testing.assert_array_equal(played.decisions["action"], played.lengths)
    assert played.exact.all() and played.settled
    assert (returns[:, 2] < returns[:, 0] - 0.5).sum() > 1, "there is something to find"
    assert (
        np.array_equal(played.truncated, played.lengths == 6)
        or ((played.lengths == 6) >= played.truncated).all()
    )


@pytest.mark.rounding
@pytest.mark.parametrize("mode", ["goal", "action", "both"])
def test_heads_that_are_left_alone_are_counted_as_deciding(mode):
    """So that the share of flipped decisions is of the same decisions, whoever moved them."""
    policies = opened("hdqn", max_episode_steps=4)
    for found in (
        planned().play(game(policies, EPS[:2]), modes(policies, mode))[mode],
        sweep(game(policies, EPS[:2]), FGSM("margin", None), modes(policies, mode))[mode],
    ):
        np.testing.assert_array_equal(found.decisions["action"], found.lengths)
        assert (found.decisions["goal"] >= 1).all()
        assert (found.decisions["goal"] <= found.lengths).all()
        assert set(found.flips) == ({"goal", "action"} if mode == "both" else {mode})


@pytest.mark.parametrize("mode", ["goal", "action", "both"])
def test_all_courses_are_followed_of_a_policy_with_two_heads(mode):
    policies = opened("hdqn", max_episode_steps=4)
    eps = [0.3]
    chosen = modes(policies, mode)
    played = planned().play(game(policies, eps), chosen)[mode]
    returns, _, _ = every_lowest(policies, chosen[mode].heads, eps)
    assert alike(played.returns, returns)
    assert played.exact.all()


@pytest.mark.rounding
def test_both_heads_at_once_find_what_neither_finds_alone():
    """Of all modes together, where the single heads' plans come first."""
    policies = opened("hdqn", max_episode_steps=4)
    eps = [0.02, 0.1, 0.3]
    played = planned().play(game(policies, eps), modes(policies))
    returns, _, _ = every_lowest(policies, ("goal", "action"), eps)
    assert alike(played["both"].returns, returns)
    alone = np.minimum(played["goal"].returns, played["action"].returns)
    assert (played["both"].returns <= alone).all()


class Trap(Policy):
    """Goal 1 is chosen where the place looks .05 too far right; action 0 only under goal 1, where
    it looks .05 too far left."""

    heads = ("goal", "action")

    def __init__(self):
        super().__init__()
        self.register_buffer("row", torch.zeros(len(SEEDS)))

    def initial_carry(self, batch):
        return {}

    def act(self, obs, first, carry, choose=greedy):
        def off(seen):
            return seen[..., 0] - obs[..., 0]

        deciding = torch.ones_like(first)
        towards = Scores(lambda seen: torch.stack([0.05 - off(seen), off(seen) - 0.05], -1))
        goal = choose("goal", obs, towards, deciding)

        def by_goal(seen):
            fragile = torch.stack([-0.05 - off(seen), 0.05 + off(seen)], -1)
            return torch.where(goal.bool().unsqueeze(-1), fragile, torch.tensor([0.0, 9.0]))

        return choose("action", obs, Scores(by_goal), deciding), carry

    def scores(self, obs, carry, head):
        raise NotImplementedError


@pytest.mark.rounding
def test_a_head_that_only_another_heads_attack_exposes_is_attacked_too():
    policies = replace(opened(), policy=Trap())
    played = planned().play(game(policies, [0.02, 0.1]), modes(policies))
    harmless = clean(policies).returns.numpy()[:, None]
    for name in ("goal", "action"):
        assert np.allclose(played[name].returns, harmless), "neither head alone can do anything"
    returns, _, _ = every_lowest(policies, ("goal", "action"), [0.02, 0.1])
    assert (returns[:, 1] < harmless[:, 0] - 0.5).any()
    assert alike(played["both"].returns, returns)
    assert played["both"].exact.all()


@pytest.mark.rounding
def test_all_courses_are_followed_of_continuous_actions():
    policies = opened("ppo", smooth=True, max_episode_steps=3)
    eps = [0.1, 0.3]
    played = planned().play(game(policies, eps), modes(policies))["action"]
    returns, _, _ = every_lowest(policies, ("action",), eps)
    assert alike(played.returns, returns)
    assert played.exact.all()
    harmed = clean(policies).returns.numpy()[:, None] - played.returns
    assert harmed.mean() > 0.01, "there is something to find"


@pytest.mark.rounding
@pytest.mark.parametrize("agent", ["dqn", "hdqn", "ppo"])
def test_few_courses_find_no_more_than_all_and_no_less_than_none(agent):
    policies = opened(agent)
    everything = planned().play(game(policies), modes(policies))
    few = planned(width=2).play(game(policies), modes(policies))
    harmless = clean(policies).returns.numpy()[:, None]
    for name, played in few.items():
        assert (played.returns >= everything[name].returns - 1e-5).mean() > 0.9
        assert (played.returns <= harmless + 1e-5).mean() > 0.9
        assert (played.returns <= played.halved).all(), "what half found counts too"
        assert (np.diff(played.returns, axis=1) <= 0).all(), "larger radii may use what smaller do"
        assert not played.exact[everything[name].returns < played.returns - 1e-5].any()


@pytest.mark.rounding
@pytest.mark.parametrize("agent, smooth", [("dqn", False), ("hdqn", False), ("ppo", True)])
def test_radius_zero_is_clean_play_and_needs_no_search(agent, smooth):
    policies = opened(agent, smooth=smooth)
    alone = clean(policies)
    for played in planned(width=2).play(game(policies, [0.0]), modes(policies)).values():
        assert alike(played.returns[:, 0], alone.returns.numpy())
        assert alike(played.lengths[:, 0], alone.lengths.numpy())
        assert np.array_equal(played.truncated[:, 0], alone.truncated.numpy())
        assert all((flips == 0).all() for flips in played.flips.values())
        assert played.settled and played.exact.all()


def test_radii_may_come_in_any_order():
    policies = opened()
    rising = planned(width=4).play(game(policies, [0.05, 0.1, 0.3]), modes(policies))["action"]
    mixed = planned(width=4).play(game(policies, [0.3, 0.05, 0.1]), modes(policies))["action"]
    for read in (lambda one: one.returns, lambda one: one.flips["action"]):
        np.testing.assert_array_equal(read(mixed), read(rising)[:, [2, 0, 1]])


@pytest.mark.rounding
def test_to_know_the_lowest_reward_only_saves_work():
    known = planned().play(game(opened()), {"action": Mode(("action",), False)})["action"]
    unknown = planned().play(game(opened(known=False)), {"action": Mode(("action",), False)})
    assert alike(known.returns, unknown["action"].returns)
    assert alike(known.lengths, unknown["action"].lengths)


@pytest.mark.rounding
@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_chunks_change_nothing_where_no_course_is_dropped(agent):
    policies = opened(agent)
    whole = planned(64).play(game(policies), modes(policies))["action"]
    chunked = planned(64).play(game(policies, max_num_envs=1), modes(policies))["action"]
    assert alike(whole.returns, chunked.returns)
    assert alike(whole.flips["action"], chunked.flips["action"])
    assert whole.exact.all() and chunked.exact.all()


@pytest.mark.rounding
def test_an_episode_with_few_courses_loses_none_to_another_with_many():
    """Two guides agree, so that each of them leads the same half of the width."""
    policies = opened(known=False)

    def run(episodes):
        guides = [lambda nodes, radius, time: -nodes.total] * 2
        search = Search(game(policies), ("action",), 2, 0, guides)
        resets = (REPORT + torch.tensor(episodes)).expand(len(SEEDS), -1)
        return search.run(resets, torch.full((len(episodes),), 0.3), 8)

    together = run(range(10))
    alone = [run([episode]) for episode in range(10)]
    exact = torch.cat([worst.exact for worst in alone], 1)
    assert 15 < exact.sum() < 20, "some episode has more courses than eight"
    assert (together.exact == exact).float().mean() > 0.9
    assert alike(together.returns, torch.cat([worst.returns for worst in alone], 1))


class Narrow(Policy):
    """Action 0 only where the place looks .05 to .15 too far right: a long step jumps over it."""

    initial_carry = Trap.initial_carry
    scores = Trap.scores

    def __init__(self):
        super().__init__()
        self.register_buffer("row", torch.zeros(len(SEEDS)))

    def act(self, obs, first, carry, choose=greedy):
        def by_place(seen):
            off = seen[..., 0] - obs[..., 0]
            return torch.stack([0.05 - (off - 0.1).abs(), 0 * off], -1)

        return choose("action", obs, Scores(by_place), torch.ones_like(first)), carry


def test_a_larger_radius_uses_what_was_found_at_a_smaller_one():
    policies = replace(opened(), policy=Narrow())
    alone = planned(steps=1).play(game(policies, [0.5]), modes(policies))["action"]
    harmless = clean(policies).returns.numpy()
    assert np.allclose(alone.returns[:, 0], harmless), "nothing is found at the larger radius"
    both = planned(steps=1).play(game(policies, [0.5, 0.1]), modes(policies))["action"]
    assert (both.returns[:, 1] < harmless - 0.5).any()
    for read in (lambda one: one.returns, lambda one: one.lengths, lambda one: one.flips["action"]):
        assert np.array_equal(read(both)[:, 0], read(both)[:, 1])


class Obedient(Narrow):
    """The action is the goal, whatever it sees; the goal is chosen as `Narrow` chooses actions."""

    heads = ("goal", "action")

    def act(self, obs, first, carry, choose=greedy):
        goal, carry = super().act(obs, first, carry, lambda head, *rest: choose("goal", *rest))
        by_goal = Scores(lambda seen: torch.nn.functional.one_hot(goal, 2) + 0 * seen[..., :1])
        return choose("action", obs, by_goal, torch.ones_like(first)), carry


@pytest.mark.rounding
def test_both_heads_are_as_converged_as_the_only_one_that_can_be_moved():
    policies = replace(opened(), policy=Obedient())
    found = planned(steps=3).play(game(policies, [0.2]), modes(policies))
    harmless = clean(policies).returns.numpy()
    assert np.allclose(found["goal"].halved[:, 0], harmless)
    assert (found["both"].returns[:, 0] < harmless - 0.5).any()
    for read in (lambda one: one.returns, lambda one: one.halved):
        assert np.array_equal(read(found["both"]), read(found["goal"]))


@pytest.mark.rounding
def test_half_of_the_effort_has_half_of_the_steps_and_all_of_it_looks_again():
    """One step sees nothing to force, and so follows all courses there are; three see more."""
    policies = replace(opened(), policy=Narrow())
    found = planned(steps=3).play(game(policies, [0.2]), modes(policies))["action"]
    harmless = clean(policies).returns.numpy()
    assert np.allclose(found.halved[:, 0], harmless)
    assert (found.returns[:, 0] < harmless - 0.5).any()
    assert found.exact.all()


def test_envs_that_cannot_be_planned_in_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="is random: a plan would know the dice"):
        planned().check(game(opened(noisy=True)), {})
    stacked = opened(stack=2)
    with pytest.raises(ConfigError, match=r"stacks observations \(env.stack\)"):
        planned().check(game(stacked), {})
    with pytest.raises(ConfigError, match=r"effort.width=1000000000000: .* of memory"):
        planned(10**12).check(game(opened()), {})
    seen = opened(observe=[0])
    assert (
        planned()
        .play(replace(game(seen), scale=np.array([1.0])), modes(seen))["action"]
        .exact.all()
    )


QUICK = ("attack=planned", "eps=0.05", "episodes=2", "scale=std")


def test_the_command_line_refuses_in_one_line(rlx, tiny_runs):
    cartpole = tiny_runs / "train/dqn-cartpole"
    refused = rlx("attack", cartpole, *QUICK, "effort.width=1000000000000")
    assert refused.code == 2 and "effort.width=1000000000000" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    short = ("steps=300", "eval_every=300", "eval_episodes=1", "final_episodes=1", "seeds=1")
    small = ("agent=dqn", "agent.hidden=[8]", "agent.learning_starts=200")
    for env, words in (
        (["env=gym", "env.id=CartPole-v1"], "cannot be copied"),
        (["env=cartpole", "env.stack=2"], "env.stack"),
    ):
        run = rlx("train", *short, *small, *env).run
        refused = rlx("attack", run, *QUICK)
        assert refused.code == 2 and words in refused.err
        assert len(refused.err.strip().splitlines()) == 1


class OnlyWhatCudaHas(TorchDispatchMode):
    """Raises where a reduction is asked for bool, which the CPU computes and CUDA refuses."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket == torch.ops.aten.scatter_reduce:
            assert args[0].dtype != torch.bool, function
        return function(*args, **(kwargs or {}))


def test_a_search_asks_for_nothing_that_cuda_lacks():
    policies = opened("hdqn")
    with OnlyWhatCudaHas():
        planned(width=2).play(game(policies), modes(policies))


def traced(policies, width, holds=None):
    """The nodes at each step of a search of ten episodes, and the worst courses."""
    search = Search(
        game(policies), ("action",), 2, 0, [lambda nodes, *_: -nodes.total], holds=holds
    )
    resets = (REPORT + torch.arange(10)).expand(len(SEEDS), -1)
    trace = Trace()
    worst = search.run(resets, torch.full((10,), 0.3), width, trace=trace)
    return trace, worst


@pytest.mark.parametrize("width", [2, ALL])
def test_a_trace_says_how_low_each_node_led(width):
    trace, worst = traced(opened(known=False), width)
    steps = list(trace.lowest())
    assert [step for step, _, _ in steps] == list(reversed(range(len(steps))))
    _, _, lowest = steps[-1]
    assert torch.equal(lowest, worst.returns), "where an episode begins, it is its worst course"
    for step, nodes, lowest in steps:
        followed = nodes.alive & lowest.isfinite()
        assert (lowest >= worst.returns.gather(1, nodes.column))[followed].all()
        # A node leads to what the lowest of its children leads to.
        parents = trace.parent[step]
        if step:
            above = next(values for number, _, values in steps if number == step - 1)
            assert (above.gather(1, parents) <= lowest)[nodes.alive].all()


def test_in_crowded_episodes_a_choice_is_asked_for_as_long_as_it_is_held():
    policies = opened(known=False, max_episode_steps=12)
    hold = torch.tensor([1] * 5 + [4] * 5).expand(len(SEEDS), -1)
    trace, worst = traced(policies, 4, lambda radii: hold)
    changes = torch.zeros(2)  # of those that hold choices: elsewhere, and at their turn
    for step in range(1, len(trace.nodes)):
        nodes = trace.nodes[step]
        before = trace.nodes[step - 1]
        courses = torch.zeros_like(worst.returns, dtype=torch.int64)
        courses.scatter_add_(1, before.column, before.alive.long())
        assert (courses <= 4).all(), "no more nodes than the width"
        held = nodes.alive & (hold.gather(1, nodes.column) > 1)
        # From the fifth step on, all that are full were crowded before.
        held &= (courses >= 2).gather(1, nodes.column) & (step > 5)
        asked = nodes.wanted["action"]
        changed = held & (asked != before.wanted["action"].gather(1, trace.parent[step]))
        changes[int((step - 1) % 4 == 0)] += changed.sum()
    assert changes[0] == 0 and changes[1] > 0, changes


def test_lowest_of_each_is_what_sorting_each_column_gives():
    values = torch.rand(3, 40, dtype=torch.float64)
    column = torch.randint(0, 5, (3, 40))
    alive = torch.rand(3, 40) < 0.7
    most = torch.randint(0, 100, (3, 5)) % torch.tensor([2, 4, 6, 8, 100])
    for width in (1, 3, 100):
        most[:, 1] = width
        kept = lowest_of_each(values, column, alive, most)
        for seed in range(3):
            for number in range(5):
                nodes = [k for k in range(40) if alive[seed, k] and column[seed, k] == number]
                best = sorted(nodes, key=lambda k: float(values[seed, k]))
                best = best[: most[seed, number]]
                assert [k for k in nodes if kept[seed, k]] == sorted(best)
        assert not kept[~alive].any()


def test_packed_is_a_list_of_the_true_ones():
    mask = torch.rand(4, 30) < torch.tensor([0.0, 0.2, 0.5, 1.0]).unsqueeze(1)
    index, real = packed(mask)
    assert index.shape == (4, 30)
    for row in range(4):
        assert index[row][real[row]].tolist() == [k for k in range(30) if mask[row, k]]
    index, real = packed(torch.zeros(2, 5, dtype=torch.bool))
    assert index.tolist() == [[0], [0]] and not real.any()


@pytest.mark.rounding
def test_what_states_are_worth_is_learnt_for_each_policy_from_the_rows_that_count():
    """Policy 0 is worth −100 − 150 · x · radius, policy 1 the opposite, both less with time."""
    value = ReturnToGo(seed_tensor(SEEDS), 1, largest_radius=0.2)
    sign = torch.tensor([[1.0], [-1.0]])

    def worth(x, radius, time):
        return sign * (-100 - 150 * x * radius) * (1 - time)

    def row(count, time):
        x = torch.rand(2, count) * 2 - 1
        radius = torch.where(torch.rand(2, count) < 0.5, 0.1, 0.2)
        counts = torch.rand(2, count) < 0.5
        times = torch.full_like(x, time)
        rest = torch.where(counts, worth(x, radius, times), 1e6)
        return x.unsqueeze(-1), radius, times, rest.double(), counts

    value.fit([row(400, 0.0), row(300, 0.5)], 400)
    x = torch.linspace(-0.9, 0.9, 20).expand(2, -1)
    radius = torch.full_like(x, 0.2)
    for time in (0.0, 0.5):
        found = value(x.unsqueeze(-1), radius, time)
        expected = worth(x, radius, torch.full_like(x, time))
        assert (found - expected).abs().mean() < 3, "of values from 50 to 130"
