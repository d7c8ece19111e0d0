"""Envs that raise within a vector sweep: the job whose env it is drops out, the others go on."""

import gymnasium
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from test_vector import PPO, VECTOR, assert_same, jobs

from rlx.evaluation import SELECTION
from rlx.nn.rng import reset_seeds, seed_tensor

NUM_ENVS = 4
BAD = set(reset_seeds(seed_tensor([3], "cpu"), NUM_ENVS, "env").flatten().tolist()[1:2])
"""What a copy of seed 3 is reset with."""


class Fragile(CartPoleEnv):
    """CartPole, of which the copies of `BAD` break at one of their steps."""

    def __init__(self, breaks_at: int = 0):
        super().__init__()
        self.breaks_at = breaks_at
        self.bad = False
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        self.bad = self.bad or seed in BAD
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.bad and self.steps == self.breaks_at:
            raise ValueError("left its rails")
        return super().step(action)


if "Fragile-v0" not in gymnasium.registry:
    gymnasium.register("Fragile-v0", Fragile, max_episode_steps=500)
WORDS = (*PPO, "env=gym", "env.id=Fragile-v0", f"num_envs={NUM_ENVS}")


@pytest.mark.rounding
@pytest.mark.parametrize("breaks_at", [20, 150])
def test_the_job_whose_env_raises_drops_out_alone(breaks_at, rlx):
    """Before the first checkpoint, which is saved after 64 steps of each copy, and behind it."""
    words = (*WORDS, "env.workers=1", f"env.kwargs={{breaks_at: {breaks_at}}}")
    assert rlx("train", "-m", *words, "seeds=0:2,5:7", "outputs=alone").code == 0
    words = (*words, "seeds=0:2,2:4,5:7", "outputs=batch")
    result = rlx("train", "-m", *words, VECTOR)
    assert result.code == 1 and "left its rails" in result.err
    assert "one of the batch drops out: env.id=Fragile-v0: step(" in result.out
    states = {job.settings["seeds"]: job.status for job in jobs("batch")}
    assert states == {"0:2": "completed", "2:4": "failed", "5:7": "completed"}
    alone = {job.id: job.run for job in jobs("alone")}
    for job in jobs("batch"):
        if job.finished:
            assert_same(alone[job.id].path, job.run.path)


def test_an_env_that_raises_in_an_evaluation_drops_its_job_out(rlx, monkeypatch):
    begun = []

    def reset(self, *, seed=None, options=None):
        if seed == SELECTION:  # the first episode of each seed, one after the other
            begun.append(self)
        return CartPoleEnv.reset(self, seed=seed, options=options)

    def step(self, action):
        if len(begun) > 2 and self is begun[2]:
            raise ValueError("left its rails")
        return CartPoleEnv.step(self, action)

    monkeypatch.setattr(Fragile, "reset", reset)
    monkeypatch.setattr(Fragile, "step", step)
    result = rlx("train", "-m", *WORDS, "env.workers=1", "seeds=0:2,2:4", VECTOR)
    assert result.code == 1, result.err
    states = {job.settings["seeds"]: job.status for job in jobs()}
    assert states == {"0:2": "completed", "2:4": "failed"}
