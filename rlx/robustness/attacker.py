"""How a policy chooses under attack: the way of an observation from the env to a decision."""

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Scores, Spec
from rlx.nn.rng import mix64, seed_tensor, stream_key, uniform
from rlx.nn.seed_axis import along
from rlx.threat import Attack, Budget, Mode

FLIP_SHARE = 0.05
"""Share of its range by which a number of a continuous action must move to count as flipped."""


@dataclass
class Sensor:
    """What one head of the policy sees through. Its tensors have a row for each copy, [S · B]."""

    radius: Tensor
    """How far the attack may move an observation, in units of eps; 0 where it attacks others."""
    key: Tensor
    """The key of each copy's random numbers, int64."""
    attacked: bool
    """Whether the radius is above 0 anywhere."""
    decisions: Tensor
    """How many decisions each copy has taken, int64."""
    flips: Tensor
    """How many of these decisions the perturbation changed, int64."""
    draws: int = 0
    """How many random numbers were drawn with each key."""
    shown: Tensor | None = None
    """Of a stack of observations, those shown before: [S · B, stack − 1, C, …], the newest last."""


class Attacker:
    """Lets a policy choose greedily on perturbed observations, and counts the flipped decisions.

    Each column of its batch [S, B] has a mode and a radius of its own. Random numbers depend only
    on seed, episode, head and step, so that no cell of a sweep depends on the other cells or on how
    the sweep is cut into chunks.
    """

    def __init__(
        self,
        attack: Attack,
        policy: Policy,
        spec: Spec,
        *,
        modes: Sequence[Mode],
        column_modes: Tensor,
        column_radii: Tensor,
        seeds: Sequence[int],
        reset_seeds: Tensor,
        scale: np.ndarray,
    ):
        """Attack the columns of the batch that starts from `reset_seeds` (int64 [S, B]).

        `column_modes`: int64 [B], which of `modes` each column has; `column_radii`: float [B], in
        units of eps; `seeds`: the numbers of the S seeds; `scale`: [*O], what eps = 1 means for an
        observation.
        """
        device = reset_seeds.device
        self.attack = attack
        self.shape = reset_seeds.shape
        self.stack = spec.stack
        self.space = spec.observation_space
        self.action_space = spec.action_space
        self.scale = torch.as_tensor(scale, dtype=torch.float32, device=device)
        if spec.stack > 1:
            # Only the newest of the stacked observations can be moved.
            assert isinstance(self.space, gymnasium.spaces.Box)
            size = self.scale.shape[0] // spec.stack
            self.scale = self.scale[-size:]
            low = self.space.low[-size:]
            high = self.space.high[-size:]
            self.space = gymnasium.spaces.Box(low, high, dtype=self.space.dtype)  # type: ignore[arg-type]
        self.sensors: dict[str, Sensor] = {}
        stream = mix64(seed_tensor(seeds, device).unsqueeze(1) + mix64(reset_seeds))
        common_key = stream_key(stream, "all heads")
        shared = torch.tensor([mode.shared for mode in modes], device=device)[column_modes]
        for head in policy.heads:
            in_mode = torch.tensor([head in mode.heads for mode in modes], device=device)
            radius = torch.where(in_mode[column_modes], column_radii, 0.0).expand(self.shape)
            key = torch.where(shared, common_key, stream_key(stream, head))
            self.sensors[head] = Sensor(
                radius=radius.flatten(),
                key=key.flatten(),
                attacked=bool(radius.any()),
                decisions=torch.zeros(reset_seeds.numel(), dtype=torch.int64, device=device),
                flips=torch.zeros(reset_seeds.numel(), dtype=torch.int64, device=device),
            )

    def chooser(self, ids: Tensor) -> Choose:
        """For `rollout`: how the copies `ids` [S', B'] choose, numbers in the flat S · B."""
        return Chooser(self, ids)

    def decisions(self) -> dict[str, Tensor]:
        """How many decisions each head took, [S, B]."""
        sensors = self.sensors.items()
        return {head: sensor.decisions.view(self.shape) for head, sensor in sensors}

    def flips(self) -> dict[str, Tensor]:
        """How many of its decisions the perturbation changed, [S, B]."""
        sensors = self.sensors.items()
        return {head: sensor.flips.view(self.shape) for head, sensor in sensors}


class Chooser:
    """How some copies [S', B'] of an attacker's batch choose.

    An observation passes through the methods in the order in which they are written: of a stack the
    newest is taken, it is perturbed, the decision there is compared with the clean one, both are
    counted, and what was shown is remembered for the next stack.
    """

    def __init__(self, attacker: Attacker, ids: Tensor):
        self.attacker = attacker
        self.stack = attacker.stack
        self.ids = ids.flatten()
        """Rows of the sensors' tensors, [S' · B']."""
        self.radius: dict[str, Tensor] = {}
        """The radius of each copy, by head, [S', B']."""
        self.key: dict[str, Tensor] = {}
        """The random key of each copy, by head, [S', B']."""
        for head, sensor in attacker.sensors.items():
            self.radius[head] = sensor.radius[self.ids].view(ids.shape)
            self.key[head] = sensor.key[self.ids].view(ids.shape)

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Decide at a perturbed `obs` [S', B', *O]; the arguments and the result are `Choose`'s."""
        sensor = self.attacker.sensors[head]
        obs = obs.float()  # images are whole numbers, which have no gradient
        if self.stack > 1:
            obs, scores = self._newest(sensor, obs, scores)
        clean = scores.best(obs)
        if sensor.attacked:
            shown = self._perturbed(head, obs, scores)
            decision = scores.best(shown)
            flipped = self._flipped(decision, clean)
            self._count(sensor.flips, flipped & deciding)
        else:
            shown = obs
            decision = clean
        self._count(sensor.decisions, deciding)
        if self.stack > 1:
            self._remember(sensor, shown)
        return decision

    def _newest(self, sensor: Sensor, obs: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """The newest of the stacked observations `obs` [S', B', stack · C, …], and its scores.

        The newest one is [S', B', C, …]. Those before it stay as they were shown, perturbed or not:
        the past can no longer be moved.
        """
        newest = obs.unflatten(2, (self.stack, -1))[:, :, -1]
        past = None
        if sensor.shown is not None:
            past = sensor.shown[self.ids].unflatten(0, newest.shape[:2])

        def values(frame: Tensor) -> Tensor:
            return scores(self._stacked(past, frame))

        def choice(frame: Tensor) -> Tensor:
            return scores.best(self._stacked(past, frame))

        return newest, Scores(values, scores.bounds, None if scores.choice is None else choice)

    def _stacked(self, past: Tensor | None, frame: Tensor) -> Tensor:
        """`frame` [S', B', C, …] after its past, [S', B', stack · C, …].

        An episode begins with its first observation `stack` times, all of them alike, as in
        `rlx.envs.view.View`.
        """
        newest = frame.unsqueeze(2)
        if past is None:
            past = newest.expand(-1, -1, self.stack - 1, *frame.shape[2:])
        return torch.cat([past, newest], 2).flatten(2, 3)

    def _perturbed(self, head: str, obs: Tensor, scores: Scores) -> Tensor:
        """What `head` is shown in place of the observations `obs` [S', B', *O]."""
        sensor = self.attacker.sensors[head]
        scale = self.attacker.scale
        key = self.key[head]
        radius = along(self.radius[head], obs) * scale
        budget = Budget.of(self.attacker.space, radius)

        def draw(count: int) -> Tensor:
            """The next numbers [S', B', count] of each copy's stream."""
            counter = key.new_full((), sensor.draws)
            sensor.draws += count
            return uniform(key, counter, count)

        return self.attacker.attack.perturb(scores, obs, budget, draw)

    def _flipped(self, decision: Tensor, clean: Tensor) -> Tensor:
        """Whether the decision is another one than the `clean` one, bool [S', B'].

        A continuous action is another one where a number of it moved by more than `FLIP_SHARE`.
        """
        space = self.attacker.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            return decision != clean
        low = torch.as_tensor(space.low, device=clean.device)
        high = torch.as_tensor(space.high, device=clean.device)
        return ((decision - clean).abs() > FLIP_SHARE * (high - low)).any(-1)

    def _count(self, counts: Tensor, which: Tensor) -> None:
        """Add one to the `counts` [S · B] of the copies `which`, bool [S', B']."""
        counts.index_add_(0, self.ids, which.flatten().long())

    def _remember(self, sensor: Sensor, shown: Tensor) -> None:
        """Note that the observations `shown` [S', B', C, …] were shown."""
        frame = shown.detach().flatten(0, 1).unsqueeze(1)
        if sensor.shown is None:
            past = frame.expand(-1, self.stack - 1, *frame.shape[2:])
            sensor.shown = frame.new_zeros(len(sensor.radius), *past.shape[1:])
        else:
            past = torch.cat([sensor.shown[self.ids][:, 1:], frame], 1)
        sensor.shown[self.ids] = past
