"""The returns and metrics that a run notes between two evaluations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlx.errors import RunError
from rlx.rollout import Episodes


class Log:
    """Training returns and the newest metrics of S seeds, gathered on the device without a sync."""

    def __init__(self, shape: tuple[int, int], device: torch.device):
        seeds, _ = shape
        self.running = torch.zeros(shape, device=device)
        """[S, N]: returns so far of the running episodes."""
        self.sum = torch.zeros(seeds, device=device)
        """[S]: sum of the returns of the episodes that ended since `rows` was last called."""
        self.count = torch.zeros(seeds, device=device)
        """[S]: number of the episodes that ended since `rows` was last called."""
        self.bad = torch.zeros(seeds, dtype=torch.int64, device=device)
        """int64 [S]: the first step at which a metric was not finite; 0: all have been."""
        self.metrics: dict[str, Tensor] = {}
        """The newest value of each metric, name → [S]."""

    def add(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Count a vector step.

        `reward`: [S, N], of the env copies; `ended`: bool [S, N], whether their episodes ended.
        Returns [S, N], the returns so far of the running episodes, those that ended included.
        """
        returns = self.running + reward
        self.sum = self.sum + torch.where(ended, returns, 0.0).sum(1)
        self.count = self.count + ended.sum(1)
        self.running = torch.where(ended, 0.0, returns)
        return returns

    def note(self, metrics: dict[str, Tensor], step: Tensor | int) -> None:
        """Keep `metrics`, name → [S], of what was learnt after `step` steps of each seed."""
        self.metrics |= metrics
        for value in metrics.values():
            first_bad = (self.bad == 0) & ~value.isfinite()
            self.bad = torch.where(first_bad, step, self.bad)

    def check(self, seeds: list[int], obs: Tensor) -> None:
        """Raise RunError if one of the S running `seeds` met a number that is not finite.

        Rewards come first, then the observations `obs` [S, N, *O]: what the env did wrong shows in
        the losses too. NaN and infinity stay in a sum of rewards.
        """
        totals = {
            "reward": self.running.sum(1) + self.sum,
            "observation": obs.flatten(1).float().sum(1),
        }
        for quantity, total in totals.items():
            if not total.isfinite().all():
                row = int(torch.nonzero(~total.isfinite())[0])
                raise RunError(f"env: gave a {quantity} that is not finite to seed {seeds[row]}")
        if (self.bad > 0).any():
            row = int(torch.nonzero(self.bad)[0])
            step = int(self.bad[row])
            names = [name for name, value in self.metrics.items() if not value[row].isfinite()]
            name = names[0] if names else "a loss"
            raise RunError(f"{name} of seed {seeds[row]} became non-finite at step {step:,}")

    def rows(
        self, step: int, seeds: list[int], episodes: Episodes, steps_per_s: float
    ) -> list[dict[str, Any]]:
        """A row of metrics.jsonl for each seed; starts a new count of training returns.

        `episodes`: [S, B], those of the evaluation at `step`.
        """
        train = (self.sum / self.count).tolist()
        self.sum.zero_()
        self.count.zero_()
        columns = {
            "return/mean": episodes.returns.mean(1),
            "length/mean": episodes.lengths.double().mean(1),
            **dict(sorted(self.metrics.items())),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        rows = []
        for i, seed in enumerate(seeds):
            row = {
                "step": step,
                "seed": seed,
                "return/train": train[i],
                "time/steps_per_s": steps_per_s,
            }
            rows.append(row | {name: column[i] for name, column in values.items()})
        return rows

    def take(self, index: Tensor) -> None:
        """Go on with the seeds `index` (int64 [S']) only."""
        self.load_state_dict({name: value[index] for name, value in self.state_dict().items()})

    def part(self, index: Tensor) -> "Log":
        """The log of the seeds `index` (int64 [S']) alone, a copy."""
        part = Log((len(index), self.running.shape[1]), self.running.device)
        part.load_state_dict({name: value[index] for name, value in self.state_dict().items()})
        return part

    def state_dict(self) -> dict[str, Tensor]:
        """The counts and the newest metrics: tensors [S, …] by name."""
        counts = {"running": self.running, "sum": self.sum, "count": self.count, "bad": self.bad}
        return counts | {f"metrics.{name}": value for name, value in self.metrics.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        self.running = state["running"]
        self.sum = state["sum"]
        self.count = state["count"]
        self.bad = state["bad"]
        self.metrics = {}
        for name, value in state.items():
            if name.startswith("metrics."):
                self.metrics[name.removeprefix("metrics.")] = value
