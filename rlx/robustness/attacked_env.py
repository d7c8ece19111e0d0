"""An env in which an adversary learns: its actions are the decisions that it can force."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Carry, Policy, Rules, Scores
from rlx.config import Count, Index, Positive, choice
from rlx.env import resize, spread_fresh
from rlx.errors import ConfigError
from rlx.grids import parse_grid
from rlx.nn.rng import mix64, stream_key, uniform
from rlx.nn.seed_axis import along, rows_within, take
from rlx.policies import Opened, open_runs
from rlx.robustness.attacker import flipped
from rlx.robustness.manifold import kept_angles
from rlx.robustness.reachable import Reachable, reachable
from rlx.robustness.scale import unit_scale
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.threat import Budget, Draw

MOST_ACTIONS = 64
"""Most combinations of choices that an adversary has at a step."""


class Forceable:
    """The rules by which an agent leaves out what cannot be forced: the `legal` of `Rules`.

    Without them most actions would be the victim's own choice under other names.
    """

    def __init__(self, choices: Sequence[int]):
        """`choices`: the number of choices of each attacked head."""
        self.first = choices[0]
        """How many choices the first head has, of which an observation says what can be forced."""
        self.others = math.prod(choices[1:])
        """How many combinations the others have; they are not known before the first is forced."""

    def legal(self, obs: Tensor) -> Tensor:
        """Which actions force something at observations [..., O'], bool [..., A]."""
        mask = obs[..., -1 - self.first : -1] > 0.5
        return mask.repeat_interleave(self.others, -1)

    def after(self, obs: Tensor) -> Tensor:
        """ConfigError: this is no game of two players."""
        raise ConfigError("agent: needs a game of two players in turn; env=attacked is none.")

    has_won = after


class _Look(NamedTuple):
    """What the victims would do at some observations [M', B', *O], and what they can be forced to.

    M' is the rows of the policy, B' the copies of each."""

    own_choices: Tensor
    """What each attacked head would choose by itself, as an observation shows it, [M', B', …]."""
    mask: Tensor
    """Which choices of the first attacked head can be forced, bool [M', B', K]."""
    forcing: Tensor
    """What must be shown for that, [M', B', K, *O]."""


class AttackedEnv(VectorEnv):
    """Victims in their env, seen by an adversary that moves what they observe: a `TensorEnv`.

    The perturbed victim is a decision process of the adversary (Zhang et al. 2020,
    arXiv:2003.08938). Which observation is shown need not be learnt: the adversary says which
    choice each attacked head shall take, and a gradient finds the observation within the box that
    forces it (Sun et al. 2022, arXiv:2106.05087).

    There is a *member* for each victim, restart and radius, counted in this order with the radius
    last. The B copies are shared out among the M members in equal groups, in order: copy i belongs
    to member i // (B / M). So a training of `seeds=M` has an adversary for each member, and one of
    as many seeds as there are victims × restarts has adversaries that serve all radii. A single
    copy belongs to member 0.

    An observation [O'] is flat: what the victim observes, the choice that each attacked head would
    take by itself (one-hot; of continuous actions the action, from −1 to 1), which choices of the
    first attacked head can be forced, and the radius as a share of the largest. An action numbers
    the combinations of one choice of each attacked head, the first head's choice changing slowest.
    What cannot be forced is left to the victim, so that its own choice means to leave it alone.
    Where the victim's actions are continuous, choice 0 leaves it alone, choices 1 + 2d and 2 + 2d
    push number d as low and as high as the box allows.

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
        num_envs: int = 1,
        device: torch.device | str = "cpu",
    ):
        """The keys of conf/env/attacked.yaml; ConfigError where they cannot be.

        `run`: run directories of the victims; `checkpoint` and `seeds`: which of their weights;
        `mode`: a head, or "both" (null) for all; `eps`: the radii, in units of `scale`, which is
        "bounds" or [*O]; `manifold`: "angle" to keep angles on the circle, or null; `restarts`:
        adversaries of one victim; `steps` and `samples`: as of `reachable`; `unit`: by what rewards
        are divided, null: the size of the victims' return.
        """
        self.device = torch.device(device)
        runs = find_all(run, "outputs")
        self.opened = open_runs(runs, checkpoint, self.device, seeds)
        self.unit = _size_of_returns(runs) if unit is None else unit
        space = _attackable(self.opened)
        policy = self.opened.policy
        self.heads = attacked_heads(mode, policy.heads)
        """The attacked heads, the top level first."""
        self.eps = parse_grid(eps, "env.eps")
        self.scale = torch.as_tensor(
            unit_scale(scale, space, _no_spread), dtype=torch.float32, device=self.device
        )
        self._obs_unit = float(space.high.max()) if np.issubdtype(space.dtype, np.integer) else 1.0
        """By what the victim's observations are divided: a network cannot learn from 255."""
        self.steps = steps
        self.samples = samples
        self._action_space = self.opened.spec.action_space
        """The victim's own actions."""
        self.counts = counts = (len(self.opened.seeds), restarts, len(self.eps))
        """The numbers of victims, restarts and radii."""
        victim, _, radius = torch.unravel_index(
            torch.arange(math.prod(counts), device=self.device), counts
        )
        self._victim_of = victim
        """int64 [M]: the victim of each member, a row of the policy."""
        self._eps_of = torch.tensor(self.eps, device=self.device)[radius]
        """float32 [M]: the radius of each member."""
        member = _shared_out(num_envs, counts, self.device)

        self.env = self.opened.make_env(num_envs)
        """The victims' own env."""
        self._angles = kept_angles(manifold, self.env)
        """Pairs (cosine, sine) of the victim's observations that stay on the circle."""
        self.max_episode_steps = self.env.max_episode_steps
        self.choices = self._count_choices()
        """The number of choices K of each attacked head."""
        combinations = math.prod(self.choices)
        if combinations > MOST_ACTIONS:
            raise ConfigError(
                f"env.mode={mode}: {combinations:,} combinations of choices, "
                f"{' × '.join(map(str, self.choices))}; at most {MOST_ACTIONS} can be learnt."
            )
        self.rules = Forceable(self.choices)
        self.single_action_space = gymnasium.spaces.Discrete(combinations)
        obs_size = math.prod(space.shape) + self._own_size() + self.choices[0] + 1
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_size,))
        resize(self, num_envs)

        self._state: dict[str, Tensor] = {"member": member}
        """All but the env's own state that decides the copies' future, [B, …].

        `member`; from the first reset on `key` and `clock` (int64: a random stream, and the steps
        since then), `obs`, `first` and `carry.…` (what the victim acts on next), `forcing`
        ([B, K, *O], what forces the choices of the first attacked head there)."""
        self._group()
        self._begin_counting()

    def check_seeds(self, seeds: int, copies: Sequence[int]) -> None:
        """ConfigError unless each of so many `seeds` of a training has one victim and restart.

        It has one radius of them, or all. `copies`: the numbers of copies that a seed is given to
        learn in, and to be evaluated in.
        """
        victims, restarts, radii = self.counts
        adversaries = victims * restarts
        if seeds == adversaries * radii:
            return
        if seeds != adversaries:
            raise ConfigError(
                f"seeds: {seeds} for {victims} victims × {restarts} restarts; set "
                f"seeds={adversaries}, whose adversaries serve all radii, or seeds="
                f"{adversaries * radii}, one for each of the {radii} radii."
            )
        for number in copies:
            if number % radii:
                raise ConfigError(
                    f"num_envs, eval_episodes, final_episodes: {number} cannot be shared out among "
                    f"the {radii} radii of env.eps; take multiples of {radii}."
                )

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
        """As `TensorEnv.step`; `actions`: int64 [B], which choices shall be forced."""
        state = self._state
        picks = torch.unravel_index(
            torch.as_tensor(actions, device=self.device).view(self._shape), self.choices
        )

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if head not in self.heads:
                return scores.best(obs)
            number = self.heads.index(head)
            clean = scores.best(obs)
            forcing = self._grouped("forcing")
            if number > 0:
                forcing = self._reachable(head, scores, obs).obs
            # Last of all, the scores of what is shown: a policy's carry may keep that.
            pick = picks[number].unsqueeze(2)
            decision = scores.best(rows_within(forcing, pick).squeeze(2))
            self._count(head, deciding, flipped(self._action_space, decision, clean))
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
        self._policy: Policy = take(self.opened.policy, self._victim_of[members])

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

    def _reachable(self, head: str, scores: Scores, obs: Tensor, purpose: str = "") -> Reachable:
        """What can be forced on `head` at `obs` [M', B', *O]; `purpose` names the random stream."""
        eps = self._eps_of[self._state["member"]].view(self._shape)
        budget = Budget.of(
            self.opened.spec.observation_space, along(eps, obs) * self.scale, self._angles
        )
        draw = self._draw(head + purpose)
        return reachable(scores, obs.float(), budget, draw, steps=self.steps, samples=self.samples)

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
        look = self._looked_ahead(self._grouped("obs"), self._grouped("first"))
        self._state["forcing"] = look.forcing.flatten(0, 1)
        return self._observations(self._state["obs"], look.own_choices, look.mask)

    def _final_observations(self, obs: Tensor, truncated: Tensor) -> Tensor:
        """The observations [B, O'] of episodes that ended at the victim's `obs` [B, *O].

        Where an episode was `truncated` (bool [B]), the victim would go on; where it has
        terminated, there is nothing to choose, and 0 stands for all choices.
        """
        grouped_obs = obs.unflatten(0, self._shape)
        own_choices = obs.new_zeros(*self._shape, self._own_size(), dtype=torch.float32)
        mask = torch.zeros(*self._shape, self.choices[0], dtype=torch.bool, device=self.device)
        if truncated.any():
            going_on = torch.zeros(self._shape, dtype=torch.bool, device=self.device)
            look = self._looked_ahead(grouped_obs, going_on, "final")
            where = truncated.view(*self._shape, 1)
            own_choices = look.own_choices * where
            mask = look.mask & where
        return self._observations(obs, own_choices, mask)

    @torch.no_grad()
    def _looked_ahead(self, obs: Tensor, first: Tensor, purpose: str = "") -> _Look:
        """What the victims would choose at `obs`, and what they can be forced to.

        Nothing is changed by looking.
        """
        own_choices: list[Tensor] = []
        masks: list[Tensor] = []
        forcing: list[Tensor] = []

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            decision = scores.best(obs)
            if head not in self.heads:
                return decision
            if head == self.heads[0]:
                found = self._reachable(head, scores, obs, purpose)
                own = torch.nn.functional.one_hot(found.clean, self.choices[0]).bool()
                masks.append(torch.where(deciding.unsqueeze(-1), found.mask, own))
                forcing.append(found.obs)
            own_choices.append(self._shown_choice(decision, self.choices[self.heads.index(head)]))
            return decision

        self._policy.act(obs, first, self._carry(), choose)
        return _Look(torch.cat(own_choices, -1), masks[0], forcing[0])

    def _shown_choice(self, decision: Tensor, choices: int) -> Tensor:
        """A victim's `decision` as the adversary sees it, float32 [M', B', …]."""
        if not decision.is_floating_point():
            return torch.nn.functional.one_hot(decision, choices).float()
        space = self._action_space
        assert isinstance(space, gymnasium.spaces.Box)
        low = torch.as_tensor(space.low, device=decision.device)
        high = torch.as_tensor(space.high, device=decision.device)
        return 2 * (decision - low) / (high - low) - 1

    def _observations(self, obs: Tensor, own_choices: Tensor, mask: Tensor) -> Tensor:
        """The adversary's observations [B, O'] of their parts."""
        radius = self._eps_of[self._state["member"]].unsqueeze(1) / max(*self.eps, 1e-9)
        flat = (obs / self._obs_unit).flatten(1)
        return torch.cat([flat, own_choices.flatten(0, 1), mask.flatten(0, 1).float(), radius], 1)

    def _own_size(self) -> int:
        """Numbers by which an observation shows what the victim would choose by itself."""
        if isinstance(self._action_space, gymnasium.spaces.Box):
            return math.prod(self._action_space.shape)
        return sum(self.choices)

    def _count_choices(self) -> tuple[int, ...]:
        """The number of choices of each attacked head, as it is at the observation 0."""
        policy = self.opened.policy
        space = self.opened.spec.observation_space
        shape = (len(self.opened.seeds), 1)
        obs = torch.zeros(*shape, *(space.shape or ()), device=self.device)
        first = torch.ones(shape, dtype=torch.bool, device=self.device)
        counts: dict[str, int] = {}

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            values = scores(obs)
            numbers = values.shape[-1]
            counts[head] = 1 + 2 * numbers if scores.continuous else numbers
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


def _shared_out(num_envs: int, counts: tuple[int, int, int], device: torch.device) -> Tensor:
    """int64 [B]: the member of each of `num_envs` copies.

    `counts`: how many victims, restarts and radii there are. ConfigError where the copies cannot be
    shared out evenly.
    """
    members = math.prod(counts)
    if num_envs == 1:
        return torch.zeros(1, dtype=torch.int64, device=device)
    if num_envs % members:
        victims, restarts, radii = counts
        raise ConfigError(
            f"env: {num_envs} copies cannot be shared out among {members} adversaries "
            f"({victims} victims × {restarts} restarts × {radii} radii); take a multiple of that."
        )
    return torch.arange(members, device=device).repeat_interleave(num_envs // members)


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
