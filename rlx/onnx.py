"""Policies as ONNX graphs (an extra: pip install "rlx[onnx]")."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Policy, Scores, Spec
from rlx.env import TensorEnv
from rlx.errors import ConfigError, RunError
from rlx.nn.seed_axis import take

OPSET = 18


class Exported(nn.Module):
    """One seed's greedy policy as a function without a seed axis.

    Inputs: obs [B, *O] as the env gives it, with all scaling inside. A policy with a memory also takes `first` (bool [B]: a new
    episode begins) and its memory, and returns the memory for the next step. Outputs: action [B] (or [B, D]) and the scores [B, A]
    of the last decision, which no softmax has seen.
    """

    def __init__(self, policy: Policy, spec: Spec, row: int):
        super().__init__()
        self.policy = take(policy, torch.tensor([row])).eval()
        self.memory = tuple(self.policy.initial_carry(1))
        self.inputs = (
            ["obs", "first", *(f"last_{name}" for name in self.memory)] if self.memory else ["obs"]
        )
        self.outputs = ["action", "scores", *(f"next_{name}" for name in self.memory)]
        self.space: Any = spec.observation_space

    def forward(self, obs: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        first, *memory = past or (obs.new_zeros(obs.shape[0], dtype=torch.bool),)
        carry = {name: value.unsqueeze(0) for name, value in zip(self.memory, memory, strict=True)}
        shown: list[Tensor] = []

        def choose(head: str, seen: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if scores.choice is not None:
                raise ConfigError(
                    "export: this policy decides by a search, which a network's file cannot do."
                )
            shown.append(scores(seen))
            return scores.decide(shown[-1])

        action, carry = self.policy.act(obs.unsqueeze(0), first.unsqueeze(0), carry, choose)
        return (
            action[0],
            shown[-1][0],
            *(carry[name][0].clone() for name in self.memory),
        )  # one may be the action itself

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of the first step."""
        obs = torch.as_tensor(np.stack([self.space.sample()] * batch))
        carry = self.policy.initial_carry(batch)
        first = (torch.ones(batch, dtype=torch.bool),) if self.memory else ()
        return obs, *first, *(carry[name][0] for name in self.memory)

    def write(self, out: Path, facts: Mapping[str, str]) -> None:
        """The file, with `facts` as its metadata; ConfigError where it cannot be made."""
        batch = torch.export.Dim("batch")
        example = self.example(2)
        self(*example)
        try:
            import onnxruntime  # noqa: F401 (for the comparison)

            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)
                program = torch.onnx.export(
                    self, example, input_names=self.inputs, output_names=self.outputs, opset_version=OPSET, verbose=False,
                    dynamic_shapes=({0: batch}, *[tuple({0: batch} for _ in example[1:])][: bool(self.memory)]),
                )  # fmt: skip
        except ImportError as error:
            raise ConfigError(
                f'export: not installed ({error}); pip install "rlx[onnx]".'
            ) from None
        assert program is not None
        program.model.metadata_props.update(facts)
        try:
            program.save(out)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written ({error.strerror}).") from None


def compare(
    exported: Exported, file: Path, env: TensorEnv, steps: int = 200
) -> tuple[float, float, int]:
    """(largest difference of scores and memory, share of equal actions, steps) of file and policy on what the policy meets in `env`.

    RunError where they do not decide alike.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    obs, _ = env.reset(seed=0)
    _, *rest = exported.example(env.num_envs)
    off, same, count = [], 0, 0
    for _ in range(steps):
        inputs = (obs, *rest)
        with torch.no_grad():
            action, *numbers = exported(*inputs)
        given = {name: value.numpy() for name, value in zip(exported.inputs, inputs, strict=True)}
        other_action, *others = session.run(None, given)
        off += [
            np.abs(other.astype(float) - value.numpy()).max()
            for other, value in zip(others, numbers, strict=True)
        ]
        same, count = (
            same + int(np.isclose(other_action, action.numpy(), atol=1e-4).sum()),
            count + other_action.size,
        )
        obs, _, terminated, truncated, _ = env.step(action)
        rest = [terminated | truncated, *numbers[1:]] if exported.memory else []
    worst = float(np.max(off))  # NaN where one is
    if not (same > 0.99 * count and worst < 1e-2):
        raise RunError(
            f"{file}: decides otherwise than the policy: {same} of {count} actions are equal, scores differ by up to {worst:g}."
        )
    return worst, same / count, steps
