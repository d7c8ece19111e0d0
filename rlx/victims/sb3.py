"""Models of Stable-Baselines3: the networks are made anew from the weights in a zip.

Nothing is unpickled: of `data` the plain JSON is read, of `policy.pth` the tensors.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import yaml
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Spec
from rlx.config import choice
from rlx.errors import ConfigError
from rlx.names import one_line
from rlx.nn.encoders import is_image, obs_features
from rlx.nn.networks import ConvNet, SeedConv
from rlx.nn.rng import Streams, seed_tensor
from rlx.show import console
from rlx.victims.files import VictimFile, folders
from rlx.victims.policy import ACTIVATIONS, Network, Step, linear

SUPPORTED = (
    "rlx reads MlpPolicy and CnnPolicy (NatureCNN) of PPO, A2C, DQN, SAC, TD3, DDPG, and of "
    "sb3-contrib's TRPO, QR-DQN and TQC"
)
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each layer of NatureCNN (Mnih et al. 2015)."""
CNN = ("cnn.0", "cnn.2", "cnn.4")
"""The names of its convolutions."""
LINEAR = "linear.0"
"""The name of the layer behind them."""


@dataclass(frozen=True)
class _Family:
    """How the algorithms of one kind lay out their actors."""

    hidden: str
    """The beginning of the names of all layers but the last."""
    last: str
    """The name of the last layer; empty: it is the last of the others."""
    features: tuple[str, ...]
    """Where the features of images may be."""
    activation: str
    """What stands between the layers unless the file says otherwise."""
    squashed: bool = False
    """Whether actions are the tanh of the outputs, stretched to the space's bounds."""
    values: bool = False
    """Whether the outputs are action values."""
    quantiles: bool = False
    """Whether they are quantiles of each action value, one quantile of all actions after another
    (Dabney et al. 2018)."""


FAMILIES = (
    _Family(
        "mlp_extractor.policy_net.",
        "action_net",
        ("pi_features_extractor.", "features_extractor."),
        "tanh",
    ),
    _Family("q_net.q_net.", "", ("q_net.features_extractor.",), "relu", values=True),
    _Family(
        "quantile_net.quantile_net.",
        "",
        ("quantile_net.features_extractor.",),
        "relu",
        values=True,
        quantiles=True,
    ),
    _Family("actor.latent_pi.", "actor.mu", ("actor.features_extractor.",), "relu", squashed=True),
    _Family("actor.mu.", "", ("actor.features_extractor.",), "relu", squashed=True),
)
"""PPO, A2C and TRPO; DQN; QR-DQN; SAC and TQC; TD3 and DDPG. The first one fits of which the last
layer is there."""


def load(file: VictimFile, wanted: str | None, spec: Spec) -> Network:
    """The policy of a zip; ConfigError where it is none of SB3's, or not for the env of `spec`.

    `wanted`: the activation between its layers; None: what the file says.
    """
    data, tensors = _read(file)
    family = _family(file, tensors)
    settings = data.get("policy_kwargs") or {}
    if family.squashed and data.get("use_sde"):
        raise ConfigError(f"victim={file}: uses gSDE; {SUPPORTED}, without it.")
    if str(settings.get("squash_output", False)) == "True":
        raise ConfigError(f"victim={file}: has squash_output=True; {SUPPORTED}, without it.")
    layers = _layers(file, family, tensors)
    if family.quantiles:
        layers[-1] = _means_of_quantiles(*layers[-1], spec.action_space)
    nature = _nature(file, family, tensors, spec, settings)
    inputs = layers[0][0].shape[1]
    features = obs_features(spec.observation_space) if nature is None else nature.features
    if inputs != features:
        raise ConfigError(
            f"victim={file}: sees {inputs} numbers; this env's observations are "
            f"{one_line(spec.observation_space)}."
        )
    _check_actions(file, spec, family, tensors, layers[-1][0].shape[0])
    _check_zoo(file, spec)
    steps = [] if file.vecnormalize is None else _statistics(file.vecnormalize, spec)
    activation = _activation(file, wanted, family, settings)
    for weight, bias in layers:
        steps += [*linear(weight, bias), Step(activation)]
    steps.pop()  # none stands behind the last layer
    if family.squashed:
        space: Any = spec.action_space
        low = torch.from_numpy(space.low)
        high = torch.from_numpy(space.high)
        steps += [Step("tanh"), Step("multiply", (high - low) / 2), Step("add", (high + low) / 2)]
    network = Network(spec, steps, nature)
    network.scores_are_values = family.values  # type: ignore[misc]
    return network


def _read(file: VictimFile) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and the policy's tensors of a zip of SB3."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            data = json.loads(archive.read("data"))
            weights = archive.read("policy.pth")
        tensors = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        assert isinstance(data, dict) and isinstance(tensors, Mapping)
    except (
        AssertionError,
        EOFError,
        KeyError,
        OSError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"victim={file}: is no model that SB3 saved ({reason[0]}); {SUPPORTED}."
        ) from None
    named = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    return data, named


def _family(file: VictimFile, tensors: Mapping[str, Tensor]) -> _Family:
    """The family of a model, by the names of its tensors."""
    if not any("lstm" in name for name in tensors):
        for family in FAMILIES:
            last = family.last or f"{family.hidden}0"
            if f"{last}.weight" in tensors:
                return family
    raise ConfigError(f"victim={file}: a policy of another kind; {SUPPORTED}.")


def _layers(
    file: VictimFile, family: _Family, tensors: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(weight [m, n], bias [m]) of each layer."""
    names = [name for name in tensors if name.startswith(family.hidden)]
    numbers = sorted({int(name.split(".")[-2]) for name in names if name.split(".")[-2].isdigit()})
    layers = [f"{family.hidden}{number}" for number in numbers]
    if family.last:
        layers.append(family.last)
    # Between two layers is an activation; what has more tensors than these is another network.
    plain = numbers == list(range(0, 2 * len(numbers), 2)) and len(names) == 2 * len(numbers)
    weights = [tensors.get(f"{layer}.weight", torch.empty(0)) for layer in layers]
    biases = [tensors.get(f"{layer}.bias", torch.empty(0)) for layer in layers]
    plain = plain and all(weight.dim() == 2 for weight in weights)
    plain = plain and all(len(a) == b.shape[1] for a, b in pairwise(weights))
    if not plain or [len(weight) for weight in weights] != [len(bias) for bias in biases]:
        raise ConfigError(f"victim={file}: its actor is no plain MLP; {SUPPORTED}.")
    return list(zip(weights, biases, strict=True))


def _means_of_quantiles(
    weight: Tensor, bias: Tensor, space: gymnasium.Space
) -> tuple[Tensor, Tensor]:
    """The last layer of a QR-DQN, of all quantiles, as one of their means: the action values."""
    if not isinstance(space, spaces.Discrete) or len(bias) % space.n:
        return weight, bias  # it was made for other actions, which is said where they are checked
    each = (-1, int(space.n))
    return weight.unflatten(0, each).mean(0), bias.unflatten(0, each).mean(0)


class Nature(nn.Module):
    """Images [S, B, C, H, W] → features [S, B, 512], as SB3's NatureCNN."""

    def __init__(self, shape: Sequence[int], tensors: Mapping[str, Tensor], scale: float):
        """`tensors`: the weights, by their names in SB3; images are divided by `scale`."""
        super().__init__()
        seeds = seed_tensor([0])
        rng = Streams(seeds, "victim")
        self.conv = ConvNet(shape, NATURE, False, scale, seeds, rng)
        convolutions = [layer for layer in self.conv.layers if isinstance(layer, SeedConv)]
        for layer, name in zip(convolutions, CNN, strict=True):
            layer.weight.data = tensors[f"{name}.weight"].unsqueeze(0)
            assert layer.bias is not None
            layer.bias.data = tensors[f"{name}.bias"].unsqueeze(0)
        self.features = len(tensors[f"{LINEAR}.bias"])
        self.linear = nn.Sequential(*linear(tensors[f"{LINEAR}.weight"], tensors[f"{LINEAR}.bias"]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x)).relu()


def _nature(
    file: VictimFile,
    family: _Family,
    tensors: Mapping[str, Tensor],
    spec: Spec,
    settings: Mapping[str, Any],
) -> Nature | None:
    """NatureCNN with the model's weights; None where observations are flat."""
    space = spec.observation_space
    used = [
        prefix for prefix in family.features if any(name.startswith(prefix) for name in tensors)
    ]
    if not used:
        if is_image(space.shape):
            raise ConfigError(
                f"victim={file}: is a MlpPolicy, and this env's observations are images, "
                f"{one_line(space)}; {SUPPORTED}."
            )
        return None
    own = {
        name.removeprefix(used[0]): tensor
        for name, tensor in tensors.items()
        if name.startswith(used[0])
    }
    names = {f"{layer}.{part}" for layer in (*CNN, LINEAR) for part in ("weight", "bias")}
    sizes = [tuple(own[f"{layer}.weight"].shape[::2]) for layer in CNN] if set(own) == names else []
    if sizes != [(channels, kernel) for channels, kernel, _ in NATURE]:
        raise ConfigError(f"victim={file}: has another features extractor; {SUPPORTED}.")
    channels = own["cnn.0.weight"].shape[1]
    shape = space.shape or ()
    if not is_image(shape) or shape[0] != channels:
        raise ConfigError(
            f"victim={file}: sees images of {channels} channels; this env's observations are "
            f"{one_line(space)} (env.stack joins frames)."
        )
    scaled = str(settings.get("normalize_images", True)) == "True"
    net = Nature(shape, own, 255.0 if scaled else 1.0)
    if net.conv.features != own[f"{LINEAR}.weight"].shape[1]:
        raise ConfigError(
            f"victim={file}: sees images of another size than this env's, {one_line(space)}."
        )
    return net


def _check_actions(
    file: VictimFile, spec: Spec, family: _Family, tensors: Mapping[str, Tensor], outputs: int
) -> None:
    """ConfigError where the actions of a model with so many `outputs` are not those of `spec`."""
    space = spec.action_space
    continuous = family.squashed or "log_std" in tensors
    fits = continuous == isinstance(space, spaces.Box)
    size = int(np.prod(space.shape)) if isinstance(space, spaces.Box) else spec.actions
    if not fits or outputs != size:
        kind = "numbers of a continuous action" if continuous else "discrete actions"
        raise ConfigError(
            f"victim={file}: has {outputs} {kind}; this env's actions are {one_line(space)}."
        )


def _activation(
    file: VictimFile, wanted: str | None, family: _Family, settings: Mapping[str, Any]
) -> str:
    """The name of what stands between the layers: the user's, the file's or SB3's default."""
    if wanted is not None:
        return choice(wanted, ACTIVATIONS, "activation")
    written = settings.get("activation_fn")
    if written is None:
        return family.activation
    name = str(written).removesuffix("'>").rpartition(".")[2].lower()
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(
            f"victim={file}: its activation is {written}; give one of these: activation={known}."
        )
    return name


def _statistics(file: Path, spec: Spec) -> list[Step]:
    """What VecNormalize does by an npz file; ConfigError where it does not fit the observations."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean = np.asarray(arrays["obs_mean"], dtype=np.float64).flatten()
            var = np.asarray(arrays["obs_var"], dtype=np.float64).flatten()
            epsilon = float(arrays["epsilon"]) if "epsilon" in arrays else 1e-8
            clip = float(arrays["clip_obs"]) if "clip_obs" in arrays else 10.0
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"vecnormalize={file}: cannot be read ({error}); expected an npz file of obs_mean and "
            "obs_var, and perhaps epsilon and clip_obs."
        ) from None
    numbers = obs_features(spec.observation_space)
    # rl-zoo3 normalises each frame, and stacks them afterwards.
    repeats = spec.stack if mean.size * spec.stack == numbers else 1
    if mean.size * repeats != numbers or var.shape != mean.shape or not (var >= 0).all():
        raise ConfigError(
            f"vecnormalize={file}: {mean.size} means and {var.size} variances; this env's "
            f"observations have {numbers} numbers."
        )
    mean = np.tile(mean, repeats)
    std = np.sqrt(np.tile(var, repeats) + epsilon)
    return [
        Step("add", torch.from_numpy(-mean)),
        Step("divide", torch.from_numpy(std)),
        Step("clamp", bounds=(-clip, clip)),
    ]


def _check_zoo(file: VictimFile, spec: Spec) -> None:
    """ConfigError where the config.yml of rl-zoo3 beside a model asks for another stack of frames.

    A line tells the wrappers that it names: rlx does not make them.
    """
    for config in [folder / "config.yml" for folder in folders(file.path)]:
        if not config.is_file():
            continue
        try:
            keys = dict(yaml.load(config.read_text(), _Plain)[0])  # a SafeLoader
        except (OSError, ValueError, TypeError, IndexError, KeyError, yaml.YAMLError):
            console.warning(f"{config}: is not as rl-zoo3 writes it, and was not read")
            return
        stack = int(keys.get("frame_stack") or 1)
        if stack != spec.stack and not is_image(spec.observation_space.shape):
            raise ConfigError(
                f"env.stack={spec.stack}: {config} says frame_stack: {stack}; "
                f"use env.stack={stack}."
            )
        wrapper = keys.get("env_wrapper")
        if wrapper:
            console.warning(f"{config} names the wrapper {wrapper}, which env= must have as well")
        return


class _Plain(yaml.SafeLoader):
    """Reads the OrderedDict of rl-zoo3's files as the list of pairs that it is written as."""


_Plain.add_multi_constructor(
    "tag:yaml.org,2002:python/",
    lambda loader, suffix, node: loader.construct_sequence(node, deep=True),
)
