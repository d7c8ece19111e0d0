"""Hierarchical DQN (Kulkarni et al. 2016, arXiv:1604.06057).

A meta-controller chooses goals, a controller pursues them.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Feature, Part, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, PerSeed, Share, choice, convert
from rlx.defence import Defence, Guard
from rlx.errors import ConfigError
from rlx.nn.encoders import ObsEncoder, check_no_image, obs_field
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.networks import QNetwork
from rlx.nn.per_seed import add_numbers
from rlx.nn.rng import Streams
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import along, polyak_update
from rlx.q_learning import LearnerConfig, Legal, QLearner

Box = dict[int | str, list[float | None]]
"""A box of observations: component → [lowest, highest], null for no bound."""


@dataclass(frozen=True)
class Config(LearnerConfig):
    """Goals, and the settings of the learner that both levels share.

    `epsilon_*` is the meta-controller's exploration, counted in goals.
    """

    retired: ClassVar[tuple[str, ...]] = ("conv", "batch_norm", "stack")
    """Keys that changed nothing, of older runs."""

    dueling: bool
    """Split the values into the state's and the actions' advantages (Wang et al. 2016)."""
    bootstrap_truncated: bool
    """Bootstrap where the time limit cuts an episode; false: as if that state were terminal."""
    scale_obs: bool
    """Divide observations by the space's bound where that is finite."""
    goals: str
    """What a goal is: to have executed an action (`actions`), or to have reached a state.

    `states`: one of a Discrete observation space. `regions`: any that lies in a box of `regions`.
    """
    goal_encoding: str
    """How the controller sees the goal: `one_hot`, or as one raw number (`index`)."""
    goal_terminates: bool
    """Reaching the goal ends the controller's own episode; false: it bootstraps beyond the goal."""
    goal_steps: PerSeed[Count] | None
    """Steps after which a goal that was not reached is given up; null: never."""
    discount_within_goal: bool
    """The meta-controller's reward for k steps is Σ γ^i r_i, and it bootstraps with γ^k (semi-MDP).

    False: the plain sum, and it bootstraps with γ.
    """
    controller_discount: PerSeed[Share]
    """The controller's γ: what reaching a goal one step later is worth.

    Close to 1 the controller hardly cares when it reaches a goal.
    """
    controller_epsilon_start: PerSeed[Share]
    """Probability of a random action at the controller's first decision."""
    controller_epsilon_end: PerSeed[Share]
    """Probability of a random action from `controller_epsilon_steps` decisions on."""
    controller_epsilon_steps: PerSeed[Count]
    """The controller's decisions, per seed, over which its exploration falls linearly."""
    # With defaults, for runs that were saved before there were these keys.
    regions: tuple[Box, ...] = field(default=(), kw_only=True)
    """The boxes that `goals=regions` are: components of the observation, with [lowest, highest].

    A component is given by its number, from 0 on, or is a feature that the env offers by name:
    `{4: [2, null], tip_height: [null, 0]}`. null: no bound.
    """
    defence: Defence | None = field(default=None, kw_only=True)
    """What is done against observations that may be moved, as in conf/defence; null: nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.goals, ("actions", "states", "regions"), "agent.goals")
        choice(self.goal_encoding, ("one_hot", "index"), "agent.goal_encoding")


class GoalEncoder(nn.Module):
    """[goal, obs] as stored ([S, B, 1 + O], the goal's index first) → network input [S, B, F]."""

    def __init__(self, config: Config, spec: Spec, goals: int, seeds: Tensor):
        super().__init__()
        self.goals = goals
        self.one_hot = config.goal_encoding == "one_hot"
        self.obs = ObsEncoder(spec.observation_space, seeds, scaled=config.scale_obs)
        self.features = self.obs.features + (goals if self.one_hot else 1)

    def forward(self, joint: Tensor) -> Tensor:
        goal = joint[..., :1]
        obs = joint[..., 1:]
        if self.one_hot:
            goal = nn.functional.one_hot(goal.squeeze(-1).long(), self.goals)
        if self.obs.discrete:
            obs = obs.squeeze(-1)
        return torch.cat([goal.to(joint.dtype), self.obs(obs)], -1)


def join(goal: Tensor, obs: Tensor) -> Tensor:
    """The controller's observation [S, B, 1 + O] of `goal` [S, B] and `obs` [S, B, *O]."""
    flat = obs.flatten(2) if obs.dim() > 2 else obs.unsqueeze(-1)
    return torch.cat([goal.unsqueeze(-1).to(torch.float32), flat.to(torch.float32)], -1)


class GoalPolicy(Policy):
    """Chooses a goal whenever the last one has ended, and at every step an action towards it.

    A goal ends when it is reached or given up, and with the episode. The carry holds, [S, B] each,
    the goal, the action that was taken, the steps of this goal so far (`clock`, that action
    included), and whether the goal was chosen at the last step (`deciding`).
    """

    heads = ("goal", "action")
    scores_are_values = True

    goal_steps: int | Tensor | None
    """`config.goal_steps`: one number, or [S]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        check_no_image(spec.observation_space, "HDQN")
        self.goals = config.goals
        add_numbers(self, goal_steps=config.goal_steps)
        if config.goals == "regions":
            self.regions = Regions(config.regions, spec)
        self.meta = meta_network(config, spec, seeds, "meta")
        self.controller = controller_network(config, spec, seeds, "controller")

    def reached(self, goal: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """bool [S, B]: whether a step (its `action`, the `next_obs` it led to) reached its goal."""
        if self.goals == "actions":
            return action == goal
        if self.goals == "states":
            return next_obs == goal
        return self.regions(next_obs).gather(-1, goal.unsqueeze(-1)).squeeze(-1)

    def given_up(self, clock: Tensor) -> Tensor:
        """bool [S, B]: whether a goal ends, reached or not, after `clock` steps [S, B]."""
        if self.goal_steps is None:
            return torch.zeros_like(clock, dtype=torch.bool)
        return clock >= along(self.goal_steps, clock)

    def initial_carry(self, batch: int) -> Carry:
        parameter = next(self.parameters())
        zeros = torch.zeros(len(parameter), batch, dtype=torch.int64, device=parameter.device)
        return {"goal": zeros, "action": zeros, "clock": zeros, "deciding": zeros.bool()}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        reached = self.reached(carry["goal"], carry["action"], obs)
        deciding = first | reached | self.given_up(carry["clock"])
        new_goal = choose("goal", obs, Scores(self.meta), deciding)
        goal = torch.where(deciding, new_goal, carry["goal"])
        scores = Scores(lambda obs: self.controller(join(goal, obs)))
        action = choose("action", obs, scores, torch.ones_like(first))
        clock = torch.where(deciding, 0, carry["clock"]) + 1
        return action, {"goal": goal, "action": action, "clock": clock, "deciding": deciding}

    def memory(self, obs: Tensor, carry: Carry) -> Carry:
        ended = self.reached(carry["goal"], carry["action"], obs) | self.given_up(carry["clock"])
        kept = {"goal": carry["goal"]}
        if self.goal_steps is not None:
            kept["clock"] = carry["clock"]
        return {name: value.masked_fill(ended, -1) for name, value in kept.items()}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        if head == "goal":
            return self.meta(obs)
        return self.controller(join(carry["goal"], obs))


class Regions:
    """The boxes that are goals: observations [S, B, O] → bool [S, B, G], which box holds them."""

    def __init__(self, boxes: Sequence[Box], spec: Spec):
        """ConfigError where `boxes`, those of `agent.regions`, do not fit the observations."""
        space = spec.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigError(
                f"agent.goals=regions: needs Box observations of one axis; this env has {space}. "
                "Use agent.goals=actions."
            )
        if not boxes:
            raise ConfigError(
                "agent.regions: is empty; a region is given by components of the observation and "
                "their ranges, as in 'agent.regions=[{0:[0,null]},{0:[null,0]}]'."
            )
        self.boxes = [_sides(box, spec, f"agent.regions[{i}]") for i, box in enumerate(boxes)]

    def __len__(self) -> int:
        return len(self.boxes)

    def __call__(self, obs: Tensor) -> Tensor:
        """Whether each of `obs` [S, B, O] lies in each region, bool [S, B, G]; edges belong."""
        inside = []
        for sides in self.boxes:
            here = torch.ones(obs.shape[:2], dtype=torch.bool, device=obs.device)
            for number, low, high in sides:
                value = number(obs)
                here = here & (value >= low) & (value <= high)
            inside.append(here)
        return torch.stack(inside, -1)


def _sides(box: Box, spec: Spec, key: str) -> list[tuple[Feature, float, float]]:
    """The sides of a `box`, the config at `key`: (the number of the observation, lowest, highest).

    ConfigError where the observations have no such number, or it never comes into the range.
    """
    if not box:
        raise ConfigError(f"{key}={{}}: expected a component and its range, as in {{0:[0,null]}}.")
    return [_side(name, ends, spec, f"{key}.{name}") for name, ends in box.items()]


def _side(
    name: int | str, ends: Sequence[float | None], spec: Spec, key: str
) -> tuple[Feature, float, float]:
    """One side of a box: see `_sides`."""
    space = spec.observation_space
    assert isinstance(space, spaces.Box)
    components = space.shape[0]
    if name not in range(components) and name not in spec.features:
        names = ", ".join([f"0 to {components - 1}", *spec.features])
        raise ConfigError(f"{key}: unknown; this env's observations have {names}.")
    ends = convert(ends, list[float | None], key)
    if len(ends) != 2:
        raise ConfigError(f"{key}={ends}: expected [lowest, highest], null for no bound.")
    low = -math.inf if ends[0] is None else ends[0]
    high = math.inf if ends[1] is None else ends[1]
    if not low < high:
        raise ConfigError(f"{key}={ends}: the first number must be below the second.")
    if isinstance(name, str):
        return spec.features[name], low, high
    if low > space.high[name] or high < space.low[name]:
        raise ConfigError(
            f"{key}={ends}: is never reached; this component goes from {space.low[name]:g} to "
            f"{space.high[name]:g}."
        )
    return (lambda obs: obs[..., name]), low, high


def goal_count(config: Config, spec: Spec) -> int:
    """Number of goals; ConfigError where the goal space does not fit the observation space."""
    if config.goals == "actions":
        return spec.actions
    if config.goals == "regions":
        return len(Regions(config.regions, spec))
    if not isinstance(spec.observation_space, spaces.Discrete):
        raise ConfigError(
            f"agent.goals=states: needs Discrete observations, not {spec.observation_space}; "
            "use agent.goals=actions."
        )
    return int(spec.observation_space.n)


def meta_network(config: Config, spec: Spec, seeds: Tensor, name: str) -> nn.Module:
    """Observations [S, B, *O] → goal values [S, B, G]."""
    encoder = ObsEncoder(spec.observation_space, seeds, scaled=config.scale_obs)
    return _network(config, spec, encoder, goal_count(config, spec), seeds, name)


def controller_network(config: Config, spec: Spec, seeds: Tensor, name: str) -> nn.Module:
    """[goal, obs] [S, B, 1 + O] → action values [S, B, A]."""
    encoder = GoalEncoder(config, spec, goal_count(config, spec), seeds)
    return _network(config, spec, encoder, spec.actions, seeds, name)


def _network(
    config: Config,
    spec: Spec,
    encoder: ObsEncoder | GoalEncoder,
    choices: int,
    seeds: Tensor,
    name: str,
) -> nn.Module:
    """What `encoder` takes → values [S, B, choices].

    In a game illegal choices are masked out: there goals are actions too.
    """
    net = QNetwork(encoder.features, config.hidden, choices, config.dueling, Streams(seeds, name))
    return Legal(spec, encoder, net) if spec.rules else nn.Sequential(encoder, net)


class HDQN(Agent):
    """Two Q-learners, each with a replay of its own.

    The meta-controller's transitions are (obs, goal, summed reward, obs when the goal ended), those
    of the controller ([goal, obs], action, whether the goal was reached, [goal, next obs]).
    """

    config_type = Config
    policy_type = GoalPolicy

    policy: GoalPolicy
    start_obs: Tensor
    """Observation [S, N, *O] at which the running goal was chosen."""
    goal_reward: Tensor
    """Reward [S, N] of the running goal so far."""
    goal_discount: Tensor
    """γ^k after the k steps [S, N] of the running goal so far."""
    finished: Tensor
    """Whether a goal of the seed has ended since the last update, bool [S]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = GoalPolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        shape, dtype = obs_field(spec.observation_space)
        joint_shape = (1 + torch.Size(shape).numel(),)
        guard_goal = None
        guard_action = None
        if config.defence is not None:
            guard_goal = Guard(config.defence, spec, seeds, "goal", are_values=True)
            guard_action = Guard(config.defence, spec, seeds, "action", are_values=True, lead=1)
        self.meta = QLearner(
            config,
            self.online.meta,
            meta_network(config, spec, seeds, "meta/target"),
            (shape, dtype),
            num_envs,
            seeds,
            learners=2,
            guard=guard_goal,
        )
        self.controller = QLearner(
            config,
            self.online.controller,
            controller_network(config, spec, seeds, "controller/target"),
            (joint_shape, torch.float32),
            num_envs,
            seeds,
            learners=2,
            guard=guard_action,
        )
        self.explore_goal = EpsilonGreedy(
            config.epsilon_start,
            config.epsilon_end,
            config.epsilon_steps,
            seeds,
            "goal",
            spec.rules,
        )
        self.explore_action = EpsilonGreedy(
            config.controller_epsilon_start,
            config.controller_epsilon_end,
            config.controller_epsilon_steps,
            seeds,
            "action",
            spec.rules,
        )
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rng = Streams(seeds, "minibatch")
        device = seeds.device
        zeros = torch.zeros(len(seeds), num_envs, device=device)
        start_obs = torch.zeros(len(seeds), num_envs, *shape, dtype=dtype, device=device)
        self.register_buffer("start_obs", start_obs)
        self.register_buffer("goal_reward", zeros)
        self.register_buffer("goal_discount", zeros.clone())
        self.register_buffer("finished", torch.zeros(len(seeds), dtype=torch.bool, device=device))

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            explore = self.explore_goal if head == "goal" else self.explore_action
            return explore(head, obs, scores, deciding)

        return self.online.act(obs, first, carry, choose)

    def store(self, transition: Transition) -> None:
        """Store a step for the controller, and for the meta-controller the goals that it ends."""
        last = transition.terminated | transition.truncated
        terminal = transition.terminated if self.config.bootstrap_truncated else last
        not_done = (~terminal).float()
        goal = transition.carry["goal"]
        reached = self.policy.reached(goal, transition.action, transition.next_obs)
        ended = reached | last | self.policy.given_up(transition.carry["clock"])
        self._store_step(transition, reached, ended, not_done)
        self._store_goals(transition, ended, not_done)
        self.finished = self.finished | ended.any(1)

    def due(self) -> list[Part]:
        return self.clock.parts(self.learn, self.average)

    def learn(self) -> dict[str, Tensor]:
        """Learn from a minibatch of both learners; metrics [S]."""
        # The meta-controller stores when goals end: it may have too little when the controller
        # begins to learn. It learns only in seeds where a goal has ended since the last time.
        where = self.finished & (self.meta.replay.stored() >= self.config.learning_starts)
        draws = self.rng.uniform(2, self.config.batch_size, dtype=torch.float64)
        meta_loss, meta_q = self.meta.learn(self.online.meta, draws[:, 0], where)
        loss, q = self.controller.learn(self.online.controller, draws[:, 1])
        return {
            "loss/meta": meta_loss,
            "loss/controller": loss,
            "q/meta": meta_q,
            "q/controller": q,
        }

    def average(self, updates: int) -> dict[str, Tensor]:
        """Move the policy that acts greedily towards the newest weights, after so many updates."""
        polyak_update(self.policy, self.online, 1 - (1 - self.config.average_tau) ** updates)
        self.finished = torch.zeros_like(self.finished)
        return {}

    def _store_step(
        self, transition: Transition, reached: Tensor, ended: Tensor, not_done: Tensor
    ) -> None:
        """Store the controller's transition, whose reward is whether the goal was `reached`."""
        goal = transition.carry["goal"]
        if self.config.goal_terminates:
            not_done = not_done * (~reached).float()
        self.controller.replay.add(
            torch.ones_like(ended),
            obs=join(goal, transition.obs),
            action=transition.action,
            reward=reached.float(),
            discount=along(self.config.controller_discount, not_done) * not_done,
            next_obs=join(goal, transition.next_obs),
            # The next row pursues another goal.
            last=ended,
        )

    def _store_goals(self, transition: Transition, ended: Tensor, not_done: Tensor) -> None:
        """Add the step to the running goals, and store those that `ended`."""
        config = self.config
        begins = transition.carry["deciding"]
        obs = transition.obs.to(self.start_obs.dtype)
        self.start_obs = torch.where(along(begins, obs), obs, self.start_obs)
        # γ^i after i steps of this goal.
        elapsed = torch.where(begins, 1.0, self.goal_discount)
        weight = elapsed if config.discount_within_goal else 1.0
        self.goal_reward = torch.where(begins, 0.0, self.goal_reward) + weight * transition.reward
        one_step = along(config.discount, elapsed)
        self.goal_discount = elapsed * one_step
        discount = self.goal_discount if config.discount_within_goal else one_step
        self.meta.replay.add(
            ended,
            obs=self.start_obs,
            action=transition.carry["goal"],
            reward=self.goal_reward,
            discount=not_done * discount,
            next_obs=transition.next_obs,
            last=transition.terminated | transition.truncated,
        )


class RegionHDQN(HDQN):
    """HDQN as `agent=hdqn_regions` has it: goals are regions, which only a Box has."""

    observations = (spaces.Box,)
