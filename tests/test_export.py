"""ONNX files decide as their policies do."""

from pathlib import Path

import pytest
import torch
from conftest import AGENTS, TINY, compose, small

from rlx.agent import Agent
from rlx.config import build, load_class
from rlx.errors import ConfigError
from rlx.experiment import env_spec, make_env
from rlx.onnx import Exported, compare

MODELS = [
    (agent, "cartpole")
    for agent in AGENTS
    if agent not in ("q_table", "self_play", "efficientzero")
]
MODELS += [
    ("q_table", "chain"),
    ("self_play", "tic_tac_toe"),
    ("hdqn_regions", "acrobot"),
    ("ppo", "pendulum"),
    ("dqn", "cartpole_frames"),
    ("bcq", "cartpole_frames"),
]
RECURRENT = ("ppo", "cartpole", "agent.recurrent=8")


@pytest.mark.parametrize("parts", [*MODELS, RECURRENT], ids=lambda parts: "-".join(parts))
def test_every_policy_can_be_exported(parts, tmp_path):
    agent, env, *more = parts
    config = compose("train", f"agent={agent}", f"env={env}", *small(agent), *more)
    spec = env_spec(config.env)
    kind = load_class(config.agent, "agent", Agent)
    settings = build(kind.config_type, config.agent, "agent")
    policy = kind.policy_type(settings, spec, torch.tensor([3, 5]))
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    exported = Exported(policy.requires_grad_(False), spec, 1)
    exported.write(tmp_path / "policy.onnx", {"run": "here"})
    result = compare(exported, tmp_path / "policy.onnx", make_env(config.env, 3, "cpu"), 40)
    assert result.equal >= 0.99 and result.difference < 1e-3


def test_the_command_line(tiny_runs, rlx, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    result = rlx("export", tiny_runs / "train/dqn-cartpole", "seed=1", "policy.onnx")
    assert result.code == 0 and "100.00% of the actions equal" in result.out, result.err
    session = onnxruntime.InferenceSession("policy.onnx")
    assert session.get_inputs()[0].shape == ["batch", 4]
    assert session.get_outputs()[1].shape == ["batch", 2]
    assert session.get_modelmeta().custom_metadata_map["seed"] == "1"
    for arguments, message in (
        (("policy.onnx", "more.onnx", "x.onnx"), "name the file last"),
        ((tiny_runs,), "name the file last"),
        ((tiny_runs / "train/dqn-cartpole", "nowhere/p.onnx"), "cannot be written"),
        ((tiny_runs / "train/dqn-cartpole", "seed=9", "p.onnx"), "has seeds 0–1"),
    ):
        result = rlx("export", *arguments)
        assert result.code == 2 and message in result.err, (arguments, result.err)


class Shifting(Exported):
    """A policy with an operation that torch's exporter has no translation of."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.memory = ()
        self.inputs = ["obs"]
        self.outputs = ["action"]

    def forward(self, obs):
        return (torch.ones_like(obs) << obs,)

    def example(self, batch):
        return (torch.zeros(batch, 3, dtype=torch.int64),)


class Branching(Shifting):
    """A policy whose course depends on what it sees."""

    def forward(self, obs):
        return (obs + 1,) if obs.sum() > 0 else (obs,)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Shifting, "ONNX has no aten.__lshift__"),
        (Branching, "Could not guard on data-dependent expression"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(policy, reason, tmp_path):
    start = r"^export: torch\.onnx cannot write this policy \("
    with pytest.raises(ConfigError, match=start + reason) as raised:
        policy().write(tmp_path / "policy.onnx", {})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_search_is_not_exported(rlx):
    short = ("seeds=1", "steps=8", "eval_every=8")
    sizes = small("efficientzero")
    run = rlx("train", "agent=efficientzero", "env=cartpole", *TINY, *sizes, *short).run
    result = rlx("export", run, "policy.onnx")
    assert result.code == 2 and "decides by a search" in result.err
    assert not Path("policy.onnx").exists()
