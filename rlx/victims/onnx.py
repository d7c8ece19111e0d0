"""ONNX files: plain networks are read, for others onnxruntime answers.

Gradients of these others are those of onnx2torch, where it knows all operations.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Spec
from rlx.errors import ConfigError, RunError
from rlx.show import console
from rlx.victims import chain
from rlx.victims.files import VictimFile
from rlx.victims.policy import Network, Scorer, as_scores

SCORES = ("scores", "logits", "q_values")
"""Names of outputs that are taken before all others, which are taken in their order."""
TOLERANCE = 1e-3
"""By how much the converted model may differ, relative to 1 and the score's size."""


def load(file: VictimFile, spec: Spec) -> Network | Scorer:
    """The model of a file, read as a network where it is a plain one.

    ConfigError where onnxruntime cannot read it.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f'victim={file}: needs onnxruntime; pip install "rlx[onnx]".') from None
    try:
        session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, which it does not name
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"victim={file}: is no ONNX model ({reason}).") from None
    inputs = session.get_inputs()
    if len(inputs) != 1:
        texts = ", ".join(one.name for one in inputs)
        raise ConfigError(
            f"victim={file}: takes {len(inputs)} inputs ({texts}); expected the observation alone."
        )
    dtype = {"tensor(double)": np.float64, "tensor(uint8)": np.uint8}.get(
        inputs[0].type, np.float32
    )
    one_by_one = inputs[0].shape[:1] == [1]

    def run(obs: Tensor) -> list[np.ndarray]:
        """All outputs for `obs` [B, *O]."""
        array = obs.detach().cpu().numpy().astype(dtype)
        parts = np.split(array, len(array)) if one_by_one else [array]
        try:
            answers = [session.run(None, {inputs[0].name: part}) for part in parts]
        except Exception as error:  # onnxruntime's own classes, which it does not name
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"victim={file}: cannot take observations {list(obs.shape[1:])} ({reason})."
            ) from None
        return [np.concatenate(values) for values in zip(*answers, strict=True)]

    names = [one.name for one in session.get_outputs()]
    zeros = torch.zeros(2, *(spec.observation_space.shape or ()))
    chosen = _chosen(names, run(zeros), spec, str(file))

    def answers(obs: Tensor) -> Tensor:
        """The scores [B, A] of `obs` [B, *O]; of a choice they are one-hot."""
        return as_scores(run(obs)[chosen], len(obs), spec, str(file)).to(obs.device)

    network = _network(file, spec, answers, names[chosen])
    if network is not None:
        return network
    converted = _converted(file, chosen, run, zeros)

    def scores(obs: Tensor) -> Tensor:
        """As `answers`; where a gradient is wanted, by the converted model."""
        if converted is not None and torch.is_grad_enabled() and obs.requires_grad:
            return as_scores(converted(obs.cpu()), len(obs), spec, str(file)).to(obs.device)
        return answers(obs)

    return scores


def _network(file: VictimFile, spec: Spec, answers: Scorer, output: str) -> Network | None:
    """The network from a file's input to its value `output`; None where it is another graph."""
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        return None
    graph = onnx.load(file.path).graph
    constants: dict[str, Any] = {one.name: to_array(one).copy() for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = to_array(node.attribute[0].t).copy()
    values = {name: node for node in graph.node for name in node.output}

    def node_of(name: str) -> chain.Node | None:
        node = values.get(name)
        if node is None:
            return None
        inputs = [name for name in node.input if name]
        sources = [name for name in inputs if name not in constants]
        # Of a difference or quotient the constant is the second.
        if len(sources) != 1 or (inputs[0] in constants and node.op_type not in ("Add", "Mul")):
            return None
        numbers = [constants[name] for name in inputs if name in constants]
        kind = node.op_type.lower()
        if kind == "gemm":
            kind = "linear"
            settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if not settings.get("transB"):
                numbers[0] = numbers[0].T
        return chain.Node(kind, sources[0], numbers)

    return chain.read(spec, answers, graph.input[0].name, output, node_of)


def _chosen(names: Sequence[str], outputs: Sequence[np.ndarray], spec: Spec, victim: str) -> int:
    """The number of the output that has the scores, or else the actions.

    RunError where there is none.
    """
    numbers = range(len(names))
    exact = [number for number in numbers if outputs[number].dtype.kind != "f"]
    named = [number for number in numbers if names[number] in SCORES]
    order = dict.fromkeys([*named, *(n for n in numbers if n not in exact), *exact])
    problem: RunError | None = None
    for number in order:
        try:
            as_scores(outputs[number], len(outputs[number]), spec, victim)
            return number
        except RunError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _converted(
    file: VictimFile, chosen: int, run: Callable[[Tensor], list[np.ndarray]], example: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """The output `chosen` as a differentiable function; None where there is none, with a line."""
    try:
        import onnx2torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = onnx2torch.convert(str(file.path)).eval().requires_grad_(False)

        def output(obs: Tensor) -> Tensor:
            outputs = model(obs)
            return outputs[chosen] if isinstance(outputs, tuple | list) else outputs

        for obs in (example, torch.rand_like(example)):
            values = output(obs)
            expected = torch.as_tensor(run(obs)[chosen])
            if not torch.allclose(values, expected, TOLERANCE, TOLERANCE):
                raise ValueError("onnx2torch makes another function of it")
        return output
    except ImportError:
        reason = 'pip install "rlx[victims]" for onnx2torch'
    except Exception as error:  # what onnx2torch does not know it says in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    console.facts(gradients=f"none of {file.path.name} ({reason})")
    return None
