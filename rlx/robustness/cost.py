"""What attacks cost: evaluations of policies, gradients, minutes, by what they were spent on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlx.agent import Scores


@dataclass
class Cost:
    """What was spent on one thing."""

    evaluations: int = 0
    """Observations of which a policy has computed the scores."""
    gradients: int = 0
    """Observations of which a gradient of the scores was computed."""
    seconds: float = 0.0
    """Seconds that it took."""

    def as_dict(self) -> dict[str, Any]:
        """The cost as summary.json has it."""
        return {
            "evaluations": self.evaluations,
            "gradients": self.gradients,
            "minutes": self.seconds / 60,
        }


class Costs:
    """The costs of a study, by name.

    All scores, and so all their gradients, pass through `Scores`, which is where they are counted.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Cost] = {}
        """What was spent on each thing, in the order in which it began."""
        self._running: list[str] = []
        """What is being paid for, the innermost last: that alone is."""
        self._since = 0.0
        """When that began, or went on, by the monotonic clock."""

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what is spent within for `name`, but for what is spent on other names in there."""
        self._settle()
        self.by_name.setdefault(name, Cost())
        self._running.append(name)
        former = Scores.meter
        Scores.meter = self
        try:
            yield
        finally:
            self._settle()
            self._running.pop()
            Scores.meter = former

    def evaluated(self, obs: Tensor, values: Tensor) -> None:
        """Count the scores `values` [S, B, …] of `obs` [S, B, *O], and their gradients to come."""
        cost = self.by_name[self._running[-1]]
        rows = obs.shape[:2].numel()
        cost.evaluations += rows
        if values.requires_grad:

            def count(gradient: Tensor) -> None:
                cost.gradients += rows

            values.register_hook(count)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The costs as summary.json has them."""
        return {name: cost.as_dict() for name, cost in self.by_name.items()}

    def _settle(self) -> None:
        """Add the time since the last call to what is being paid for."""
        now = time.monotonic()
        if self._running:
            self.by_name[self._running[-1]].seconds += now - self._since
        self._since = now
