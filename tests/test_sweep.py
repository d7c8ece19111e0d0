"""A sweep's batch is only a way to be fast: every cell is what it would be alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlx.attacks.fgsm import FGSM
from rlx.attacks.noise import Noise
from rlx.attacks.pgd import PGD
from rlx.evaluation import REPORT, evaluate
from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import take
from rlx.policies import Opened
from rlx.robustness.observations import ObservationSpread
from rlx.robustness.sweep import Game, Played, sweep

CPU = torch.device("cpu")
EPS = [0.0, 0.05, 0.2]
SCALE = np.array([1, 1, 1, 1, 12.6, 28.3])
ATTACKS = [FGSM("ce", None), PGD("margin", None, 3, 0.5, 2, True), Noise("uniform", 1.0, True)]


@pytest.fixture
def study(composed):
    config = composed(
        "train", "agent=hdqn", "env=acrobot", "env.max_episode_steps=50", "agent.hidden=[16]"
    )
    spec = env_spec(config.env)
    policy = make_agent(config.agent, spec, seed_tensor([4, 9]), 1).policy.requires_grad_(False)
    for parameter in policy.parameters():
        parameter *= 3  # decisions that depend on the observation
    return Opened(policy, spec, [4, 9], dict(config.env), 0, CPU)


def play(study, attack, modes=None, eps=EPS, seeds=(4, 9), max_num_envs=1000, policy=None):
    opened = replace(study, policy=policy or study.policy, seeds=list(seeds))
    game = Game(opened, eps, SCALE, 4, REPORT, max_num_envs)
    return sweep(game, attack, modes or dict(attack.modes(study.policy.heads)))


def alike(one, other, share=0.9):
    """Whether two plays of the same episodes are alike, but for a few ties that rounding broke."""
    if np.isclose(one.returns, other.returns, rtol=1e-9).mean() < share:
        return False
    for head, decisions in other.decisions.items():
        if abs(one.decisions[head] - decisions).sum() > (1 - share) * decisions.sum():
            return False
    for head, flips in other.flips.items():
        if abs(one.flips[head] - flips).sum() > (1 - share) * max(20, flips.sum()):
            return False
    return True


@pytest.mark.rounding
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)
def test_batched_equals_looped(attack, study):
    whole = play(study, attack)
    chunked = play(study, attack, max_num_envs=7)
    for name, mode in attack.modes(study.policy.heads).items():
        assert alike(chunked[name], whole[name])
        cells = [
            [
                play(
                    study,
                    attack,
                    {name: mode},
                    [eps],
                    [seed],
                    policy=take(study.policy, torch.tensor([row])),
                )[name]
                for eps in EPS
            ]
            for row, seed in enumerate((4, 9))
        ]

        def joined(read, cells=cells):
            rows = [np.concatenate([read(cell) for cell in row], 1) for row in cells]
            return np.concatenate(rows)

        looped = Played(
            returns=joined(lambda cell: cell.returns),
            lengths=joined(lambda cell: cell.lengths),
            truncated=joined(lambda cell: cell.truncated),
            decisions={
                head: joined(lambda cell, head=head: cell.decisions[head])
                for head in study.policy.heads
            },
            flips={head: joined(lambda cell, head=head: cell.flips[head]) for head in mode.heads},
        )
        assert alike(looped, whole[name])


@pytest.mark.rounding
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)
def test_radius_zero_is_the_clean_evaluation(attack, study):
    clean = evaluate(study.policy, study.make_env, 2, 4, REPORT, CPU)
    for played in play(study, attack).values():
        equal = (played.returns[:, 0] == clean.returns.numpy()).sum()
        assert equal >= 7, "of 8; a tie may be broken by rounding"
        for flips in played.flips.values():
            assert flips[:, 0].sum() == 0, "the same observation, in the same batch"


def test_flips_count_only_attacked_heads_and_decisions_taken(study):
    played = play(study, PGD("margin", None, 3, 0.5, 1, False))
    assert set(played["goal"].flips) == {"goal"} and set(played["both"].flips) == {"goal", "action"}
    for mode in played.values():
        for head, flips in mode.flips.items():
            assert (flips <= mode.decisions[head]).all() and flips[:, 2].sum() > 0
            assert head == "goal" or np.array_equal(mode.decisions[head], mode.lengths)
    # An untrained controller seldom does its goal, so goals last.
    assert (played["goal"].decisions["goal"] < played["goal"].lengths).all()


def test_heads_share_a_sensor_in_mode_same_only(study):
    perturbations = {}

    class Spy(Noise):
        def perturb(self, scores, obs, budget, draw):
            moved = super().perturb(scores, obs, budget, draw)
            perturbations.setdefault(current[0], []).append((moved - obs)[:, :, 0].clone())
            return moved

    current = [""]
    attack = Spy("uniform", 1.0, True)
    for name, mode in attack.modes(study.policy.heads).items():
        current[0] = name
        play(study, attack, {name: mode}, [0.01])
    assert torch.equal(*perturbations["same"][:2])
    assert not torch.equal(*perturbations["diff"][:2])


@pytest.mark.rounding
def test_visited_std_is_that_of_the_played_observations(study):
    policy, env = study.policy, study.make_env
    spread = ObservationSpread("action")
    evaluate(policy, env, 2, 4, REPORT, CPU, spread.make_choose)
    one = env(8)
    obs = one.reset(seed=[REPORT + e for e in range(4)] * 2)[0].unflatten(0, (2, 4))
    first = torch.ones(2, 4, dtype=torch.bool)
    alive = torch.ones(2, 4, dtype=torch.bool)
    carry = policy.initial_carry(4)
    visited = []
    while alive.any():
        action, carry = policy.act(obs, first, carry)
        visited.append(obs[alive])
        next_obs, _, terminated, truncated, _ = one.step(action.flatten())
        obs = next_obs.unflatten(0, (2, 4))
        first = (terminated | truncated).view(2, 4)
        alive &= ~first
    expected = torch.cat(visited).std(0, correction=0).numpy()
    np.testing.assert_allclose(spread.std(), expected, rtol=1e-4)
