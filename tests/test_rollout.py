"""The evaluation loop: batched, shrinking, and still each episode as if it were played alone."""

import pytest
import torch

from rlx.evaluation import REPORT, episode_seeds, evaluate
from rlx.experiment import env_spec, make_agent, make_env
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import take
from rlx.rollout import rollout

CPU = torch.device("cpu")


@pytest.mark.rounding
@pytest.mark.parametrize("env", ["acrobot", "cartpole", "chain", "maze"])
@pytest.mark.parametrize("agent", ["dqn", "hdqn"])
def test_batched_equals_one_by_one(agent, env, composed):
    config = composed("train", f"agent={agent}", f"env={env}", "env.max_episode_steps=60")
    spec = env_spec(config.env)
    policy = make_agent(config.agent, spec, seed_tensor([4, 5, 6]), 1).policy
    reset = episode_seeds(REPORT, 7, 3, CPU)
    together = rollout(policy, make_env(config.env, 21, CPU), reset)
    assert together.lengths.max() <= 60 and together.truncated[together.lengths < 60].sum() == 0
    same = 0
    for s in range(3):
        for b in range(7):
            one = take(policy, torch.tensor([s]))
            alone = rollout(one, make_env(config.env, 1, CPU), reset[s : s + 1, b : b + 1])
            pairs = [
                (alone.returns, together.returns),
                (alone.lengths, together.lengths),
                (alone.truncated, together.truncated),
            ]
            same += all(bool(played[0, 0] == batched[s, b]) for played, batched in pairs)
    assert same >= 19, "of 21; a tie of two values may be broken by rounding"


def test_evaluation_repeats_and_the_adapter_agrees_with_the_native_env(composed):
    config = composed("train", "agent=dqn", "env=cartpole")
    policy = make_agent(config.agent, env_spec(config.env), seed_tensor([0, 1]), 1).policy
    first, again = (
        evaluate(policy, lambda n: make_env(config.env, n, CPU), 2, 20, REPORT, CPU)
        for _ in range(2)
    )
    assert torch.equal(first.returns, again.returns) and first.returns.std() > 0
    adapter = composed("train", "agent=dqn", "env=gym", "env.id=CartPole-v1")
    adapted = evaluate(policy, lambda n: make_env(adapter.env, n, CPU), 2, 20, REPORT, CPU)
    # Other start states, the same physics: an untrained policy's means agree within their error.
    error = (first.returns.var(1) / 20 + adapted.returns.var(1) / 20).sqrt() + 0.1
    assert ((first.returns.mean(1) - adapted.returns.mean(1)).abs() < 4 * error).all()
