"""How random choices are made: by agents that explore, in data sets, and by the random policy."""

import torch
from torch import Tensor, nn

from rlx.agent import Choose, Rules, Scores
from rlx.nn.per_seed import add_numbers
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
    """Decisions of each seed so far, int64 [S]."""
    start: float | Tensor
    """Epsilon at the first decision."""
    end: float | Tensor
    """Epsilon from `steps` decisions on."""
    steps: int | Tensor
    """Decisions over which epsilon falls."""

    def __init__(
        self,
        start: float | Tensor,
        end: float | Tensor,
        steps: int | Tensor,
        seeds: Tensor,
        name: str,
        rules: Rules | None = None,
    ):
        """`start`, `end`, `steps`: one number, or [S], one of each seed."""
        super().__init__()
        add_numbers(self, start=start, end=end, steps=steps)
        self.rules = rules
        self.rng = Streams(seeds, f"{name}/explore")
        self.register_buffer("decisions", torch.zeros_like(seeds))

    def epsilon(self) -> Tensor:
        """Probability [S] of a random choice at the next decision."""
        return linear(self.start, self.end, self.decisions / self.steps)

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose as a `Choose` does, and count the decisions."""
        q = scores(obs)
        choice_draw, explore_draw = self.rng.uniform(2, q.shape[1]).unbind(1)
        random = random_choice(choice_draw, q.shape[-1], obs, self.rules)
        explores = explore_draw < self.epsilon().unsqueeze(1)
        choice = torch.where(explores, random, q.argmax(-1))
        self.decisions += deciding.sum(1)
        return choice


def exploring(epsilon: float, rng: Streams, rules: Rules | None = None) -> Choose:
    """Greedy choices of which a share `epsilon` is uniformly random instead.

    Random is as of `random_choice`; of continuous actions, uniform within their bounds.
    """

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        values = scores(obs)
        numbers = values.shape[-1] if scores.bounds else 1
        explore_draw, *choice_draws = rng.uniform(1 + numbers, values.shape[1]).unbind(1)
        explores = explore_draw < epsilon
        best = scores.best(obs, values)
        if scores.bounds:
            low, high = scores.bounds
            random = low + torch.stack(choice_draws, -1) * (high - low)
            return torch.where(explores.unsqueeze(-1), random, best)
        # The rules are about actions; what other heads choose they do not know.
        head_rules = rules if head == "action" else None
        random = random_choice(choice_draws[0], values.shape[-1], obs, head_rules)
        return torch.where(explores, random, best)

    return choose
