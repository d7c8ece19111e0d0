"""What a target network says of the rows of a replay, so that it is asked once about each."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlx.nn.buffers import add_buffers
from rlx.nn.seed_axis import rows_within


class TargetCache(nn.Module):
    """Outputs [S, slots, F] of a target network for the rows of a replay.

    An output is computed again only when the network has another `version`, or the row is another.
    """

    said: Tensor
    """The outputs, float32 [S, slots, F]. Runs hold them by this name."""
    version: Tensor
    """int64 [S, slots]: version of the network that computed each output; −1: there is none."""

    def __init__(self, seeds: int, slots: int, features: int, device: torch.device, setting: str):
        """`features`: F. `add_buffers` raises a ConfigError that names the `setting`."""
        super().__init__()
        fields = {"said": ((features,), torch.float32), "version": ((), torch.int64)}
        add_buffers(self, (seeds, slots), fields, device, setting)
        self.version.fill_(-1)

    def invalidate(self, slot: Tensor) -> None:
        """Forget the outputs of the rows in `slot` [S, N], which are others now."""
        self.version.scatter_(1, slot, -1)

    def get(
        self, network: Callable[[Tensor], Tensor], slot: Tensor, obs: Tensor, version: int
    ) -> Tensor:
        """Outputs [S, B, K, F] of the rows in `slot` [S, B, K], which hold `obs` [S, B, K, *O].

        `network` ([S, R, *O] → [S, R, F]) computes those that are not of its `version`.
        """
        flat = slot.flatten(1)
        stale = self.version.gather(1, flat) != version
        # A sync with the device; to compute what need not be would cost more.
        most = int(stale.sum(1).max())
        if most:
            # The stale rows come first. A seed with fewer of them computes other rows again.
            row = stale.to(torch.int8).argsort(stable=True, dim=1, descending=True)[:, :most]
            output = network(rows_within(obs.flatten(1, 2), row))
            self.put(flat.gather(1, row), output, version)
        index = flat.unsqueeze(-1).expand(-1, -1, self.said.shape[-1])
        return self.said.gather(1, index).unflatten(1, slot.shape[1:])

    def put(self, slot: Tensor, output: Tensor, version: int) -> None:
        """Keep the `output` [S, R, F] of the rows in `slot` [S, R]."""
        self.said.scatter_(1, slot.unsqueeze(-1).expand_as(output), output)
        self.version.scatter_(1, slot, version)
