"""torch's optimisers over parameters [S, …]: their state are buffers [S, …], and single seeds can sit a step out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from rlx.networks import along


class Adam(nn.Module):
    """Adam (Kingma & Ba 2015), torch's fused kernel: one pass over memory instead of nine."""

    count: Tensor

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float):
        super().__init__()
        self.learning_rate = learning_rate
        # Steps counted for all seeds alike, also for those that sit out: then a seed's clock does not depend on the others.
        self.register_buffer("count", torch.zeros(len(parameters[0]), device=parameters[0].device))
        for i, p in enumerate(parameters):
            self.register_buffer(f"mean{i}", torch.zeros_like(p))
            self.register_buffer(f"square{i}", torch.zeros_like(p))

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], where: Tensor) -> None:
        """Move `parameters` in place along their `gradients`, in the seeds `where` (bool [S])."""
        means = [getattr(self, f"mean{i}") for i in range(len(parameters))]
        squares = [getattr(self, f"square{i}") for i in range(len(parameters))]
        clocks = [self.count[0].clone() for _ in parameters]  # adam() advances each
        self.count += 1
        changed = [*parameters, *means, *squares]
        sits_out = where.device.type != "cpu" or not where.all()  # asking would make a GPU wait
        before = [tensor.clone() for tensor in changed] if sits_out else []
        adam(
            list(parameters), list(gradients), means, squares, [], clocks, fused=True, lr=self.learning_rate,
            beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        if sits_out:
            for tensor, old in zip(changed, before, strict=True):
                tensor.copy_(torch.where(along(where, tensor), tensor, old))


class RMSprop(nn.Module):
    """RMSprop (Tieleman & Hinton 2012) in torch's form and with its defaults."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float):
        super().__init__()
        self.learning_rate = learning_rate
        for i, p in enumerate(parameters):
            self.register_buffer(f"square{i}", torch.zeros_like(p))

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], where: Tensor) -> None:
        """Move `parameters` in place along their `gradients`, in the seeds `where` (bool [S])."""
        on = where.to(gradients[0].dtype)
        slowness, weight = 1 / (self.learning_rate * on), 0.01 * on  # infinite where a seed sits out
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            square = getattr(self, f"square{i}")
            square.lerp_(g * g, along(weight, g))
            # torch.sqrt takes 5 to 10 times longer on a CPU where its input is 0 (dead units); rsqrt does not.
            root = square.add(1e-30).rsqrt_().mul_(square)
            p.addcdiv_(g, root.add_(1e-8).mul_(along(slowness, g)), value=-1)
