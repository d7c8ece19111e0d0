"""An actor and a critic, which policy gradients learn: two networks, with a memory or without."""

import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Carry, Choose, Policy, Scores, Spec, greedy
from rlx.config import Count, PerSeed, Positive, choice
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image, make_encoder
from rlx.nn.networks import MLP, RunningNorm, SeedGRU, scale_for_relu
from rlx.nn.rng import Streams
from rlx.nn.seed_axis import along

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu_}


@dataclass(frozen=True)
class NetworkConfig:
    """The networks."""

    hidden: list[Count]
    """Units of each hidden layer, of the actor and of the critic."""
    activation: str
    """Nonlinearity between the layers: `tanh` or `relu`."""
    recurrent: Count | None
    """Units of a GRU before actor and critic; null: no memory."""
    normalise_obs: bool
    """Scale observations, except images, by the mean and variance of those seen so far.

    Both are part of the policy and stand still within a rollout.
    """
    initial_std: PerSeed[Positive]
    """Initial deviation of continuous actions, in halves of the action space's range."""

    def __post_init__(self) -> None:
        choice(self.activation, ACTIVATIONS, "agent.activation")

    def conv_layers(self) -> list[list[int]]:
        """The layers for images; none, for a learner that is shown no images."""
        return []


class ActorCritic(Policy):
    """Acts by its most probable action: the largest logit, or the mean of a normal distribution."""

    low: Tensor
    """[S, 1, D]: the lowest continuous action."""
    high: Tensor
    """[S, 1, D]: the highest continuous action."""

    def __init__(self, config: NetworkConfig, spec: Spec, seeds: Tensor):
        super().__init__()
        obs_space = spec.observation_space
        action_space = spec.action_space
        self.continuous = isinstance(action_space, spaces.Box)
        self.units = config.recurrent
        encoder_rng = Streams(seeds, "encoder")
        self.encoder = make_encoder(obs_space, config.conv_layers(), seeds, encoder_rng)
        scale_for_relu(self.encoder)
        features = self.encoder.features
        self.norm: RunningNorm | None = None
        if config.normalise_obs and not is_image(obs_space.shape):
            self.norm = RunningNorm(features, seeds)
        if self.units is not None:
            self.gru = SeedGRU(features, self.units, Streams(seeds, "memory"))
        inputs = self.units or features
        outputs = math.prod(action_space.shape or ()) if self.continuous else spec.actions
        activation = ACTIVATIONS[config.activation]
        self.actor = MLP(inputs, config.hidden, outputs, Streams(seeds, "actor"), activation)
        self.critic = MLP(inputs, config.hidden, 1, Streams(seeds, "critic"), activation)
        with torch.no_grad():
            # All actions begin about equally likely.
            for parameter in self.actor.layers[-1].parameters():
                parameter.mul_(0.01)
        if isinstance(action_space, spaces.Box):
            self._add_normal(action_space, config.initial_std, seeds)

    def _add_normal(self, space: spaces.Box, initial_std: float | Tensor, seeds: Tensor) -> None:
        """Register what a normal distribution of actions needs: its deviation, and the bounds."""
        if len(space.shape) != 1 or not space.is_bounded():
            raise ConfigError(
                f"agent: needs bounded Box actions of one axis; this env has {space}."
            )
        shape = (len(seeds), 1, *space.shape)
        std = torch.ones(shape, dtype=torch.float64, device=seeds.device)
        self.log_std = nn.Parameter((std * along(initial_std, std)).log().float())
        for name in ("low", "high"):
            bound = torch.as_tensor(getattr(space, name), device=seeds.device)
            self.register_buffer(name, bound.expand(shape).contiguous())

    def initial_carry(self, batch: int) -> Carry:
        if not self.units:
            return {}
        parameter = next(self.parameters())
        memory = torch.zeros(len(parameter), batch, self.units, device=parameter.device)
        return {"memory": memory}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        carry = self.restarted(first, carry)
        next_carry = dict(carry)

        def scores(obs: Tensor) -> Tensor:
            core, memory = self.core(obs, carry)
            # What is remembered is what the decision was taken on, perturbed or not.
            next_carry.update(memory)
            return self.outputs(core)

        bounds = (self.low, self.high) if self.continuous else None
        action = choose("action", obs, Scores(scores, bounds), torch.ones_like(first))
        return action, {name: value.detach() for name, value in next_carry.items()}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        core, _ = self.core(obs, carry)
        return self.outputs(core)

    def restarted(self, first: Tensor, carry: Carry) -> Carry:
        """`carry` with a fresh memory where `first` (bool [S, B])."""
        return {name: torch.where(first.unsqueeze(-1), 0.0, value) for name, value in carry.items()}

    def core(self, obs: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """What actor and critic see [S, B, F] of `obs` [S, B, *O], and the memory after it."""
        features = self.encoder(obs)
        if self.norm is not None:
            features = self.norm(features)
        if not self.units:
            return features, {}
        memory = self.gru(features, carry["memory"])
        return memory, {"memory": memory}

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest `outputs` of observations [S, B, *O] between `low` and `high`.

        Without a memory; as of `MLP.interval`.
        """
        # Encoder, norm and units keep the order of numbers.
        core_low, _ = self.core(low, {})
        core_high, _ = self.core(high, {})
        lowest, highest = self.actor.interval(core_low, core_high)
        return self._in_units(lowest), self._in_units(highest)

    def outputs(self, core: Tensor) -> Tensor:
        """Logits [S, B, A], or mean actions [S, B, D] in the space's units."""
        return self._in_units(self.actor(core))

    def _in_units(self, outputs: Tensor) -> Tensor:
        """The actor's `outputs`; of continuous actions in the space's units."""
        if not self.continuous:
            return outputs
        return (self.low + self.high) / 2 + outputs * (self.high - self.low) / 2

    def std(self) -> Tensor:
        """Deviation [S, 1, D] of continuous actions, in the space's units."""
        return self.log_std.exp() * (self.high - self.low) / 2

    def log_prob(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probability of `action`, entropy), [S, B] each, under `outputs`."""
        if not self.continuous:
            log_probs = outputs.log_softmax(-1)
            log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            return log_prob, -(log_probs.exp() * log_probs).sum(-1)
        std = self.std()
        distance = (action - outputs) / std
        log_probs = -0.5 * distance.square() - std.log() - 0.5 * math.log(2 * math.pi)
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return log_probs.sum(-1), entropy.expand(log_probs.shape[:2])
