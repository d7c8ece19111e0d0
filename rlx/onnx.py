"""Policies as ONNX graphs, which run without rlx (an extra: pip install "rlx[onnx]")."""

import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Policy, Scores, Spec
from rlx.env import TensorEnv
from rlx.errors import ConfigError, RunError
from rlx.names import one_line
from rlx.nn.seed_axis import take

OPSET = 18
"""Version of ONNX's operators."""
STEPS = 200
"""Steps of the comparison of a file with its policy."""


class Exported(nn.Module):
    """One seed's greedy policy as a function without a seed axis.

    Inputs: `obs` [B, *O] as the env gives it, since all scaling is inside. A policy with a memory
    also takes `first` (bool [B]: a new episode begins) and its memory, and returns the memory for
    the next step. Outputs: `action`, int64 [B] or float [B, D], and the `scores` [B, A] of the last
    decision, before any softmax.
    """

    def __init__(self, policy: Policy, spec: Spec, row: int):
        """Take the seed at this `row` of the policy's seed axis."""
        super().__init__()
        self.policy = take(policy, torch.tensor([row])).eval()
        self.space: Any = spec.observation_space
        self.memory = tuple(self.policy.initial_carry(1))
        """The names of the tensors that the policy remembers."""
        self.inputs = ["obs"]
        if self.memory:
            self.inputs += ["first", *(f"last_{name}" for name in self.memory)]
        self.outputs = ["action", "scores", *(f"next_{name}" for name in self.memory)]

    def forward(self, obs: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """The outputs for `obs`; `past`: `first` and the memory, where there is one."""
        if past:
            first, *memory = past
        else:
            first = obs.new_zeros(obs.shape[0], dtype=torch.bool)
            memory = []
        carry = {name: value.unsqueeze(0) for name, value in zip(self.memory, memory, strict=True)}
        decided: list[Tensor] = []
        """The scores of each head, in the order in which they decide."""

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if scores.choice is not None:
                raise ConfigError(
                    "export: this policy decides by a search, which a network's file cannot do."
                )
            decided.append(scores(obs))
            return scores.decide(decided[-1])

        action, carry = self.policy.act(obs.unsqueeze(0), first.unsqueeze(0), carry, choose)
        # Copies of the memory: a part of it may be the action itself, and no output comes twice.
        memory = [carry[name][0].clone() for name in self.memory]
        return action[0], decided[-1][0], *memory

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """The inputs of the first step of `batch` episodes, with random observations."""
        obs = torch.as_tensor(np.stack([self.space.sample()] * batch))
        if not self.memory:
            return (obs,)
        first = torch.ones(batch, dtype=torch.bool)
        carry = self.policy.initial_carry(batch)
        return obs, first, *(carry[name][0] for name in self.memory)

    def write(self, out: Path, facts: Mapping[str, str]) -> None:
        """Write the file, with `facts` as its metadata; ConfigError where it cannot be made."""
        program = self._program()
        program.model.metadata_props.update(facts)
        try:
            program.save(out)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written ({error.strerror}).") from None

    def _program(self) -> Any:
        """The graph, for any batch size."""
        example = self.example(2)
        self(*example)  # what cannot be exported is refused here
        batch = {0: torch.export.Dim("batch")}
        shapes: tuple[Any, ...] = (batch,)
        if self.memory:
            # torch takes the parameter `*past` as one argument, a tuple.
            shapes = (batch, tuple(batch for _ in example[1:]))
        try:
            import onnxruntime  # noqa: F401 (for the comparison)

            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)
                program = torch.onnx.export(
                    self,
                    example,
                    input_names=self.inputs,
                    output_names=self.outputs,
                    opset_version=OPSET,
                    verbose=False,
                    dynamic_shapes=shapes,
                )
        except ImportError as error:
            raise ConfigError(
                f'export: not installed ({error}); pip install "rlx[onnx]".'
            ) from None
        except Exception as error:  # the policy itself has just computed the example
            raise ConfigError(
                f"export: torch.onnx cannot write this policy ({_reason(error)})."
            ) from None
        assert program is not None
        return program


def _reason(error: BaseException) -> str:
    """Why torch's exporter gave up: the operation that ONNX lacks, or its first error's text."""
    while error.__cause__ is not None:
        error = error.__cause__
    operation = re.search(r"No ONNX function found for .*?op='([^']+)'", str(error))
    if operation:
        return f"ONNX has no {operation[1]}"
    return one_line(error).rstrip(".") or type(error).__name__


class Comparison(NamedTuple):
    """How alike a file and its policy decide."""

    difference: float
    """Largest difference of scores and memory."""
    equal: float
    """Share of equal actions."""
    steps: int
    """Steps that were compared, of every copy."""


def compare(exported: Exported, file: Path, env: TensorEnv, steps: int = STEPS) -> Comparison:
    """How alike the file and the policy decide at the observations that the policy meets in `env`.

    RunError where they do not decide alike.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    obs, _ = env.reset(seed=0)
    _, *past = exported.example(env.num_envs)
    differences = []
    equal = 0
    count = 0
    for _ in range(steps):
        inputs = (obs, *past)
        with torch.no_grad():
            action, *numbers = exported(*inputs)
        arrays = [value.numpy() for value in inputs]
        named_inputs = dict(zip(exported.inputs, arrays, strict=True))
        file_action, *file_numbers = session.run(None, named_inputs)
        for number, file_number in zip(numbers, file_numbers, strict=True):
            differences.append(np.abs(file_number.astype(float) - number.numpy()).max())
        equal += int(np.isclose(file_action, action.numpy(), atol=1e-4).sum())
        count += file_action.size
        obs, _, terminated, truncated, _ = env.step(action)
        if exported.memory:
            _, *memory = numbers
            past = [terminated | truncated, *memory]
    difference = float(np.max(differences))  # NaN where one is
    if not (equal > 0.99 * count and difference < 1e-2):
        raise RunError(
            f"{file}: decides otherwise than the policy: {equal} of {count} actions are equal, "
            f"scores differ by up to {difference:g}."
        )
    return Comparison(difference, equal / count, steps)
