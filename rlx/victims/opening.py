"""Victims as policies in their env: what evaluating, attacking and certifying begin with."""

import torch

from rlx.agent import Policy, Spec
from rlx.errors import ConfigError, RunError
from rlx.experiment import env_spec, typed_env
from rlx.grids import parse_seeds
from rlx.nn.seed_axis import concatenate, take
from rlx.policies import Opened
from rlx.victims import function, onnx, sb3, torchscript
from rlx.victims.files import Victims
from rlx.victims.policy import Network, Rows, Scorer


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
    models: list[Network | Scorer] = []
    for file in victims.files:
        if file.kind == "sb3":
            models.append(sb3.load(file, victims.activation, spec))
        elif file.kind == "torchscript":
            models.append(torchscript.load(file, spec, device))
        elif file.kind == "onnx":
            models.append(onnx.load(file, spec))
        else:
            models.append(function.load(file, spec))
    networks = [model for model in models if isinstance(model, Network)]
    if len(networks) == len(models) and len({net.architecture for net in networks}) == 1:
        return concatenate(networks)
    return Rows(spec, [_scorer(model, device) for model in models])


def _scorer(model: Network | Scorer, device: torch.device) -> Scorer:
    """A network as a function of [B, *O]; others are such functions."""
    if not isinstance(model, Network):
        return model
    network = model.to(device)
    return lambda obs: network.scores(obs.unsqueeze(0), {}, "action")[0]


def _try(opened: Opened) -> None:
    """ConfigError where the policies cannot decide at the first observations of two episodes."""
    env = opened.make_env(2 * len(opened.seeds))
    obs, _ = env.reset(seed=0)
    with torch.no_grad():
        try:
            opened.policy.scores(obs.unflatten(0, (-1, 2)), {}, "action")
        except RunError as error:
            raise ConfigError(str(error)) from None
