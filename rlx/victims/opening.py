"""Victims as policies in their env: what evaluating, attacking and certifying begin with."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rlx.agent import Policy, Spec
from rlx.errors import ConfigError, RunError
from rlx.experiment import env_spec, typed_env
from rlx.grids import parse_seeds
from rlx.nn.seed_axis import concatenate, take
from rlx.policies import Opened
from rlx.victims import function, onnx, sb3, torchscript
from rlx.victims.files import Victims
from rlx.victims.policy import Rows


def open_victims(victims: Victims, device: torch.device, seeds: object = None) -> Opened:
    """The policies of `victims`, and their env.

    Files are numbered as seeds, from 0; `seeds` picks some of them, None: all. ConfigError where a
    file is no policy, or none for this env.
    """
    env = typed_env(victims.env)
    spec = env_spec(env)
    numbers = list(range(len(victims.files)))
    picked = numbers if seeds is None else parse_seeds(seeds)
    if not set(picked) <= set(numbers):
        raise ConfigError(f"seeds={seeds}: the {len(numbers)} victims are 0 to {numbers[-1]}.")
    policy = take(_policy(victims, spec, device), torch.tensor(picked)).to(device)
    opened = Opened(policy, spec, picked, env, 0, device)
    _try(opened)
    return opened


def _policy(victims: Victims, spec: Spec, device: torch.device) -> Policy:
    """The policies of all files, side by side along the seed axis."""
    files = victims.files
    if files[0].kind == "sb3":
        return _joined([sb3.load(file, i, victims, spec) for i, file in enumerate(files)], spec)
    load = {"torchscript": torchscript.load, "onnx": onnx.load, "function": function.load}
    return Rows(spec, [load[file.kind](file, spec, device) for file in files])


def _joined(policies: Sequence[sb3.Sb3Policy], spec: Spec) -> Policy:
    """Networks of one seed each as one policy: stacked where all are of one shape."""
    if len({policy.architecture for policy in policies}) == 1:
        return concatenate(policies)
    return Rows(spec, [partial(_one, policy) for policy in policies])


def _one(policy: Policy, obs: Tensor) -> Tensor:
    """The scores [B, A] of a policy of one seed at `obs` [B, *O]."""
    return policy.scores(obs.unsqueeze(0), {}, "action")[0]


def _try(opened: Opened) -> None:
    """ConfigError where the policies cannot decide at the first observations of two episodes."""
    env = opened.make_env(2 * len(opened.seeds))
    obs, _ = env.reset(seed=0)
    with torch.no_grad():
        try:
            opened.policy.scores(obs.unflatten(0, (-1, 2)), {}, "action")
        except RunError as error:
            raise ConfigError(str(error)) from None
