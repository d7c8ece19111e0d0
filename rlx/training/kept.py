"""The weights that a run keeps of each seed, from its best evaluation or from its stop."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlx.agent import Policy


class Kept:
    """The weights that a run keeps of S seeds; those of two seeds may be from different steps."""

    def __init__(self, policy: Policy, seeds: int):
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.step = torch.zeros(seeds, dtype=torch.int64)
        """int64 [S]: the step at which a seed had these weights."""
        self.value = torch.full((seeds,), -torch.inf, dtype=torch.float64)
        """float64 [S]: the return by which a seed's weights were kept; −∞ before the first."""
        self.solved = torch.zeros(seeds, dtype=torch.bool)
        """bool [S]: whether the stop rule counted the seed as solved."""
        self.changed = True
        """Whether the weights have changed since they were last saved."""

    def improve(self, policy: Policy, running: Tensor, value: Tensor, step: int) -> None:
        """Keep the weights of a `policy` of S' seeds where they are the best so far.

        `running`: int64 [S'], the rows of these seeds among all S; `value`: [S'], the returns of
        the policy's greedy evaluation. Among equals the later wins.
        """
        better = value >= self.value[running.cpu()]
        unsolved = torch.zeros_like(better)
        where = better.to(running.device)
        self.keep(policy, running, where, step, solved=unsolved, value=value)

    def keep(
        self,
        policy: Policy,
        running: Tensor,
        where: Tensor,
        step: int,
        *,
        solved: Tensor,
        value: Tensor,
    ) -> None:
        """Keep the weights of a `policy` of S' seeds where `where` (bool [S']) is true.

        `running`: int64 [S'], the rows of these seeds among all S. `solved` (bool [S']) and `value`
        ([S']) are noted with the weights.
        """
        self.changed = True
        rows = running[where]
        kept = self.policy.state_dict().values()
        for kept_tensor, tensor in zip(kept, policy.state_dict().values(), strict=True):
            kept_tensor[rows] = tensor[where]
        rows = rows.cpu()
        where = where.cpu()
        self.step[rows] = step
        self.solved[rows] = solved[where]
        self.value[rows] = value.cpu()[where].double()

    def facts(self) -> dict[str, Any]:
        """The facts about the weights in state.json and in the summary: name → [S]."""
        return {"step": self.step, "value": self.value, "solved": self.solved}

    def state_dict(self) -> dict[str, Tensor]:
        """The weights and the facts about them: tensors [S, …] by name."""
        policy = self.policy.state_dict()
        return self.facts() | {f"policy.{name}": value for name, value in policy.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        self.changed = True
        self.step = state["step"].clone()
        self.value = state["value"].clone()
        self.solved = state["solved"].clone()
        policy = {}
        for name, value in state.items():
            if name.startswith("policy."):
                policy[name.removeprefix("policy.")] = value
        self.policy.load_state_dict(policy)
