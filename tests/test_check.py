"""`rlx check`: what rlx ships holds to the contracts, and each way to break one is named."""

from dataclasses import replace

import pytest
import torch
from conftest import AGENTS, ENVS, compose, small

from rlx.agents.bcq import BCQ
from rlx.agents.dqn import DQN, QPolicy
from rlx.checks.agents import agent_checks, fitting
from rlx.checks.envs import env_checks
from rlx.envs.cartpole import CartPole
from rlx.errors import ConfigError
from rlx.nn.optim import descend


@pytest.mark.parametrize("agent", AGENTS)
def test_agents_hold(agent):
    node = compose("train", f"agent={agent}", *small(agent)).agent
    env = fitting(node)
    assert len(list(agent_checks(node, compose("train", f"env={env}", *ENVS[env]).env))) >= 7


@pytest.mark.parametrize("env", [*ENVS, "catch", "maze", "taxi", "lunar_lander"])
def test_envs_hold(env):
    assert len(list(env_checks(compose("train", f"env={env}", *ENVS.get(env, ())).env))) == 6


class Mixing(DQN):
    """Sees rewards beside the mean over all seeds."""

    def update(self, transition):
        return super().update(
            replace(transition, reward=transition.reward - transition.reward.mean())
        )


class MixingObs(DQN):
    """Takes the mean over all seeds off its observations."""

    def update(self, transition):
        return super().update(replace(transition, obs=transition.obs - transition.obs.mean(0)))


class Averaging(DQN):
    """Has one loss for all seeds."""

    def update(self, transition):
        super().update(transition)
        value = self.online.q(transition.obs)
        descend(value.square().mean(), list(self.online.parameters()), self.learner.optimizer)
        return {}


class Crowd(QPolicy):
    """Takes the mean over seeds and env copies off what it sees."""

    def act(self, obs, *rest):
        return super().act(obs - obs.mean((0, 1)), *rest)


class MixingLogs(BCQ):
    """Takes the mean of all parameters over the seeds."""

    def learn(self):
        metrics = super().learn()
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.copy_(parameter.mean(0, keepdim=True).expand_as(parameter))
        return metrics


class Raising(DQN):
    """Has a mistake in it."""

    def update(self, transition):
        return transition.rewards


class Forgetful(DQN):
    """Counts its steps where no checkpoint sees it."""

    steps = 0

    def act(self, obs, first, carry):
        self.steps += 1
        action, carry = super().act(obs, first, carry)
        return (action + self.steps) % 3, carry


class Seedless(DQN):
    """Has a buffer that all seeds share."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("shared", torch.zeros(7))


class Idle(DQN):
    """Never learns."""

    def update(self, transition):
        return {}


class Short(DQN):
    """Says one number where each seed has one."""

    def update(self, transition):
        return {name: value.mean() for name, value in super().update(transition).items()}


class Silent(QPolicy):
    """Has a head that never decides."""

    heads = ("goal", "action")


class Flat(QPolicy):
    """Has scores without a gradient."""

    def scores(self, obs, carry, head):
        return super().scores(obs, carry, head).detach()


class Stubborn(QPolicy):
    """Does something else than what was chosen."""

    def act(self, *arguments):
        action, carry = super().act(*arguments)
        return (action + 1) % 3, carry


def with_policy(kind):
    """A DQN that decides by `kind`."""

    class Agent(DQN):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.policy.__class__ = kind

    return Agent


SilentAgent = with_policy(Silent)
FlatAgent = with_policy(Flat)
CrowdAgent = with_policy(Crowd)
StubbornAgent = with_policy(Stubborn)

BROKEN = {
    "Mixing": "depends on what another seed has seen",
    "MixingLogs": "depends on what another seed has seen",
    "MixingObs": "depends on what another seed has seen",
    "CrowdAgent": "its rows .* must not depend on each other",
    "Averaging": r"its loss is \[\], expected \[3\]",
    "Forgetful": "it acts otherwise",
    "Seedless": r"'shared' is \[7\]; expected the seed axis",
    "Idle": "learnt nothing",
    "Short": "expected a tensor",
    "SilentAgent": "expected each of its heads",
    "FlatAgent": "has no gradient",
    "StubbornAgent": "another action than choose gave",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_agent_is_told_what_is_wrong(name):
    agent = "bcq" if name == "MixingLogs" else "dqn"
    node = compose("train", f"agent={agent}", *small(agent)).agent
    node["_target_"] = f"{__name__}.{name}"
    with pytest.raises(Exception, match=BROKEN[name]) as error:
        list(agent_checks(node, compose("train", "env=acrobot").env))
    assert type(error.value).__name__ in ("ConfigError", "RunError")


class Random(CartPole):
    """Draws from a generator of the whole process."""

    def transition(self, state, action, draws):
        state, *rest = super().transition(state, action, draws)
        return state + 0.01 * torch.rand_like(state), *rest


class Ageing(CartPole):
    """Remembers what no checkpoint sees."""

    age = 0.0

    def transition(self, state, action, draws):
        Ageing.age += 0.001
        state, *rest = super().transition(state, action, draws)
        return state + Ageing.age, *rest


class Crowded(CartPole):
    """A copy that feels the others."""

    def transition(self, state, action, draws):
        state, *rest = super().transition(state, action, draws)
        return state + 0.01 * len(state), *rest


class Unnamed(CartPole):
    """Names two of its four components."""

    observation_units = ("position (m)", "speed (m/s)")


class Uncircled(CartPole):
    """Calls two components the cosine and the sine of an angle."""

    angles = ((2, 3),)


class Costly(CartPole):
    """Costs more than it says."""

    lowest_reward = 1.5


ENV_FAULTS = {
    "Unnamed": r"expected one text for each component of a flat observation \(4\)",
    "Uncircled": r"angles=\(2, 3\): expected cos² \+ sin² = 1",
    "Costly": "lowest_reward=1.5, and a step had a reward of 1",
    "Random": "two plays from the same reset seeds differ",
    "Ageing": "two plays from the same reset seeds differ",
    "Crowded": "go on otherwise",
}


@pytest.mark.parametrize("name", ENV_FAULTS)
def test_a_broken_env_is_told_what_is_wrong(name):
    node = compose("train", "env=cartpole").env
    node["_target_"] = f"{__name__}.{name}"
    with pytest.raises(ConfigError, match=ENV_FAULTS[name]):
        list(env_checks(node))


@pytest.mark.parametrize("agent", AGENTS)
def test_the_command_says_what_holds(agent, rlx):
    result = rlx("check", f"agent={agent}", *small(agent))
    assert result.code == 0, result.err
    assert result.out.count("agent    ok: ") >= 7


def test_the_command_names_what_does_not(rlx):
    result = rlx("check", "env=cartpole", f"env._target_={__name__}.Random")
    assert result.code == 2 and ENV_FAULTS["Random"] in result.err
    assert result.out.count("env      ok: ") == 1
    assert "name what to try" in rlx("check").err
    late = rlx("check", "agent=dqn", "agent.learning_starts=20000")
    assert late.code == 2 and "learnt nothing in 16,000 steps" in late.err
    raising = rlx("check", "agent=dqn", f"agent._target_={__name__}.Raising")
    assert raising.code == 2 and len(raising.err.splitlines()) == 1
    assert "raised AttributeError (test_check.py:" in raising.err
