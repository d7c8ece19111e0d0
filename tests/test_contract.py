"""What somebody's agent or env returns is checked before anything is written."""

import sys
import textwrap
from pathlib import Path

import pytest
from conftest import TINY

LEARN = ("agent.learning_starts=64", "agent.hidden=[8]")

POLICY = """
from rlx.agents import dqn

class Policy(dqn.QPolicy):
    def act(self, *arguments, **options):
        action, carry = super().act(*arguments, **options)
        return {}

class Mine(dqn.DQN):
    policy_type = Policy

    def __init__(self, config, spec, seeds, copies):
        super().__init__(config, spec, seeds, copies)
        self.policy.__class__ = Policy
"""

AGENT = """
from rlx.agents import dqn

class Mine(dqn.DQN):
    def {}
"""

CLASSES = {
    "float actions": (POLICY.format("action.float(), carry"), "expected int64 [1, 4]", False),
    "no carry": (POLICY.format("action"), "expected (action, carry)", False),
    "a short carry": (
        POLICY.format("action, dict(x=action[:, :1])"),
        "carry 'x' is int64 [1, 1]",
        False,
    ),
    "a float metric": (
        AGENT.format("update(self, t): return dict(x=1.0)"),
        "metric 'x' is a float",
        True,
    ),
    "too few actions": (
        AGENT.format("act(self, *a): action, carry = super().act(*a); return action[:, :1], carry"),
        "action is int64 [1, 1]",
        True,
    ),
}


def provide(folder: Path, group: str, name: str, text: str, yaml: str) -> None:
    """One Python file and one YAML file of a user's."""
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    (folder / "conf" / group).mkdir(parents=True)
    (folder / "conf" / group / "mine.yaml").write_text(yaml)


@pytest.mark.parametrize("case", CLASSES)
def test_what_an_agent_returns_is_checked(case, rlx, tmp_path, monkeypatch):
    text, message, begun = CLASSES[case]
    name = case.replace(" ", "_")
    monkeypatch.setattr(sys, "path", [*sys.path])
    provide(tmp_path, "agent", name, text, f"defaults: [dqn, _self_]\n_target_: {name}.Mine\n")
    result = rlx("train", "agent=mine", "env=cartpole", *TINY, *LEARN, "seeds=1")
    assert result.code == (1 if begun else 2) and message in result.err, result.err
    assert (tmp_path / "outputs").exists() == begun


DYNAMICS = {
    "observe(self, state): return state.double()": "observation is float64",
    "observe(self, state): return state[:, :2]": "float32 [1, 2]; expected float32 [1, 4]",
    "initial(self, draws): return draws * float('nan')": "holds a number that is not finite",
    "transition(self, s, a, d): return s, s[:, 0], s[:, 0]": "Mine's step raised",
    "transition(self, s, a, d): return s, s[:, 0] * float('nan'), s[:, 0] > 9": "reward is nan",
}


@pytest.mark.parametrize("method", DYNAMICS)
def test_what_an_env_returns_is_checked(method, rlx, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"env{list(DYNAMICS).index(method)}"
    text = f"""
    from dataclasses import dataclass
    from rlx.envs.cartpole import CartPole

    @dataclass(frozen=True)
    class Mine(CartPole):
        def {method}
    """
    provide(tmp_path, "env", name, text, f"_target_: {name}.Mine\n")
    result = rlx("train", "agent=dqn", "env=mine", *TINY, *LEARN, "seeds=1")
    assert result.code == 2 and DYNAMICS[method] in result.err and "Mine" in result.err, result.err
    assert not (tmp_path / "outputs").exists()
