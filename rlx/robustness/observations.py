"""What a greedy policy observes while it plays: which observations, and how far they spread."""

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Scores, greedy
from rlx.evaluation import REPORT, evaluate
from rlx.nn.seed_axis import along
from rlx.policies import Opened
from rlx.rollout import Episodes


class VisitCount:
    """Greedy choices that count how often each Discrete observation is met."""

    def __init__(self, observations: int, head: str, device: torch.device):
        """Count the observations 0 to `observations` − 1 at the decisions of `head`.

        `head` must decide at every step, as the last head of a policy does.
        """
        self.head = head
        self.count = torch.zeros(observations, dtype=torch.int64, device=device)
        """How often each observation was met by a copy that was still playing, [observations]."""

    def make_choose(self, ids: Tensor) -> Choose:
        """How the copies `ids` choose, for `rollout`: all copies alike."""
        return self.choose

    def choose(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose greedily, and count the observations `obs` [S, B] of the copies that decide."""
        if head == self.head:
            self.count.index_add_(0, obs.flatten(), deciding.flatten().long())
        return greedy(head, obs, scores, deciding)


class ObservationSpread:
    """Greedy choices that note how far the observations spread at which they are taken."""

    def __init__(self, head: str):
        """Note the observations at the decisions of `head`, which must decide at every step."""
        self.head = head
        self.count = torch.zeros((), dtype=torch.float64)
        """How many observations were met by all seeds together."""
        self.sum = torch.zeros((), dtype=torch.float64)
        """The sum of the observations met, [*O]."""
        self.square_sum = torch.zeros((), dtype=torch.float64)
        """The sum of the squares of the observations met, [*O]."""

    def make_choose(self, ids: Tensor) -> Choose:
        """How the copies `ids` choose, for `rollout`: all copies alike."""
        return self.choose

    def choose(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose greedily, and note the observations `obs` [S, B, *O] of the copies that decide."""
        if head == self.head:
            weight = along(deciding.double(), obs)
            self.count = self.count + weight.sum()
            self.sum = self.sum + (obs * weight).sum((0, 1))
            self.square_sum = self.square_sum + (obs.double().square() * weight).sum((0, 1))
        return greedy(head, obs, scores, deciding)

    def std(self) -> np.ndarray:
        """The standard deviation of every component over all seeds and steps, [*O]."""
        mean = self.sum / self.count
        variance = self.square_sum / self.count - mean.square()
        return variance.clamp_min(0).sqrt().cpu().numpy()


def play_spread(opened: Opened, episodes: int) -> tuple[np.ndarray, Episodes]:
    """Play `episodes` of each seed greedily: the standard deviation of what was seen, [*O].

    With it come the episodes, [S, episodes].
    """
    spread = ObservationSpread(opened.policy.heads[-1])
    played = evaluate(
        opened.policy,
        opened.make_env,
        len(opened.seeds),
        episodes,
        REPORT,
        opened.device,
        spread.make_choose,
    )
    return spread.std(), played
