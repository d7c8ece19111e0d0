"""What a run notes of its learning between two evaluations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlx.errors import RunError
from rlx.rollout import Episodes


class Log:
    """Training returns and the newest metrics, gathered on the device without a sync."""

    def __init__(self, shape: tuple[int, int], device: torch.device):
        self.running = torch.zeros(shape, device=device)
        self.sum = torch.zeros(shape[0], device=device)
        self.count = torch.zeros(shape[0], device=device)
        self.bad = torch.zeros(shape[0], dtype=torch.int64, device=device)
        """First step at which a metric was not finite, else 0."""
        self.metrics: dict[str, Tensor] = {}

    def add(self, reward: Tensor, ended: Tensor, metrics: dict[str, Tensor], step: int) -> Tensor:
        """Count one vector step; returns the returns so far of the running episodes, those that ended included [S, N]."""
        self.running = self.running + reward
        returns = self.running
        self.sum = self.sum + torch.where(ended, returns, 0.0).sum(1)
        self.count = self.count + ended.sum(1)
        self.running = torch.where(ended, 0.0, returns)
        self.metrics |= metrics
        for value in metrics.values():
            self.bad = torch.where((self.bad == 0) & ~value.isfinite(), step, self.bad)
        return returns

    def check(self, seeds: list[int], obs: Tensor) -> None:
        """Raise RunError if one of `seeds` (those running, S of them) met a number that is not finite.

        Rewards come first, then the observations `obs` [S, N, *O]: what the env did wrong shows in
        the losses too. NaN and infinity stay in a sum of rewards.
        """
        entered = {
            "reward": self.running.sum(1) + self.sum,
            "observation": obs.flatten(1).float().sum(1),
        }
        for what, total in entered.items():
            if not total.isfinite().all():
                row = int(torch.nonzero(~total.isfinite())[0])
                raise RunError(f"env: gave a {what} that is not finite to seed {seeds[row]}")
        if (self.bad > 0).any():
            row = int(torch.nonzero(self.bad)[0])
            names = [name for name, value in self.metrics.items() if not value[row].isfinite()]
            name, step = names[0] if names else "a loss", int(self.bad[row])
            raise RunError(f"{name} of seed {seeds[row]} became non-finite at step {step:,}")

    def rows(
        self, step: int, seeds: list[int], episodes: Episodes, steps_per_s: float
    ) -> list[dict[str, Any]]:
        """One row per seed for metrics.jsonl; starts a new count of training returns."""
        train = (self.sum / self.count).tolist()
        self.sum, self.count = torch.zeros_like(self.sum), torch.zeros_like(self.count)
        columns = {
            "return/mean": episodes.returns.mean(1),
            "length/mean": episodes.lengths.double().mean(1),
        }
        values = {
            name: value.tolist()
            for name, value in (columns | dict(sorted(self.metrics.items()))).items()
        }
        return [
            {"step": step, "seed": seed, "return/train": train[i], "time/steps_per_s": steps_per_s}
            | {name: value[i] for name, value in values.items()}
            for i, seed in enumerate(seeds)
        ]

    def take(self, index: Tensor) -> None:
        """Go on with the seeds `index` only."""
        self.load_state_dict({name: value[index] for name, value in self.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors [S, …]."""
        own = {"running": self.running, "sum": self.sum, "count": self.count, "bad": self.bad}
        return own | {f"metrics.{name}": value for name, value in self.metrics.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.running, self.sum, self.count, self.bad = (
            state[name] for name in ("running", "sum", "count", "bad")
        )
        self.metrics = {
            name.removeprefix("metrics."): value
            for name, value in state.items()
            if name.startswith("metrics.")
        }
