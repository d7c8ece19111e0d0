"""CarRacing's frames per second, Gymnasium's and rlx's, in one process and several."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from rlx import experiment
from rlx.benchmarks.timing import steps_per_s
from rlx.envs.car_racing import CarRacing

ID = "rlx.envs.car_racing:rlx/CarRacing-v3"
"""The id by which conf/env/car_racing.yaml makes it."""


def frames_per_s(node: Mapping[str, Any], num_envs: int, seconds: float) -> dict[str, float]:
    """The frames per second by label; Gymnasium's is the first, the gray image the second.

    `node` is the config of the env, of which `num_envs` copies are timed together.
    """
    rng = np.random.default_rng(0)
    speeds = {}
    for label, env in (
        ("Gymnasium, 1 env", gymnasium.make("CarRacing-v3")),
        ("rlx, 1 env, gray", CarRacing(continuous=True, gray=True)),
        ("rlx, 1 env, colour", CarRacing(continuous=True, gray=False)),
    ):
        speeds[label] = _driven(env, rng, seconds)
    repeat = node["kwargs"]["repeat"]
    for workers in (1, 2):
        label = f"rlx, {num_envs} env copies, {repeat} frames a step, {workers} process(es)"
        speeds[label] = _batched({**node, "workers": workers}, num_envs, seconds)
    return speeds


def _driven(env: gymnasium.Env, rng: np.random.Generator, seconds: float) -> float:
    """Frames per second of one env with random actions."""
    env.reset(seed=0)

    def step() -> int:
        action = rng.uniform([-0.5, 0, 0], [0.5, 1, 0.2]).astype(np.float32)
        for _ in range(10):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return 10

    return steps_per_s(step, seconds)


def _batched(node: Mapping[str, Any], num_envs: int, seconds: float) -> float:
    """Frames per second of a batch of envs, which all take the same action."""
    env = experiment.make_env(node, num_envs, "cpu")
    env.reset(seed=0)
    actions: Any = np.full(num_envs, 1)

    def step() -> int:
        env.step(actions)
        return num_envs * node["kwargs"]["repeat"]

    return steps_per_s(step, seconds)
