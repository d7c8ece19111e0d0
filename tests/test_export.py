"""ONNX files decide as their policies do."""

import pytest
import torch
from conftest import AGENTS, compose, small

from rlx.config import load_class
from rlx.experiment import env_spec, make_env
from rlx.onnx import Exported, compare

MODELS = [(agent, "cartpole") for agent in AGENTS if agent not in ("q_table", "self_play")]
MODELS += [("q_table", "chain"), ("self_play", "tic_tac_toe"), ("ppo", "pendulum"), ("dqn", "cartpole_frames"), ("bcq", "cartpole_frames")]
RECURRENT = ("ppo", "cartpole", "agent.recurrent=8")


@pytest.mark.parametrize("parts", [*MODELS, RECURRENT], ids=lambda parts: "-".join(parts))
def test_every_policy_can_be_exported(parts, tmp_path):
    agent, env, *more = parts
    config = compose("train", f"agent={agent}", f"env={env}", *small(agent), *more)
    spec = env_spec(config.env)
    from rlx.agent import Agent
    from rlx.config import build

    kind = load_class(config.agent, "agent", Agent)
    policy = kind.policy_type(build(kind.config_type, config.agent, "agent"), spec, torch.tensor([3, 5]))
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    exported = Exported(policy.requires_grad_(False), spec, 1)
    exported.write(tmp_path / "policy.onnx", {"run": "here"})
    worst, same, _ = compare(exported, tmp_path / "policy.onnx", make_env(config.env, 3, "cpu"), 40)
    assert same >= 0.99 and worst < 1e-3
