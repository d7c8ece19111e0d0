"""Hierarchical DQN (Kulkarni et al. 2016, arXiv:1604.06057).

A meta-controller chooses goals, a controller pursues them.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Share, choice
from rlx.errors import ConfigError
from rlx.nn.encoders import ObsEncoder, check_no_image, obs_field
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.networks import QNetwork
from rlx.nn.rng import Streams
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import along, polyak_update
from rlx.q_learning import LearnerConfig, Legal, QLearner


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
    """What a goal is: to have executed an action (`actions`), or reached a state (`states`).

    States are those of a Discrete observation space.
    """
    goal_encoding: str
    """How the controller sees the goal: `one_hot`, or as one raw number (`index`)."""
    goal_terminates: bool
    """Reaching the goal ends the controller's own episode; false: it bootstraps beyond the goal."""
    goal_steps: Count | None
    """Steps after which a goal that was not reached is given up; null: never."""
    discount_within_goal: bool
    """The meta-controller's reward for k steps is Σ γ^i r_i, and it bootstraps with γ^k (semi-MDP).

    False: the plain sum, and it bootstraps with γ.
    """
    controller_discount: Share
    """The controller's γ: what reaching a goal one step later is worth.

    Close to 1 the controller hardly cares when it reaches a goal.
    """
    controller_epsilon_start: Share
    """Probability of a random action at the controller's first decision."""
    controller_epsilon_end: Share
    """Probability of a random action from `controller_epsilon_steps` decisions on."""
    controller_epsilon_steps: Count
    """The controller's decisions, per seed, over which its exploration falls linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.goals, ("actions", "states"), "agent.goals")
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

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        check_no_image(spec.observation_space, "HDQN")
        self.goals = config.goals
        self.goal_steps = config.goal_steps
        self.meta = meta_network(config, spec, seeds, "meta")
        self.controller = controller_network(config, spec, seeds, "controller")

    def reached(self, goal: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """bool [S, B]: whether a step (its `action`, the `next_obs` it led to) reached its goal."""
        outcome = action if self.goals == "actions" else next_obs
        return outcome == goal

    def given_up(self, clock: Tensor) -> Tensor:
        """bool [S, B]: whether a goal ends, reached or not, after `clock` steps [S, B]."""
        if self.goal_steps is None:
            return torch.zeros_like(clock, dtype=torch.bool)
        return clock >= self.goal_steps

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

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        if head == "goal":
            return self.meta(obs)
        return self.controller(join(carry["goal"], obs))


def goal_count(config: Config, spec: Spec) -> int:
    """Number of goals; ConfigError where the goal space does not fit the observation space."""
    if config.goals == "actions":
        return spec.actions
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
        self.meta = QLearner(
            config,
            self.online.meta,
            meta_network(config, spec, seeds, "meta/target"),
            (shape, dtype),
            num_envs,
            seeds,
            learners=2,
        )
        self.controller = QLearner(
            config,
            self.online.controller,
            controller_network(config, spec, seeds, "controller/target"),
            (joint_shape, torch.float32),
            num_envs,
            seeds,
            learners=2,
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

    def update(self, transition: Transition) -> dict[str, Tensor]:
        self._store(transition)
        due = self.clock.advance()
        if not due:
            return {}
        # The meta-controller stores when goals end: it may have too little when the controller
        # begins to learn. It learns only in seeds where a goal has ended since the last time.
        where = self.finished & (self.meta.replay.stored() >= self.config.learning_starts)
        size = self.config.batch_size
        for draws in self.rng.uniform(due, 2, size, dtype=torch.float64).unbind(1):
            meta_loss, meta_q = self.meta.learn(self.online.meta, draws[:, 0], where)
            loss, q = self.controller.learn(self.online.controller, draws[:, 1])
        weight = 1 - (1 - self.config.average_tau) ** due
        polyak_update(self.policy, self.online, weight)
        self.finished = torch.zeros_like(self.finished)
        return {
            "loss/meta": meta_loss,
            "loss/controller": loss,
            "q/meta": meta_q,
            "q/controller": q,
        }

    def _store(self, transition: Transition) -> None:
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
            discount=self.config.controller_discount * not_done,
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
        self.goal_discount = elapsed * config.discount
        discount = self.goal_discount if config.discount_within_goal else config.discount
        self.meta.replay.add(
            ended,
            obs=self.start_obs,
            action=transition.carry["goal"],
            reward=self.goal_reward,
            discount=not_done * discount,
            next_obs=transition.next_obs,
            last=transition.terminated | transition.truncated,
        )
