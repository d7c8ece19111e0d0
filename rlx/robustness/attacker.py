"""How a policy chooses under attack: the way of an observation from the env to a decision."""

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Scores, Spec
from rlx.nn.rng import mix64, seed_tensor, stream_key, uniform
from rlx.threat import Attack, Boxes, Mode, Witness

FLIP_SHARE = 0.05
"""Share of its range by which a number of a continuous action must move to count as flipped."""


def flipped(action_space: gymnasium.Space, decision: Tensor, clean: Tensor) -> Tensor:
    """Whether a `decision` differs from the `clean` one, bool [S, B].

    Choices are int64 [S, B]; an action [S, B, D] of a Box differs where one of its numbers moved by
    more than `FLIP_SHARE` of its range.
    """
    if not isinstance(action_space, gymnasium.spaces.Box):
        return decision != clean
    low = torch.as_tensor(action_space.low, device=clean.device)
    high = torch.as_tensor(action_space.high, device=clean.device)
    return ((decision - clean).abs() > FLIP_SHARE * (high - low)).any(-1)


@dataclass
class Sensor:
    """What one head of the policy sees through; its tensors have a row for each copy, [S · B]."""

    radius: Tensor
    """How far the attack may move an observation, in units of eps; 0 for a head not attacked."""
    key: Tensor
    """The key of each copy's random numbers, int64."""
    attacked: bool
    """Whether the radius is above 0 anywhere."""
    decisions: Tensor
    """How many decisions each copy has taken, int64."""
    flips: Tensor
    """How many decisions of each copy the perturbation changed, int64."""
    draws: int = 0
    """How many random numbers were drawn with each key."""
    past: Tensor | None = None
    """The observations [S · B, stack − 1, C, …] that the head was shown before, the newest last.

    None before the first decision, and where the env stacks no observations."""


class Attacker:
    """Lets a policy choose greedily on perturbed observations, and counts the flipped decisions.

    Each column of its batch [S, B] has a mode and a radius of its own. Random numbers depend only
    on seed, episode, head and step, so that no cell of a sweep depends on the other cells or on how
    the sweep is cut into chunks.

    An attacker serves one `rollout`. Nothing in it restarts where `first` is true, because
    `rollout` plays only one episode on each copy.
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
        boxes: Boxes,
    ):
        """Attack the columns of the batch that starts from `reset_seeds` (int64 [S, B]).

        `column_modes`: int64 [B], which of `modes` each column has; `column_radii`: float [B], in
        units of eps; `seeds`: the numbers of the S seeds; `boxes`: those of the env's observations.
        """
        device = reset_seeds.device
        self.attack = attack
        self.shape = reset_seeds.shape
        self.stack = spec.stack
        self.action_space = spec.action_space
        # Of a stack only the newest observation can be moved.
        self.boxes = boxes.of_newest(spec.stack)
        self.sensors: dict[str, Sensor] = {}
        self.witness: Witness | None = None
        """Who is told of every decision; None: nobody."""
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

    def make_choose(self, ids: Tensor) -> Choose:
        """How the copies `ids` choose, for `rollout`: int64 [S', B'], numbers in the flat S · B."""
        return AttackedChoice(self, ids)

    def decisions(self) -> dict[str, Tensor]:
        """How many decisions each head took, [S, B]."""
        sensors = self.sensors.items()
        return {head: sensor.decisions.view(self.shape) for head, sensor in sensors}

    def flips(self) -> dict[str, Tensor]:
        """How many decisions of each head the perturbation changed, [S, B]."""
        sensors = self.sensors.items()
        return {head: sensor.flips.view(self.shape) for head, sensor in sensors}


class AttackedChoice:
    """The choice of some copies [S', B'] of an attacker's batch, a `Choose`.

    An observation passes through the methods in the order in which they are written: of a stack the
    newest is taken, it is perturbed, the decision there is compared with the clean one, decisions
    and flips are counted, and the observation shown is kept for the next stack.
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
            shown_obs = self._perturbed(head, obs, scores)
            decision = scores.best(shown_obs)
            changed = flipped(self.attacker.action_space, decision, clean)
            self._count(sensor.flips, changed & deciding)
        else:
            shown_obs = obs
            decision = clean
            changed = torch.zeros_like(deciding)
        self._count(sensor.decisions, deciding)
        if self.attacker.witness is not None:
            self.attacker.witness(head, obs, shown_obs, decision, clean, changed, deciding)
        if self.stack > 1:
            self._remember(sensor, shown_obs)
        return decision

    def _newest(self, sensor: Sensor, obs: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
        """The newest observation [S', B', C, …] of the stacks `obs` [S', B', stack · C, …].

        Its scores come with it. The observations before it stay as they were shown, perturbed or
        not: the past can no longer be moved.
        """
        newest = obs.unflatten(2, (self.stack, -1))[:, :, -1]
        past = None
        if sensor.past is not None:
            past = sensor.past[self.ids].unflatten(0, newest.shape[:2])

        def values(frame: Tensor) -> Tensor:
            return scores.function(self._stacked(past, frame))

        def choice(frame: Tensor) -> Tensor:
            return scores.best(self._stacked(past, frame))

        if scores.choice is None:
            return newest, Scores(values, scores.bounds)
        return newest, Scores(values, scores.bounds, choice)

    def _stacked(self, past: Tensor | None, frame: Tensor) -> Tensor:
        """`frame` [S', B', C, …] after its past, [S', B', stack · C, …].

        `past`: [S', B', stack − 1, C, …]; None at the first decision of an episode, which begins
        with its first observation `stack` times.
        """
        newest = frame.unsqueeze(2)
        if past is None:
            past = newest.expand(-1, -1, self.stack - 1, *frame.shape[2:])
        return torch.cat([past, newest], 2).flatten(2, 3)

    def _perturbed(self, head: str, obs: Tensor, scores: Scores) -> Tensor:
        """The observations [S', B', *O] that `head` is shown in place of `obs` [S', B', *O]."""
        sensor = self.attacker.sensors[head]
        key = self.key[head]
        budget = self.attacker.boxes.around(obs, self.radius[head])

        def draw(count: int) -> Tensor:
            """The next numbers [S', B', count] of each copy's stream."""
            counter = key.new_full((), sensor.draws)
            sensor.draws += count
            return uniform(key, counter, count)

        shown_obs = self.attacker.attack.perturb(scores, obs, budget, draw)
        # Noise that is not clipped, or somebody's own attack, may not have looked at the angles.
        return budget.project(shown_obs, obs) if budget.angles else shown_obs

    def _count(self, counts: Tensor, mask: Tensor) -> None:
        """Add one to the `counts` [S · B] of the copies where `mask` [S', B'] is true."""
        counts.index_add_(0, self.ids, mask.flatten().long())

    def _remember(self, sensor: Sensor, shown_obs: Tensor) -> None:
        """Keep the observations `shown_obs` [S', B', C, …] as the newest of the past."""
        frame = shown_obs.detach().flatten(0, 1).unsqueeze(1)
        if sensor.past is None:
            past = frame.expand(-1, self.stack - 1, *frame.shape[2:])
            sensor.past = frame.new_zeros(len(sensor.radius), *past.shape[1:])
        else:
            past = torch.cat([sensor.past[self.ids][:, 1:], frame], 1)
        sensor.past[self.ids] = past
