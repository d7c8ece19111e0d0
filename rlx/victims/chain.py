"""Graphs of ONNX and TorchScript, read as networks where they are one operation after another.

What is read so can be stacked along the seed axis, has gradients, and is bounded by certificates.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlx.agent import Spec
from rlx.errors import RunError
from rlx.victims.policy import Network, Scorer, Step, linear

PROBES = 64
"""Random observations at which a network must answer as the model that it was read from."""
TOLERANCE = 1e-4
"""By how much it may differ, relative to 1 and to the score's size: by rounding."""
ACTIVATIONS = ("relu", "tanh", "sigmoid")
"""Operations without settings in either language."""
UNCHANGED = (
    *("flatten", "identity", "cast", "reshape", "view", "dropout", "contiguous", "to"),
    *("unsqueeze", "squeeze", "gather"),
)
"""Operations that leave vectors as they are, but for axes of one row."""
CLAMPS = ("clip", "clamp", "hardtanh")
"""Names of what cuts numbers at constant bounds."""


class Node(NamedTuple):
    """An operation of a graph that depends on one other value, beside constants."""

    kind: str
    """The name of the operation, in small letters; a layer is "linear", weight [m, n] and bias."""
    source: str
    """The name of the value that it depends on."""
    constants: Sequence[Any]
    """The constants, as tensors or numbers, in their order."""


def read(
    spec: Spec, model: Scorer, first: str, last: str, node_of: Callable[[str], Node | None]
) -> Network | None:
    """The network from the value named `first` to that named `last`; None where it is no chain.

    `node_of`: what makes a value; None: something else than a `Node`. `model`: the graph itself,
    whose answers must be the same.
    """
    steps: list[Step] = []
    name = last
    while name != first:
        node = node_of(name)
        own = None if node is None else _steps(node)
        if node is None or own is None:
            return None
        steps = own + steps
        name = node.source
    network = Network(spec, steps)
    shape = spec.observation_space.shape or ()
    obs = torch.randn(PROBES, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            scores = network.scores(obs.unsqueeze(0), {}, "action")[0]
            expected = model(obs).cpu()
    except (RuntimeError, RunError):  # of shapes that do not fit; said where the model is used
        return None
    alike = scores.shape == expected.shape and torch.allclose(
        scores, expected, TOLERANCE, TOLERANCE
    )
    return network if alike else None


def _steps(node: Node) -> list[Step] | None:
    """The steps that an operation is; None where it is none of a network's."""
    kind, _, constants = node
    if kind in UNCHANGED:
        return []
    if kind in ACTIVATIONS:
        return [Step(kind)]
    numbers = [_without_rows(torch.as_tensor(one)) for one in constants if one is not None]
    if kind == "linear":
        return linear(numbers[0], numbers[1] if len(numbers) > 1 else None)
    if kind in CLAMPS and len(numbers) == 2:
        return [Step("clamp", bounds=(float(numbers[0]), float(numbers[1])))]
    if not numbers:
        return None
    if kind != "matmul" and numbers[0].dim() == 2 and len(numbers[0]) == 1:
        numbers[0] = numbers[0][0]
    if kind == "sub":
        return [Step("add", -numbers[0])]
    operations = {"matmul": "matmul", "add": "add", "mul": "multiply", "div": "divide"}
    return [Step(operations[kind], numbers[0])] if kind in operations else None


def _without_rows(constant: Tensor) -> Tensor:
    """A matrix, a vector or a number without leading axes of one row, as of one seed of rlx."""
    while constant.dim() > 2 and len(constant) == 1:
        constant = constant[0]
    return constant
