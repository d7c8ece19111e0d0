"""What a box can do in clean play: the share of decisions, by head and radius."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_planned import SEEDS, Trap, Walk, game, opened

from rlx.agent import Policy, Scores, greedy
from rlx.envs.batched import BatchedEnv
from rlx.evaluation import SELECTION
from rlx.robustness.clean_states import EPISODES, look

EPS = [0.0, 0.2, 0.45, 2.0]


class Thermostat(Policy):
    """Steps right where the place is below 0, else left: two numbers, of which one counts.

    `blunt`: it sees the place in tenths, so that its scores have no gradient.
    """

    def __init__(self, blunt=False):
        super().__init__()
        self.blunt = blunt
        self.register_buffer("row", torch.zeros(len(SEEDS)))

    def initial_carry(self, batch):
        return {}

    def act(self, obs, first, carry, choose=greedy):
        def by_place(seen):
            place = seen[..., 0]
            if self.blunt:
                place = torch.floor(place * 10) / 10 + 0.05
            return torch.stack([place, -place], -1)

        return choose("action", obs, Scores(by_place), torch.ones_like(first)), carry

    def scores(self, obs, carry, head):
        raise NotImplementedError


def visited():
    """The places at which the thermostat decides in the episodes that are looked at."""
    env = BatchedEnv(Walk(), EPISODES)
    obs, _ = env.reset(seed=SELECTION)
    places = []
    for _ in range(Walk.max_episode_steps):
        places.append(obs[:, 0])
        obs, *_ = env.step((obs[:, 0] < 0).long())
    return torch.cat(places).numpy()


def test_the_share_of_decisions_within_the_radius_of_a_threshold():
    states = look(game(replace(opened(), policy=Thermostat()), EPS))
    expected = [(np.abs(visited()) < radius).mean() for radius in EPS]
    assert expected[0] == 0 and expected[3] == 1 and 0.2 < expected[1] < expected[2] < 1
    np.testing.assert_allclose(states.movable["action"], expected, atol=1e-6)
    assert states.flat == {"action": 0.0}


def test_the_scale_is_that_of_each_component():
    attacked = replace(game(replace(opened(), policy=Thermostat()), EPS), scale=np.array([0.5, 1]))
    expected = [(np.abs(visited()) < radius / 2).mean() for radius in EPS]
    np.testing.assert_allclose(look(attacked).movable["action"], expected, atol=1e-6)


def test_scores_without_gradient_are_counted_and_chance_still_finds_some():
    states = look(game(replace(opened(), policy=Thermostat(blunt=True)), EPS))
    assert states.flat == {"action": 1.0}
    # Half of the corners are on the other side: 15 of 16 decisions have one of four there.
    assert 0.85 < states.movable["action"][3] < 1


def test_each_head_is_looked_at_where_the_policy_goes_by_itself():
    """The trap's action can be moved only under a goal that it does not choose by itself."""
    states = look(game(replace(opened(), policy=Trap()), [0.0, 0.04, 0.1]))
    np.testing.assert_array_equal(states.movable["goal"], [0, 0, 1])
    np.testing.assert_array_equal(states.movable["action"], [0, 0, 0])


@pytest.mark.parametrize("agent, smooth", [("dqn", False), ("hdqn", False), ("ppo", True)])
def test_a_larger_radius_moves_more_and_none_moves_nothing(agent, smooth):
    policies = opened(agent, smooth=smooth)
    states = look(game(policies, [0.0, 0.05, 0.2, 0.6]))
    assert set(states.movable) == set(policies.policy.heads)
    for head, shares in states.movable.items():
        assert shares[0] == 0
        assert (np.diff(shares) >= -0.02).all() and shares[-1] <= 1, head
    assert max(shares[-1] for shares in states.movable.values()) > 0.1
    assert all(share < 0.01 for share in states.flat.values())


def test_stacked_observations_are_not_looked_at():
    states = look(game(opened(stack=2), [0.1]))
    assert states.movable == {} and states.flat == {}
