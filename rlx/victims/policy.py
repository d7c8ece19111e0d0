"""The policies of victims: one head, no memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Carry, Choose, Policy, Scores, Spec, greedy
from rlx.errors import RunError
from rlx.nn.encoders import ObsEncoder
from rlx.nn.rng import seed_tensor

Scorer = Callable[[Tensor], Tensor]
"""Somebody else's model: observations [B, *O] → scores [B, A], or actions [B, D] of a Box."""


class VictimPolicy(Policy):
    """A policy that rlx did not train."""

    low: Tensor
    """[S, 1, D]: the lowest continuous action."""
    high: Tensor
    """[S, 1, D]: the highest continuous action."""

    def __init__(self, spec: Spec, seeds: int):
        super().__init__()
        space = spec.action_space
        self.continuous = isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            for name in ("low", "high"):
                bound = torch.as_tensor(getattr(space, name))
                self.register_buffer(name, bound.expand(seeds, 1, -1).contiguous())

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        bounds = (self.low, self.high) if self.continuous else None
        scores = Scores(partial(self.scores, carry=carry, head="action"), bounds)
        return choose("action", obs, scores, torch.ones_like(first)), carry


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "leakyrelu": torch.nn.functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
}
"""What may stand between layers, with torch's own settings."""
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": torch.bmm,
    "add": torch.add,
    "multiply": torch.mul,
    "divide": torch.div,
}
"""What is done with constants: a matrix [S, n, m], or numbers [S, 1, n or 1]."""


class Step(nn.Module):
    """One operation on vectors, [S, B, n] → [S, B, m]."""

    value: Tensor | None
    """The constant of an operation; None of an activation."""

    def __init__(
        self,
        kind: str,
        value: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
    ):
        """`kind`: one of `ACTIVATIONS` or `OPERATIONS`, or "clamp" to the `bounds`.

        `value`: the constant of one seed, [n, m] or [n].
        """
        super().__init__()
        self.kind = kind
        self.bounds = bounds
        if value is not None:
            value = value.detach().float().cpu()
            value = value.unsqueeze(0) if kind == "matmul" else value.view(1, 1, -1)
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        if self.bounds is not None:
            return x.clamp(*self.bounds)
        if self.value is None:
            return ACTIVATIONS[self.kind](x)
        return OPERATIONS[self.kind](x, self.value)


class Network(VictimPolicy):
    """A network that rlx knows all of: an encoder of observations, then steps."""

    def __init__(self, spec: Spec, steps: Sequence[Step], encoder: nn.Module | None = None):
        """The network of one seed. `encoder`: that of images; None: observations are flattened."""
        super().__init__(spec, 1)
        self.encoder = encoder or ObsEncoder(spec.observation_space, seed_tensor([0]))
        self.steps = nn.Sequential(*steps)
        self.requires_grad_(False)

    @property
    def architecture(self) -> tuple:
        """What networks have in common that can lie side by side along the seed axis."""
        shapes = [(name, tensor.shape) for name, tensor in self.state_dict().items()]
        kinds = [(step.kind, step.bounds) for step in self.steps]
        return (*shapes, *kinds, self.scores_are_values)

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.steps(self.encoder(obs))


def linear(weight: Tensor, bias: Tensor | None) -> list[Step]:
    """The steps of a layer of torch's, weight [m, n] and bias [m]."""
    steps = [Step("matmul", weight.T)]
    return steps if bias is None else [*steps, Step("add", bias)]


class Rows(VictimPolicy):
    """Models that cannot be stacked, which are asked one after another."""

    number: Tensor
    """int64 [S]: the number of each row's model. Rows are cut, the models stay whole."""

    def __init__(self, spec: Spec, models: Sequence[Scorer]):
        super().__init__(spec, len(models))
        self.register_buffer("number", torch.arange(len(models)))
        self.models = _Shared(models)

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        models = [self.models.all[number] for number in self.number.tolist()]
        return torch.stack([model(rows) for model, rows in zip(models, obs, strict=True)])


class _Shared:
    """Models that copies of a policy have in common: a session of another library has no copy."""

    def __init__(self, models: Sequence[Scorer]):
        self.all = models

    def __deepcopy__(self, memo: Any) -> "_Shared":
        return self


def as_scores(output: Any, rows: int, spec: Spec, victim: str) -> Tensor:
    """What a model returned for so many `rows` as scores [rows, A], or actions [rows, D] of a Box.

    Choices, whole numbers [rows], become one-hot: all that is known is which one is best. RunError
    where it is neither.
    """
    try:
        values = torch.as_tensor(output)
    except (TypeError, ValueError, RuntimeError):
        kind = type(output).__name__
        raise RunError(
            f"victim={victim}: returned a {kind}; expected an array of numbers."
        ) from None
    if bool(values.isnan().any()):
        raise RunError(f"victim={victim}: returned NaN, which says nothing of what is best.")
    space = spec.action_space
    if isinstance(space, spaces.Box):
        if values.numel() == rows * space.shape[0]:
            return values.view(rows, -1).float()
        raise RunError(_unexpected(victim, values, f"actions [{rows}, {space.shape[0]}]"))
    if values.shape == (rows, spec.actions):
        return values.float()
    is_choice = not values.is_floating_point() and values.numel() == rows
    if is_choice and int(values.min()) >= 0 and int(values.max()) < spec.actions:
        return torch.nn.functional.one_hot(values.view(rows).long(), spec.actions).float()
    expected = f"scores [{rows}, {spec.actions}] or choices [{rows}] from 0 to {spec.actions - 1}"
    raise RunError(_unexpected(victim, values, expected))


def _unexpected(victim: str, values: Tensor, expected: str) -> str:
    """What is said of a model that does not return what was `expected`."""
    dtype = str(values.dtype).removeprefix("torch.")
    shape = list(values.shape)
    return f"victim={victim}: returned {dtype} {shape} for these observations; expected {expected}."
