"""Models that torch.jit saved: their scores, and the gradients of these."""

import torch
from torch import Tensor

from rlx.agent import Spec
from rlx.errors import ConfigError, RunError
from rlx.victims import chain
from rlx.victims.files import VictimFile
from rlx.victims.policy import Network, Scorer, as_scores


def load(file: VictimFile, spec: Spec, device: torch.device) -> Network | Scorer:
    """The model of a file, read as a network where it is a plain one.

    ConfigError where torch.jit saved none there.
    """
    try:
        model = torch.jit.load(str(file.path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        # Behind the first sentence PyTorch guesses what may have happened.
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise ConfigError(
            f"victim={file}: is no model of torch.jit.save ({reason}); rlx reads sb3:, "
            "torchscript: and onnx: files."
        ) from None

    def scores(obs: Tensor) -> Tensor:
        """The scores [B, A] of `obs` [B, *O]: the first output, where there are several."""
        try:
            output = model(obs.to(device).float())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"victim={file}: cannot take observations {list(obs.shape[1:])} ({reason})."
            ) from None
        first = output[0] if isinstance(output, tuple | list) else output
        return as_scores(first, len(obs), spec, str(file))

    return _network(model, spec, scores) or scores


def _network(model: torch.jit.ScriptModule, spec: Spec, scores: Scorer) -> Network | None:
    """The network that a model is; None where it is another graph."""
    try:
        graph = torch.jit.freeze(model, optimize_numerics=False).graph
    except RuntimeError:
        return None
    arguments = list(graph.inputs())
    if len(arguments) != 2:  # itself, and the observations
        return None
    values = {value.debugName(): node for node in graph.nodes() for value in node.outputs()}

    def node_of(name: str) -> chain.Node | None:
        node = values.get(name)
        if node is None:
            return None
        inputs = list(node.inputs())
        constant = [value.node().kind() == "prim::Constant" for value in inputs]
        # Of a difference or quotient the constant is the second.
        if constant.count(False) != 1 or (constant[0] and not node.kind().endswith(("add", "mul"))):
            return None
        kind = node.kind().removeprefix("aten::").rstrip("_")
        source = inputs[constant.index(False)].debugName()
        constants = [
            value.toIValue() for value, is_one in zip(inputs, constant, strict=True) if is_one
        ]
        return chain.Node(kind, source, constants)

    outputs = list(graph.outputs())
    return chain.read(spec, scores, arguments[1].debugName(), outputs[0].debugName(), node_of)
