"""WocaR (Liang et al. 2022, arXiv:2210.05927): to value what the worst observations lead to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlx.config import Share
from rlx.defences.radial import Radial
from rlx.nn.networks import MLP
from rlx.nn.rng import Streams
from rlx.threat import Budget


@dataclass(frozen=True)
class WocaR(Radial):
    """Decides by usual values and by such as are left where the worst is forced.

    The target of these is the reward and the least of their next ones, over the actions that an
    observation in the box can force: those whose highest value is not below another's lowest. To
    this comes the loss of RADIAL. Both kinds are outputs of one network, of two in the paper.
    """

    of_policies = False

    share: Share
    """Weight of the worst-case values in decisions; the usual ones have the rest."""


class WorstCaseQ(nn.Module):
    """Features [S, B, inputs] → action values [S, B, A]: a mean of usual and of worst-case ones."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], actions: int, share: float, rng: Streams
    ):
        """`share`: weight of the worst-case values."""
        super().__init__()
        self.share = share
        self.body = MLP(inputs, hidden, 2 * actions, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self._mixed(self.body(x))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(usual values, worst-case values), [S, B, A] each."""
        return self._halves(self.body(x))

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest values of features between `low` and `high`, as of `MLP`."""
        # A mean keeps the order of numbers.
        lowest, highest = self.body.interval(low, high)
        return self._mixed(lowest), self._mixed(highest)

    def _halves(self, out: Tensor) -> tuple[Tensor, Tensor]:
        actions = out.shape[-1] // 2
        return out[..., :actions], out[..., actions:]

    def _mixed(self, out: Tensor) -> Tensor:
        usual, worst = self._halves(out)
        return (1 - self.share) * usual + self.share * worst


def worst_case_loss(
    network: nn.Module, target: nn.Module, batch: dict[str, Tensor], next_budget: Budget
) -> Tensor:
    """The loss [S, B] of the worst-case values of a minibatch's actions.

    `network` and `target`: an encoder and a `WorstCaseQ` each; `next_budget`: the boxes around the
    next observations.
    """
    encoder, net = network.children()
    _, target_net = target.children()
    assert isinstance(net, WorstCaseQ) and isinstance(target_net, WorstCaseQ)
    with torch.no_grad():
        next_obs = batch["next_obs"]
        low, high = next_budget.ends(next_obs)
        lowest, highest = net.interval(encoder(low), encoder(high))
        can_be_forced = highest >= lowest.amax(-1, keepdim=True)
        _, next_worst = target_net.both(encoder(next_obs))
        least = torch.where(can_be_forced, next_worst, torch.inf).amin(-1)
        wanted = batch["reward"] + batch["discount"] * least
    _, worst = net.both(encoder(batch["obs"]))
    taken = worst.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)
    return nn.functional.smooth_l1_loss(taken, wanted, reduction="none")
