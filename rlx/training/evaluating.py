"""Greedy evaluations of a training, with a compiled step."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlx.evaluation import SELECTION, episode_seeds
from rlx.rollout import STATE, Batch, Episodes, check_rewards
from rlx.training.traced import Call, Memory, NotTraceable

if TYPE_CHECKING:
    from rlx.training.compiled import CompiledSteps

LANES = 64
"""Episodes of a seed that are played at once; with more, a CPU's caches no longer hold them."""
STEPS = 16
"""Steps between two looks at which episodes go on: looking makes a GPU wait."""


class CompiledEvaluation:
    """The evaluations of a training, each of the same episodes, as `evaluate` plays them.

    A compiled step has one number of env copies. For the cost to be that of the steps played, a few
    copies, the lanes, play all episodes: where one has ended, another goes on in its place.
    """

    def __init__(self, steps: "CompiledSteps"):
        self.steps = steps
        training = steps.training
        self.policy = training.agent.policy
        self.make_env = training.make_env
        seeds = len(training.running)
        episodes = training.config.eval_episodes
        self.reset_seeds = episode_seeds(SELECTION, episodes, seeds, training.device)
        self.lanes: Batch | None = None
        """[S, L]: the copies that play; None before the first evaluation."""
        self.memory: Memory
        """The tensors of the policy and the lanes."""
        self.call: Call | None = None
        """The compiled step of the lanes; None: it cannot be compiled."""

    def episodes(self) -> Episodes | None:
        """The episodes [S, B] of the policy as it is now; None where its step is not compiled."""
        if self.lanes is None and self.steps.training.agent.traceable:
            self._compile()
        if self.call is None:
            return None
        changed = self.memory.reads.changed()
        if changed is not None:
            self.steps.refuse(f"{changed} changes between evaluations, and is no buffer")
            self.call = None
            return None
        self.memory.settle(self.memory.tensors)
        return self._play()

    def _compile(self) -> None:
        """Make the lanes, and compile their step."""
        resets = self.reset_seeds[:, :LANES]
        self.lanes = Batch(self.policy, self.make_env(resets.numel()), resets)
        places = [(vars(self.lanes), name) for name in STATE]
        try:
            self.memory = Memory(self.policy, self.lanes.env, self.lanes.carry, places)
        except NotTraceable as error:
            self.steps.refuse(f"evaluation cannot be compiled: {error}", error)
            return
        self.call = self.steps.compile("evaluation", self.memory, self._step)

    def _step(self) -> list[Tensor]:
        """Play one step on every lane."""
        assert self.lanes is not None
        carry = self.lanes.carry
        self.lanes.step()
        carry.update(self.lanes.carry)
        self.lanes.carry = carry
        return []

    @torch.no_grad()
    def _play(self) -> Episodes:
        """Play all episodes, on the lanes."""
        assert self.lanes is not None and self.call is not None
        shape = self.reset_seeds.shape
        batch = Batch(self.policy, self.make_env(shape.numel()), self.reset_seeds)
        # Some may lie in the same memory, as what is 0 at first.
        of_episodes = [tensor.clone() for tensor in _tensors(batch)]
        of_lanes = _tensors(self.lanes)
        alive, returns, lengths, truncated = of_episodes[-4:]
        first_of_seed = torch.arange(shape[0], device=alive.device).unsqueeze(1) * shape[1]
        while alive.any():
            ended = (~alive).view(shape).to(torch.int8)
            next_ones = ended.argsort(dim=1, stable=True)[:, :LANES]
            played = (first_of_seed + next_ones).flatten()
            for lane, values in zip(of_lanes, of_episodes, strict=True):
                lane.copy_(values[played])
            for _ in range(STEPS):
                self.call()
            for lane, values in zip(of_lanes, of_episodes, strict=True):
                values[played] = lane
        episodes = Episodes(returns.view(shape), lengths.view(shape), truncated.view(shape))
        check_rewards(episodes, self.reset_seeds)
        return episodes


def _tensors(batch: Batch) -> list[Tensor]:
    """[S·B, …] each: all that decides how the episodes of a batch [S, B] go on."""
    tensors = [*batch.carry.values(), *(getattr(batch, name) for name in STATE)]
    return [*batch.env.state_dict().values(), *(tensor.flatten(0, 1) for tensor in tensors)]
