"""The weights that a run keeps: each seed's own, from its best evaluation or from its stop."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlx.agent import Policy


class Kept:
    """The weights that a run keeps of each seed, from whichever step."""

    def __init__(self, policy: Policy, seeds: int):
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.step = torch.zeros(seeds, dtype=torch.int64)
        self.value = torch.full((seeds,), -torch.inf, dtype=torch.float64)
        self.solved = torch.zeros(seeds, dtype=torch.bool)
        self.changed = True
        """Whether the disk may hold others."""

    def improve(self, policy: Policy, value: Tensor, step: int) -> None:
        """Keep `policy` in the seeds where its greedy evaluation `value` [S] is the best so far, the later one among equals."""
        better = value >= self.value
        device = next(policy.parameters()).device
        everyone = torch.arange(len(better), device=device)
        self.keep(policy, everyone, better.to(device), step, torch.zeros_like(better), value)

    def keep(
        self,
        policy: Policy,
        running: Tensor,
        where: Tensor,
        step: int,
        solved: Tensor,
        value: Tensor,
    ) -> None:
        """Keep `policy`, which holds the seeds `running`, in those of them `where` is true."""
        self.changed = True
        rows = running[where]
        for mine, theirs in zip(
            self.policy.state_dict().values(), policy.state_dict().values(), strict=True
        ):
            mine[rows] = theirs[where]
        rows = rows.cpu()
        self.step[rows] = step
        self.solved[rows] = solved[where.cpu()]
        self.value[rows] = value.cpu()[where.cpu()].double()

    def facts(self) -> dict[str, Any]:
        """For state.json and the summary."""
        return {"step": self.step, "value": self.value, "solved": self.solved}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors [S, …]."""
        return self.facts() | {
            f"policy.{name}": value for name, value in self.policy.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.changed = True
        self.step, self.value, self.solved = (
            state[name].clone() for name in ("step", "value", "solved")
        )
        self.policy.load_state_dict(
            {
                name.removeprefix("policy."): value
                for name, value in state.items()
                if name.startswith("policy.")
            }
        )
