"""DQN (Mnih et al. 2015): one Q-learner that explores ε-greedily, on images too."""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Part, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count
from rlx.defence import Defence, Guard
from rlx.defences.wocar import WocaR, WorstCaseQ
from rlx.errors import ConfigError
from rlx.nn.encoders import check_conv, is_image, make_encoder, obs_field
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.networks import QNetwork
from rlx.nn.rng import Streams
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import along, polyak_update
from rlx.q_learning import LearnerConfig, Legal, QLearner


@dataclass(frozen=True)
class Config(LearnerConfig):
    """A Q-learner, its exploration and its network."""

    conv: list[list[int]]
    """Channels, kernel and stride of each convolution, where observations are images [C, H, W]."""
    batch_norm: bool
    """Normalise images and the outputs of convolutions by the minibatch's moments."""
    stack: Count
    """Images that are seen together: the newest, and how it differs from each one before."""
    dueling: bool
    """Split the values into the state's and the actions' advantages (Wang et al. 2016)."""
    bootstrap_truncated: bool
    """Bootstrap where the time limit cuts an episode; false: as if that state were terminal."""
    scale_obs: bool
    """Divide observations by the space's bound where that is finite."""
    # With a default, for runs that were saved before there was this key.
    defence: Defence | None = field(default=None, kw_only=True)
    """What is done against observations that may be moved, as in conf/defence; null: nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conv(self.conv)
        if self.dueling and isinstance(self.defence, WocaR):
            raise ConfigError("agent.dueling=true: the worst-case values of WocaR are not split.")


class QPolicy(Policy):
    """Acts greedily on one Q-network; its carry holds the last `stack` − 1 images."""

    scores_are_values = True

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        self.q = q_network(config, spec, seeds, "q")
        shape = spec.observation_space.shape
        self.past: tuple[int, ...] | None = None
        """Shape of the images in the carry; None: it has none."""
        if shape is not None and is_image(shape) and config.stack > 1:
            self.past = (config.stack - 1, *shape)

    def initial_carry(self, batch: int) -> Carry:
        if self.past is None:
            return {}
        parameter = next(self.parameters())
        shape = (len(parameter), batch, *self.past)
        return {"past": torch.zeros(shape, device=parameter.device)}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        deciding = torch.ones_like(first)
        if self.past is None:
            return choose("action", obs, Scores(self.q), deciding), carry
        repeated = obs.unsqueeze(2).float().expand(-1, -1, *self.past)
        past = torch.where(along(first, repeated), repeated, carry["past"])
        # The carry takes the image that the decision was taken on: an attack may have perturbed it.
        newest = obs

        def scores(image: Tensor) -> Tensor:
            nonlocal newest
            newest = image.detach()
            return self.scores(image, {"past": past}, "action")

        action = choose("action", obs, Scores(scores), deciding)
        past = torch.cat([past[:, :, 1:], newest.unsqueeze(2).float()], 2)
        return action, {"past": past}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        if self.past is None:
            return self.q(obs)
        return self.q(torch.cat([carry["past"].flatten(2, 3), obs], 2))


def q_network(config: Config, spec: Spec, seeds: Tensor, name: str) -> nn.Module:
    """Observations [S, B, *O] → action values [S, B, A].

    Images are `stack` of them, [S, B, stack · C, H, W].
    """
    rng = Streams(seeds, name)
    encoder = make_encoder(
        spec.observation_space,
        config.conv,
        seeds,
        rng,
        scaled=config.scale_obs,
        batch_norm=config.batch_norm,
        stack=config.stack,
    )
    net: nn.Module
    if isinstance(config.defence, WocaR):
        share = config.defence.share
        net = WorstCaseQ(encoder.features, config.hidden, spec.actions, share, rng)
    else:
        net = QNetwork(encoder.features, config.hidden, spec.actions, config.dueling, rng)
    return Legal(spec, encoder, net) if spec.rules else nn.Sequential(encoder, net)


class DQN(Agent):
    """One Q-learner whose data an ε-greedy policy collects."""

    config_type = Config
    policy_type = QPolicy

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = QPolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        target = q_network(config, spec, seeds, "q/target")
        obs = obs_field(spec.observation_space)
        stack = config.stack if is_image(obs[0]) else None
        guard = None
        if config.defence is not None:
            guard = Guard(config.defence, spec, seeds, "action", are_values=True)
        self.learner = QLearner(
            config, self.online.q, target, obs, num_envs, seeds, stack=stack, guard=guard
        )
        self.explore = EpsilonGreedy(
            config.epsilon_start,
            config.epsilon_end,
            config.epsilon_steps,
            seeds,
            "q",
            spec.rules,
        )
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rng = Streams(seeds, "minibatch")

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.online.act(obs, first, carry, self.explore)

    def store(self, transition: Transition) -> None:
        last = transition.terminated | transition.truncated
        terminal = transition.terminated if self.config.bootstrap_truncated else last
        self.learner.replay.add(
            torch.ones_like(last),
            obs=transition.obs,
            action=transition.action,
            reward=transition.reward,
            discount=along(self.config.discount, terminal) * (~terminal).float(),
            # Images are not kept twice: the next row holds it. At a truncation none does; such a
            # row is drawn again, and if it must be shown it ends as if terminated.
            next_obs=transition.next_obs,
            last=last,
        )

    def due(self) -> list[Part]:
        return self.clock.parts(self.learn, self.average)

    def learn(self) -> dict[str, Tensor]:
        """Learn from one minibatch; metrics [S]."""
        draws = self.rng.uniform(self.config.batch_size, dtype=torch.float64)
        loss, q = self.learner.learn(self.online.q, draws)
        return {"loss/q": loss, "q/mean": q}

    def average(self, updates: int) -> dict[str, Tensor]:
        """Move the policy that acts greedily towards the newest weights, after so many updates."""
        polyak_update(self.policy, self.online, 1 - (1 - self.config.average_tau) ** updates)
        return {}
