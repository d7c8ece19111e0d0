"""How random choices are made: by agents that explore, in data sets, and by the random policy."""

import torch
from torch import Tensor, nn

from rlx.agent import Choose, Rules, Scores
from rlx.nn.rng import Streams, pick, pick_allowed
from rlx.nn.schedules import linear


def random_choice(draws: Tensor, choices: int, obs: Tensor, rules: Rules | None) -> Tensor:
    """int64 [S, B]: a uniformly random one of so many `choices`, by uniform `draws` [S, B].

    In a game with `rules` it is a legal action at `obs` [S, B, *O].
    """
    if rules is None:
        return pick(draws, choices)
    return pick_allowed(draws, rules.legal(obs))


class EpsilonGreedy(nn.Module):
    """A random choice with probability epsilon, which falls linearly with the decisions of a seed.

    Random is as of `random_choice`, with the `rules` of a game.
    """

    decisions: Tensor

    def __init__(
        self,
        start: float,
        end: float,
        steps: int,
        seeds: Tensor,
        name: str,
        rules: Rules | None = None,
    ):
        super().__init__()
        self.start = start
        self.end = end
        self.steps = steps
        self.rules = rules
        self.rng = Streams(seeds, f"{name}/explore")
        self.register_buffer("decisions", torch.zeros_like(seeds))

    def epsilon(self) -> Tensor:
        """Its current value, [S]."""
        return linear(self.start, self.end, self.decisions / self.steps)

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        q = scores(obs)
        which, whether = self.rng.uniform(2, q.shape[1]).unbind(1)
        random = random_choice(which, q.shape[-1], obs, self.rules)
        choice = torch.where(whether < self.epsilon().unsqueeze(1), random, q.argmax(-1))
        self.decisions += deciding.sum(1)
        return choice


def exploring(epsilon: float, rng: Streams, rules: Rules | None = None) -> Choose:
    """Greedy choices of which a share `epsilon` is uniformly random instead.

    Random is as of `random_choice`; of continuous actions, uniform within their bounds.
    """

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        values = scores(obs)
        numbers = values.shape[-1] if scores.bounds else 1
        whether, *which = rng.uniform(1 + numbers, values.shape[1]).unbind(1)
        best = scores.best(obs, values)
        if scores.bounds:
            low, high = scores.bounds
            random = low + torch.stack(which, -1) * (high - low)
            return torch.where(whether.unsqueeze(-1) < epsilon, random, best)
        own_rules = rules if head == "action" else None  # other heads choose other things
        random = random_choice(which[0], values.shape[-1], obs, own_rules)
        return torch.where(whether < epsilon, random, best)

    return choose
