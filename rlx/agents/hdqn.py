"""Hierarchical DQN (Kulkarni et al. 2016, arXiv:1604.06057): a meta-controller chooses goals, a controller pursues them."""

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
from rlx.nn.seed_axis import polyak_update
from rlx.q_learning import LearnerConfig, Legal, QLearner


@dataclass(frozen=True)
class Config(LearnerConfig):
    """Both levels share the learner's settings; `epsilon_*` is the meta-controller's exploration, counted in goals."""

    retired: ClassVar[tuple[str, ...]] = ("conv", "batch_norm", "stack")
    """Keys that changed nothing, of older runs."""

    dueling: bool
    bootstrap_truncated: bool
    """False treats the time limit as a terminal state."""
    scale_obs: bool
    """Divide observations by the space's bound where that is finite."""
    goals: str
    """actions: a goal is to have executed that action; states: to have reached that state of a Discrete observation space."""
    goal_encoding: str
    """one_hot, or index: the goal enters the controller as one raw number."""
    goal_terminates: bool
    """Reaching the goal ends the controller's own episode; false bootstraps on through it."""
    goal_steps: Count | None
    """A goal not reached after so many steps is given up; null never does."""
    discount_within_goal: bool
    """Semi-MDP: Σ γ^i r_i, bootstrapped with γ^k after a goal of k steps; false: plain sum, bootstrapped with γ."""
    controller_discount: Share
    """γ of the intrinsic reward: what reaching a goal one step later is worth. Close to 1 the controller hardly cares."""
    controller_epsilon_start: Share
    controller_epsilon_end: Share
    controller_epsilon_steps: Count

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
        self.obs = ObsEncoder(spec.observation_space, config.scale_obs, seeds)
        self.features = self.obs.features + (goals if self.one_hot else 1)

    def forward(self, joint: Tensor) -> Tensor:
        goal, obs = joint[..., 0], joint[..., 1:]
        encoded = (
            nn.functional.one_hot(goal.long(), self.goals) if self.one_hot else goal.unsqueeze(-1)
        )
        return torch.cat(
            [encoded.to(joint.dtype), self.obs(obs.squeeze(-1) if self.obs.discrete else obs)], -1
        )


def join(goal: Tensor, obs: Tensor) -> Tensor:
    """The controller's observation [S, B, 1 + O] of `goal` [S, B] and `obs` [S, B, *O]."""
    flat = obs.flatten(2) if obs.dim() > 2 else obs.unsqueeze(-1)
    return torch.cat([goal.unsqueeze(-1).to(torch.float32), flat.to(torch.float32)], -1)


class GoalPolicy(Policy):
    """Chooses a goal whenever the last one was reached or given up (or the episode is new), and at every step an action towards it."""

    heads = ("goal", "action")

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        check_no_image(spec.observation_space, "HDQN")
        self.goals, self.goal_steps = config.goals, config.goal_steps
        self.meta = meta_network(config, spec, seeds, "meta")
        self.controller = controller_network(config, spec, seeds, "controller")

    def reached(self, goal: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Whether a step ([S, B]: its goal, its action, the observation it led to) reached the goal."""
        return (action if self.goals == "actions" else next_obs) == goal

    def given_up(self, clock: Tensor) -> Tensor:
        """Whether a goal ends, reached or not, after `clock` steps [S, B]."""
        return (
            torch.zeros_like(clock, dtype=torch.bool)
            if self.goal_steps is None
            else clock >= self.goal_steps
        )

    def initial_carry(self, batch: int) -> Carry:
        device = next(self.parameters()).device
        nothing = torch.zeros(
            next(self.parameters()).shape[0], batch, dtype=torch.int64, device=device
        )
        return {"goal": nothing, "action": nothing, "clock": nothing, "deciding": nothing.bool()}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        deciding = (
            first
            | self.reached(carry["goal"], carry["action"], obs)
            | self.given_up(carry["clock"])
        )
        goal = torch.where(
            deciding, choose("goal", obs, Scores(self.meta), deciding), carry["goal"]
        )
        action = choose(
            "action",
            obs,
            Scores(lambda seen: self.controller(join(goal, seen))),
            torch.ones_like(first),
        )
        clock = (
            torch.where(deciding, 0, carry["clock"]) + 1
        )  # steps of this goal, this one included
        return action, {"goal": goal, "action": action, "clock": clock, "deciding": deciding}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.meta(obs) if head == "goal" else self.controller(join(carry["goal"], obs))


def goal_count(config: Config, spec: Spec) -> int:
    """Number of goals; ConfigError where the goal space does not fit the observation space."""
    if config.goals == "actions":
        return spec.actions
    if not isinstance(spec.observation_space, spaces.Discrete):
        raise ConfigError(
            f"agent.goals=states: needs Discrete observations, not {spec.observation_space}; use agent.goals=actions."
        )
    return int(spec.observation_space.n)


def meta_network(config: Config, spec: Spec, seeds: Tensor, name: str) -> nn.Module:
    """Observations [S, B, *O] → goal values [S, B, G]."""
    encoder = ObsEncoder(spec.observation_space, config.scale_obs, seeds)
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
    """Values of choices, in a game of the legal ones: there goals are actions too."""
    net = QNetwork(encoder.features, config.hidden, choices, config.dueling, Streams(seeds, name))
    return Legal(spec, encoder, net) if spec.rules else nn.Sequential(encoder, net)


class HDQN(Agent):
    """Two Q-learners over two views: (state, goal, summed reward, state when the goal ended), and ([goal, state], action, reached?)."""

    config_type = Config
    policy_type = GoalPolicy

    policy: GoalPolicy
    start_obs: Tensor
    goal_reward: Tensor
    goal_discount: Tensor
    finished: Tensor

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = GoalPolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        shape, dtype = obs_field(spec.observation_space)
        target = meta_network(config, spec, seeds, "meta/target")
        field = (shape, dtype)
        self.meta = QLearner(config, self.online.meta, target, field, num_envs, seeds, learners=2)
        joint = (1 + ObsEncoder(spec.observation_space, False, seeds).width,), torch.float32
        target = controller_network(config, spec, seeds, "controller/target")
        self.controller = QLearner(
            config,
            self.online.controller,
            target,
            joint,
            num_envs,
            seeds,
            learners=2,
        )
        exploration = config.epsilon_start, config.epsilon_end, config.epsilon_steps
        self.explore_goal = EpsilonGreedy(*exploration, seeds, "goal", spec.rules)
        exploration = (
            config.controller_epsilon_start,
            config.controller_epsilon_end,
            config.controller_epsilon_steps,
        )
        self.explore_action = EpsilonGreedy(*exploration, seeds, "action", spec.rules)
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rng = Streams(seeds, "minibatch")
        running = torch.zeros(len(seeds), num_envs, device=seeds.device)
        self.register_buffer(
            "start_obs", torch.zeros(len(seeds), num_envs, *shape, dtype=dtype, device=seeds.device)
        )
        self.register_buffer("goal_reward", running)
        self.register_buffer("goal_discount", running.clone())
        self.register_buffer(
            "finished", torch.zeros(len(seeds), dtype=torch.bool, device=seeds.device)
        )

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            explore = self.explore_goal if head == "goal" else self.explore_action
            return explore(head, obs, scores, deciding)

        return self.online.act(obs, first, carry, choose)

    def update(self, transition: Transition) -> dict[str, Tensor]:
        self._store(transition)
        due = self.clock.due()
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

    def _store(self, t: Transition) -> None:
        config, goal, deciding = self.config, t.carry["goal"], t.carry["deciding"]
        last = t.terminated | t.truncated
        goes_on = (~(t.terminated if config.bootstrap_truncated else last)).float()
        reached = self.policy.reached(goal, t.action, t.next_obs)
        ended = reached | last | self.policy.given_up(t.carry["clock"])
        controller_goes_on = goes_on * (~reached).float() if config.goal_terminates else goes_on
        self.controller.replay.add(
            torch.ones_like(last),
            obs=join(goal, t.obs),
            action=t.action,
            reward=reached.float(),
            discount=config.controller_discount * controller_goes_on,
            next_obs=join(goal, t.next_obs),
            last=ended,  # the next row pursues another goal
        )
        starts = deciding.view(*deciding.shape, *[1] * (t.obs.dim() - 2))
        self.start_obs = torch.where(starts, t.obs.to(self.start_obs.dtype), self.start_obs)
        elapsed = torch.where(deciding, 1.0, self.goal_discount)  # γ^i after i steps of this goal
        weight = elapsed if config.discount_within_goal else 1.0
        self.goal_reward = torch.where(deciding, 0.0, self.goal_reward) + weight * t.reward
        self.goal_discount = elapsed * config.discount
        self.meta.replay.add(
            ended,
            obs=self.start_obs,
            action=goal,
            reward=self.goal_reward,
            discount=goes_on
            * (self.goal_discount if config.discount_within_goal else config.discount),
            next_obs=t.next_obs,
            last=last,
        )
        self.finished = self.finished | ended.any(1)
