"""torch's optimisers over parameters [S, …]: a seed counts its own steps and can sit a step out.

Their state is kept flat, [S, P] for the P numbers of one seed's parameters: one pass over memory
where a list of tensors needs one per tensor. torch's fused kernels have one step count for all
seeds, and so are of no use here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlx.errors import RunError
from rlx.nn.per_seed import add_numbers
from rlx.nn.seed_axis import along, per_seed_norm

BETA1 = 0.9
"""Share that Adam's running mean of gradients keeps of itself in a step."""
BETA2 = 0.999
"""Share that Adam's running mean of squared gradients keeps of itself in a step."""
ALPHA = 0.99
"""Share that RMSprop's running mean of squared gradients keeps of itself in a step."""
EPS = 1e-8
"""What is added to the root of squared gradients, before a gradient is divided by it."""
MOMENTUM = 0.9
"""Share that SGD's velocity keeps of itself in a step."""


class Optimizer(nn.Module):
    """What all optimisers have: the step size, which no checkpoint holds; its owner sets it."""

    rate: Tensor
    """float64 [S]: the step size of each seed."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float | Tensor):
        """`parameters`: [S, …] each; their device is the optimiser's.

        `learning_rate`: one number, or [S], one of each seed.
        """
        super().__init__()
        shape = (len(parameters[0]),)
        rate = torch.zeros(shape, dtype=torch.float64, device=parameters[0].device)
        self.register_buffer("rate", rate + learning_rate, persistent=False)

    @property
    def learning_rate(self) -> Tensor:
        """[S]: the step size of each seed; it is set to one number, or to one of each seed."""
        return self.rate

    @learning_rate.setter
    def learning_rate(self, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            self.rate = value.double()
        else:
            self.rate = torch.full_like(self.rate, value)

    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], where: Tensor
    ) -> None:
        """Move `parameters` in place along their `gradients`, in the seeds `where` (bool [S])."""
        raise NotImplementedError


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1) with torch's defaults."""

    count: Tensor
    """[S]: steps that each seed has made."""
    eps: float | Tensor
    """What is added to the root of squared gradients: one number, or [S]."""
    mean: Tensor
    """[S, P]: running mean of the gradients."""
    square: Tensor
    """[S, P]: running mean of the squared gradients."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: float | Tensor,
        eps: float | Tensor = EPS,
    ):
        super().__init__(parameters, learning_rate)
        add_numbers(self, eps=eps)
        self.register_buffer("count", torch.zeros(len(parameters[0]), device=parameters[0].device))
        self.register_buffer("mean", torch.zeros_like(_flat(parameters)))
        self.register_buffer("square", torch.zeros_like(self.mean))

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], where: Tensor
    ) -> None:
        """Move `parameters` in place along their `gradients`, in the seeds `where` (bool [S])."""
        gradient = _flat(gradients)
        mask = where.to(self.mean.dtype)
        self.count += mask
        self.mean.lerp_(gradient, ((1 - BETA1) * mask).unsqueeze(1))
        self.square.lerp_(gradient * gradient, ((1 - BETA2) * mask).unsqueeze(1))
        mean_bias = 1 - BETA1**self.count
        square_bias = (1 - BETA2**self.count).sqrt()
        inverse_rate = mean_bias / square_bias / self.rate.to(mask.dtype)
        # A seed that sits out divides by infinity. Before its first step both its biases are 0:
        # these two keep 0 / 0 out of the step.
        eps = torch.where(where, self.eps * square_bias, 1.0)
        inverse_rate = torch.where(where, inverse_rate, torch.inf)
        denominator = _root(self.square).add_(eps.unsqueeze(1)).mul_(inverse_rate.unsqueeze(1))
        _subtract_ratio(parameters, self.mean, denominator)


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012) in torch's form and with its defaults."""

    square: Tensor
    """[S, P]: running mean of the squared gradients."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float | Tensor):
        super().__init__(parameters, learning_rate)
        self.register_buffer("square", torch.zeros_like(_flat(parameters)))

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], where: Tensor
    ) -> None:
        """Move `parameters` in place along their `gradients`, in the seeds `where` (bool [S])."""
        gradient = _flat(gradients)
        mask = where.to(self.square.dtype)
        self.square.lerp_(gradient * gradient, ((1 - ALPHA) * mask).unsqueeze(1))
        # Infinite where a seed sits out.
        inverse_rate = 1 / (self.rate.to(mask.dtype) * mask)
        denominator = _root(self.square).add_(EPS).mul_(inverse_rate.unsqueeze(1))
        _subtract_ratio(parameters, gradient, denominator)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum 0.9, in torch's form."""

    momentum: Tensor
    """[S, P]: the velocity, a decaying sum of the gradients."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float | Tensor):
        super().__init__(parameters, learning_rate)
        self.register_buffer("momentum", torch.zeros_like(_flat(parameters)))

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], where: Tensor
    ) -> None:
        """Move `parameters` in place along their `gradients`, in the seeds `where` (bool [S])."""
        momentum = MOMENTUM * self.momentum + _flat(gradients)
        self.momentum.copy_(torch.where(where.unsqueeze(1), momentum, self.momentum))
        mask = where.to(self.momentum.dtype)
        # Infinite where a seed sits out.
        inverse_rate = (1 / (self.rate.to(mask.dtype) * mask)).unsqueeze(1)
        _subtract_ratio(parameters, self.momentum, inverse_rate.expand_as(self.momentum))


OPTIMIZERS: dict[str, type[Adam] | type[RMSprop]] = {"adam": Adam, "rmsprop": RMSprop}


def descend(
    loss: Tensor,
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    *,
    where: Tensor | None = None,
    max_grad_norm: float | Tensor | None = None,
    max_grad_value: float | Tensor | None = None,
    weight_decay: float | Tensor = 0.0,
) -> None:
    """One step of every seed down its own `loss` [S], a mean within the seed.

    The losses are summed over seeds, so that each seed's gradient is its own; nothing here mixes
    seeds. A parameter that the loss does not reach stays as it is. `where`: bool [S], the seeds
    that move; None: all. `max_grad_norm` bounds the norm of each seed's gradient (in torch's form,
    with 1e-6 in the denominator), then `max_grad_value` each of its elements; `weight_decay` times
    the parameters is added last. These three are one number, or [S], one of each seed.
    """
    seeds = len(parameters[0])
    if loss.shape != (seeds,):
        what = f"agent: its loss is {list(loss.shape)}, expected [{seeds}]"
        raise RunError(f"{what}: a mean within each seed, as in loss.mean(1), not over all of them")
    gradients = list(torch.autograd.grad(loss.sum(), parameters, materialize_grads=True))
    with torch.no_grad():
        if max_grad_norm is not None:
            shrink = (max_grad_norm / (per_seed_norm(gradients) + 1e-6)).clamp_max(1)
            gradients = [gradient * along(shrink, gradient) for gradient in gradients]
        if max_grad_value is not None:
            gradients = [_clipped(gradient, max_grad_value) for gradient in gradients]
        if isinstance(weight_decay, Tensor) or weight_decay:
            pairs = zip(gradients, parameters, strict=True)
            gradients = [
                gradient + along(weight_decay, parameter) * parameter
                for gradient, parameter in pairs
            ]
        if where is None:
            where = torch.ones_like(loss, dtype=torch.bool)
        optimizer.step(parameters, gradients, where)


def _clipped(x: Tensor, bound: float | Tensor) -> Tensor:
    """x [S, …] with each element cut to ± `bound`, one number or [S]."""
    limit = along(bound, x)
    return x.clamp(-limit, limit)  # type: ignore[arg-type]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All `tensors` [S, …] side by side, [S, P]: the P numbers of each seed."""
    return torch.cat([tensor.detach().flatten(1) for tensor in tensors], 1)


def _root(square: Tensor) -> Tensor:
    """The square root of `square` [S, P], elementwise.

    On a CPU torch.sqrt takes 5 to 10 times longer where its input is 0, as of dead units; rsqrt
    does not.
    """
    return square.add(1e-30).rsqrt_().mul_(square)


def _subtract_ratio(parameters: Sequence[Tensor], numerator: Tensor, denominator: Tensor) -> None:
    """Subtract `numerator` / `denominator`, [S, P] each, from `parameters` [S, …] in place."""
    sizes = [parameter[0].numel() for parameter in parameters]
    dividends = numerator.split(sizes, 1)
    divisors = denominator.split(sizes, 1)
    for parameter, dividend, divisor in zip(parameters, dividends, divisors, strict=True):
        parameter.addcdiv_(dividend.view_as(parameter), divisor.view_as(parameter), value=-1)
