"""An env in which an adversary learns: its actions are what it does to victims' decisions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Carry, Policy, Rules, Scores
from rlx.config import Count, Index, Positive, choice
from rlx.env import resize, spread_fresh
from rlx.errors import ConfigError
from rlx.experiment import class_parameters
from rlx.grids import parse_grid
from rlx.nn.rng import mix64, stream_key, uniform
from rlx.nn.seed_axis import take
from rlx.policies import Opened, open_runs
from rlx.robustness.attacker import flipped
from rlx.robustness.levers import Choices, Lever, Look, Pushes
from rlx.robustness.manifold import kept_angles
from rlx.robustness.members import Members
from rlx.robustness.scale import unit_scale
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.threat import Boxes, Budget, Draw, Witness
from rlx.victims.files import Victims
from rlx.victims.opening import open_victims


class AttackedEnv(VectorEnv):
    """Victims in their env, seen by an adversary that moves what they observe: a `TensorEnv`.

    The perturbed victim is a decision process of the adversary (Zhang et al. 2020,
    arXiv:2003.08938). Which observation is shown need not be learnt: the adversary directs the
    decision, and a gradient finds the observation within the box that leads there (Sun et al. 2022,
    arXiv:2106.05087).

    Each copy belongs to a member of `Members`, a victim, restart and radius.

    An observation [O'] is flat: what the victim observes, the choice that each attacked head would
    take by itself (one-hot; of continuous actions the action, from −1 to 1), of choices which ones
    of the first attacked head can be forced, and the radius as a share of the largest. What an
    action does is said by the `lever`: it forces choices, or pushes a continuous action.

    The reward is minus the victim's, in units of the size of its clean return; episodes end as the
    victim's do.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    reward_threshold: float | None = None
    rules: Rules | None
    grid: tuple[int, int] | None = None
    _id: Tensor
    """int64 [B]: the number that each copy had at the reset."""
    _counting: Tensor
    """bool [B]: whether a copy is in its first episode since the reset."""

    def __init__(
        self,
        run: str | list[str],
        checkpoint: str,
        seeds: Any,
        mode: str | None,
        eps: float | list[float] | str,
        scale: Any,
        manifold: str | None,
        restarts: Count,
        steps: Count,
        samples: Index,
        unit: Positive | None,
        members: list[Index] | None = None,
        victims: dict | None = None,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
    ):
        """The keys of conf/env/attacked.yaml; ConfigError where they cannot be.

        `run`: run directories of the victims; `checkpoint` and `seeds`: which of their weights;
        `mode`: a head, or "both" (null) for all; `eps`: the radii, in units of `scale`, which is
        "bounds" or [*O]; `manifold`: "angle" to keep angles on the circle, or null; `restarts`:
        adversaries of one victim; `steps` and `samples`: as of `reachable`; `unit`: by what rewards
        are divided, null: the size of the victims' return; `members`: the numbers of those that the
        copies are for, null: all; `victims`: the files of policies that are of no run.
        """
        self.device = torch.device(device)
        if victims is not None:
            self.opened = open_victims(Victims.of_node(victims), self.device, seeds)
            self.unit = unit or 1.0
        else:
            runs = find_all(run, "outputs")
            self.opened = open_runs(runs, checkpoint, self.device, seeds)
            self.unit = unit or _size_of_returns(runs)
        space = _attackable(self.opened)
        policy = self.opened.policy
        self.heads = attacked_heads(mode, policy.heads)
        """The attacked heads, the top level first."""
        self.eps = parse_grid(eps, "env.eps")
        self._obs_unit = float(space.high.max()) if np.issubdtype(space.dtype, np.integer) else 1.0
        """By what the victim's observations are divided: a network cannot learn from 255."""
        self._action_space = self.opened.spec.action_space
        """The victim's own actions."""
        self.members = Members(len(self.opened.seeds), restarts, self.eps, members, self.device)
        member = self.members.shared_out(num_envs)

        self.env = self.opened.make_env(num_envs)
        """The victims' own env."""
        unit_of_scale = unit_scale(scale, space, _no_spread)
        self.boxes = Boxes.of(
            space,
            torch.as_tensor(unit_of_scale, dtype=torch.float32, device=self.device),
            kept_angles(manifold, self.env),
        )
        """The boxes around what the victims observe."""
        self.max_episode_steps = self.env.max_episode_steps
        self.lever = self._make_lever(steps, samples)
        """What an action does to the victims' decisions."""
        self.rules = self.lever.rules
        self.single_action_space = self.lever.action_space
        obs_size = math.prod(space.shape) + self.lever.size + 1
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_size,))
        resize(self, num_envs)

        self._state: dict[str, Tensor] = {"member": member}
        """All but the env's own state that decides the copies' future, [B, …].

        `member`; from the first reset on `key` and `clock` (int64: a random stream, and the steps
        since then), `obs`, `first` and `carry.…` (what the victim acts on next), `forcing`
        ([B, K, *O], what forces the choices of the first attacked head there)."""
        self._group()
        self._begin_counting()
        self.witness: Witness | None = None
        """Who is told of every decision of the victims, until their first episodes have ended."""

    @classmethod
    def of_rows(cls, node: Mapping[str, Any], rows: Sequence[int], seeds: int) -> dict[str, Any]:
        """The config group `env` for some `rows` of the adversaries that a training has learnt.

        `seeds`: how many it has. Each goes on with the victim that it has learnt against.
        """
        members = cls(**class_parameters(node)).members
        return {**node, "members": members.of_rows(rows, seeds)}

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, object] | None = None
    ) -> tuple[Tensor, dict]:
        """The first observations [B, O'] and an empty info; the counters begin at 0.

        `seed`: one integer (copy i gets seed + i) or one per copy; None goes on with the copies'
        random streams, or begins fresh ones where there are none. All copies are reset.
        """
        if options:
            raise ValueError(f"reset: options={options}; this env takes none.")
        state = self._state
        if seed is None and "key" in state:
            obs, _ = self.env.reset()
        else:
            seeds = spread_fresh(seed, self.num_envs)
            obs, _ = self.env.reset(seed=seeds)
            state["key"] = torch.tensor(seeds, dtype=torch.int64, device=self.device)
            state["clock"] = torch.zeros_like(state["key"])
        state["obs"] = obs
        state["first"] = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        for name, value in self._policy.initial_carry(self._shape[1]).items():
            state[f"carry.{name}"] = value.flatten(0, 1)
        self._begin_counting()
        return self._next_observations(), {}

    @torch.no_grad()
    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `TensorEnv.step`; `actions`: [B, …], what the lever does."""
        state = self._state
        own_action = torch.as_tensor(actions, device=self.device).unflatten(0, self._shape)

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            clean = scores.best(obs)
            if head not in self.heads:
                self._tell(head, obs, obs, clean, clean, torch.zeros_like(deciding), deciding)
                return clean
            obs = obs.float()
            forcing = self._grouped("forcing") if "forcing" in state else None
            shown_obs = self.lever.shown(
                self.heads.index(head),
                obs,
                scores,
                own_action,
                forcing,
                self._budget(obs),
                self._draw(head),
            )
            # Last of all, the scores of what is shown: a policy's carry may keep that.
            decision = scores.best(shown_obs)
            changed = flipped(self._action_space, decision, clean)
            self._count(head, deciding, changed)
            self._tell(head, obs, shown_obs, decision, clean, changed, deciding)
            return decision

        first = self._grouped("first")
        action, carry = self._policy.act(self._grouped("obs"), first, self._carry(), choose)
        obs, reward, terminated, truncated, info = self.env.step(action.flatten(0, 1))
        ended = terminated | truncated
        for name, value in carry.items():
            state[f"carry.{name}"] = value.flatten(0, 1)
        state["clock"] = state["clock"] + 1
        self._counting = self._counting & ~ended
        final_obs = None
        if ended.any():
            # Before `first` is set: the victims still are where the episodes have ended.
            final_obs = self._final_observations(info["final_obs"], truncated)
        state["obs"] = obs
        state["first"] = ended
        own_obs = self._next_observations()
        if final_obs is None:
            final_obs = own_obs
        else:
            final_obs = torch.where(ended.unsqueeze(1), final_obs, own_obs)
        info = {"final_obs": final_obs, "_final_obs": ended}
        return own_obs, -reward / self.unit, terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) alone, in that order."""
        index = index.to(self.device)
        self.env.keep(index)
        self._state = {name: value[index] for name, value in self._state.items()}
        self._id = self._id[index]
        self._counting = self._counting[index]
        resize(self, len(index))
        self._group()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""
        inner = {f"env.{name}": value for name, value in self.env.state_dict().items()}
        return self._state | inner

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict()` was taken; the counters begin at 0."""
        inner = {}
        for name, value in state.items():
            if name.startswith("env."):
                inner[name.removeprefix("env.")] = value
            else:
                self._state[name] = value.to(self.device, copy=True)
        self.env.load_state_dict(inner)
        self._begin_counting()
        self._group()

    def decisions(self) -> dict[str, Tensor]:
        """How many decisions each attacked head took, int64 [B].

        Counted in each copy's first episode since the reset. The copies are those that were reset,
        also where some were dropped since.
        """
        return self._decisions

    def flips(self) -> dict[str, Tensor]:
        """How many decisions of each attacked head were moved, counted as the `decisions`."""
        return self._flips

    def _group(self) -> None:
        """Make the policy [M', …] that acts for the copies, seen as [M', B / M'].

        Its rows are the members where these still have equal groups of copies, in order. Else each
        copy has a row of its own.
        """
        members, counts = self._state["member"].unique_consecutive(return_counts=True)
        if len(members.unique()) < len(members) or not bool((counts == counts[0]).all()):
            members = self._state["member"]
            counts = torch.ones_like(members)
        self._shape = (len(members), int(counts[0]))
        self._policy: Policy = take(self.opened.policy, self.members.victim[members])

    def _grouped(self, name: str) -> Tensor:
        """A tensor [B, …] of the state as [M', B / M', …]."""
        return self._state[name].unflatten(0, self._shape)

    def _carry(self) -> Carry:
        """The carry of the victims."""
        names = [name for name in self._state if name.startswith("carry.")]
        return {name.removeprefix("carry."): self._grouped(name) for name in names}

    def _begin_counting(self) -> None:
        """Let the counters begin at 0."""
        self._id = torch.arange(self.num_envs, device=self.device)
        self._counting = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._decisions = {head: torch.zeros_like(self._id) for head in self.heads}
        self._flips = {head: torch.zeros_like(self._id) for head in self.heads}

    def _count(self, head: str, deciding: Tensor, flipped: Tensor) -> None:
        """Count the decisions of `head`, where it is `deciding`, and those that were `flipped`."""
        counted = deciding.flatten() & self._counting
        self._decisions[head].index_add_(0, self._id, counted.long())
        self._flips[head].index_add_(0, self._id, (flipped.flatten() & counted).long())

    def _tell(
        self,
        head: str,
        obs: Tensor,
        shown: Tensor,
        decision: Tensor,
        clean: Tensor,
        flipped: Tensor,
        deciding: Tensor,
    ) -> None:
        """Tell the witness of a decision."""
        if self.witness is not None:
            deciding = deciding & self._counting.view(self._shape)
            self.witness(head, obs, shown, decision, clean, flipped, deciding)

    def _budget(self, obs: Tensor) -> Budget:
        """The boxes around `obs` [M', B', *O], each of its copy's radius."""
        eps = self.members.eps[self._state["member"]].view(self._shape)
        return self.boxes.around(obs, eps)

    def _draw(self, name: str) -> Draw:
        """Random numbers of this step's stream `name` of each copy."""
        key = stream_key(mix64(self._state["key"]) + self._state["clock"], name)
        counter = torch.zeros_like(key)

        def draw(count: int) -> Tensor:
            nonlocal counter
            draws = uniform(key, counter, count)
            counter = counter + count
            return draws.view(*self._shape, count)

        return draw

    def _next_observations(self) -> Tensor:
        """The observations [B, O'] that the next step begins with; notes what it can force."""
        told, forcing = self._looked_ahead(self._grouped("obs"), self._grouped("first"))
        if forcing is not None:
            self._state["forcing"] = forcing.flatten(0, 1)
        return self._observations(self._state["obs"], told)

    def _final_observations(self, obs: Tensor, truncated: Tensor) -> Tensor:
        """The observations [B, O'] of episodes that ended at the victim's `obs` [B, *O].

        Where an episode was `truncated` (bool [B]), the victim would go on; where it has
        terminated, there is nothing to choose, and 0 stands for all that is told of decisions.
        """
        told = torch.zeros(*self._shape, self.lever.size, device=self.device)
        if truncated.any():
            going_on = torch.zeros(self._shape, dtype=torch.bool, device=self.device)
            told, _ = self._looked_ahead(obs.unflatten(0, self._shape), going_on, "final")
            told = told * truncated.view(*self._shape, 1)
        return self._observations(obs, told)

    @torch.no_grad()
    def _looked_ahead(
        self, obs: Tensor, first: Tensor, purpose: str = ""
    ) -> tuple[Tensor, Tensor | None]:
        """What is told of the victims' decisions at `obs` [M', B', …], and what forces them.

        float32 [M', B', size of the lever], and `Look.forcing` of the first attacked head.
        `purpose` names the random stream. Nothing is changed by looking.
        """
        looks: list[Look] = []

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if head in self.heads:
                number = self.heads.index(head)
                inputs = (obs.float(), scores, deciding, self._budget(obs))
                looks.append(self.lever.look(number, *inputs, self._draw(head + purpose)))
            return scores.best(obs)

        self._policy.act(obs, first, self._carry(), choose)
        told = [look.own for look in looks]
        told += [look.mask.float() for look in looks if look.mask is not None]
        return torch.cat(told, -1), looks[0].forcing

    def _observations(self, obs: Tensor, told: Tensor) -> Tensor:
        """The adversary's observations [B, O'] of the victim's and what is `told` of decisions."""
        radius = self.members.eps[self._state["member"]].unsqueeze(1) / max(*self.eps, 1e-9)
        flat = (obs / self._obs_unit).flatten(1)
        return torch.cat([flat, told.flatten(0, 1), radius], 1)

    def _make_lever(self, steps: int, samples: int) -> Lever:
        """What can be done to the attacked heads; ConfigError where that cannot be learnt."""
        choices = self._count_choices()
        space = self._action_space
        if 0 not in choices:
            return Choices(choices, steps, samples)
        if len(choices) > 1:
            raise ConfigError("env.mode: a head with continuous actions is attacked alone.")
        assert isinstance(space, gymnasium.spaces.Box)
        return Pushes(space, steps, self.device)

    def _count_choices(self) -> tuple[int, ...]:
        """The number of choices of each attacked head, of a continuous one 0."""
        policy = self.opened.policy
        space = self.opened.spec.observation_space
        shape = (len(self.opened.seeds), 1)
        obs = torch.zeros(*shape, *(space.shape or ()), device=self.device)
        first = torch.ones(shape, dtype=torch.bool, device=self.device)
        counts: dict[str, int] = {}

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            values = scores(obs)
            counts[head] = 0 if scores.continuous else values.shape[-1]
            return scores.best(obs, values)

        with torch.no_grad():
            policy.act(obs, first, policy.initial_carry(1), choose)
        return tuple(counts[head] for head in self.heads)


def attacked_heads(mode: str | None, heads: Sequence[str]) -> tuple[str, ...]:
    """The heads that a `mode` attacks, of a policy with these `heads`: one of them, or all.

    All are "both"; null means that too. ConfigError names the nearest valid mode.
    """
    if mode is None:
        return tuple(heads)
    names = list(heads)
    if len(heads) > 1:
        names.append("both")
    if choice(mode, names, "env.mode") == "both":
        return tuple(heads)
    return (mode,)


def _attackable(opened: Opened) -> gymnasium.spaces.Box:
    """The victims' observation space; ConfigError where nobody can learn to attack them."""
    space = opened.spec.observation_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise ConfigError(f"env: needs victims with continuous observations; these see {space}.")
    if opened.spec.stack > 1:
        raise ConfigError(
            f"env: these victims see {opened.spec.stack} observations at once (env.stack); "
            "what was shown before cannot be moved again, and no adversary learns that yet."
        )
    if opened.env.get("drift"):
        raise ConfigError("env: the victims' env drifts (env.drift); an adversary needs one env.")
    return space


def _size_of_returns(runs: Sequence[Run]) -> float:
    """The mean size of the returns by which the weights of the victims' `runs` were kept.

    Rewards in this unit suit Huber's loss, which is of the mean only where errors are below 1. Of
    larger errors it is of the median, and an adversary does not see its few great successes: six
    hierarchical agents on Acrobot fell to -274 on average instead of -495.
    """
    values = [value for run in runs for value in run.checkpoints.counters("best")["value"]]
    sizes = np.abs(np.array(values, dtype=np.float64))
    size = float(sizes[np.isfinite(sizes)].mean()) if np.isfinite(sizes).any() else 0.0
    return size or 1.0


def _no_spread() -> np.ndarray:
    """ConfigError: the standard deviations of visited observations would have to be played."""
    raise ConfigError("env.scale=std: expected bounds, or one number per component.")
