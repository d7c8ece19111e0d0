"""One Gymnasium env from its id and its arguments; what goes wrong in it, on one line."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from rlx.errors import ConfigError, RunError
from rlx.names import describe_error, nearest, one_line


def find_spec(id: str, key: str) -> EnvSpec:
    """What Gymnasium knows of `id`, "Name-v0" or "module:Name-v0".

    ConfigError, which begins with `key`, where it knows nothing or the module fails.
    """
    module, _, name = id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            problem = f"the module {module} cannot be imported"
            raise ConfigError(f"{key}: {problem}: {describe_error(error)}.") from error
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    if not module:
        near = nearest(name, gymnasium.registry)
        hint = f"Ids of a module of yours are written module:Id, as in env.id=myenv:{name}"
        raise ConfigError(f"{key}: not registered with Gymnasium.{near} {hint}.")
    package = module.partition(".")[0]
    names = [name for name, spec in gymnasium.registry.items() if _package(spec) == package]
    hint = nearest(name, names) if names else " Call gymnasium.register in it."
    raise ConfigError(f"{key}: the module {module} does not register {name}.{hint}")


def make_one(spec: EnvSpec, kwargs: Mapping[str, Any], key: str) -> gymnasium.Env:
    """One copy, without the time limit and the checks of Gymnasium, since GymEnv has its own.

    ConfigError, which begins with `key` or names the argument, where it cannot be made.
    """
    try:
        env: Any = gymnasium.make(spec.id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
        generator = env.unwrapped.np_random
        for space in (env.observation_space, env.action_space):
            if not isinstance(space, gymnasium.Space):
                raise TypeError(f"its spaces are {env.observation_space} and {env.action_space}")
    except (ConfigError, RunError):
        raise
    except Exception as error:
        wrong = _wrong_argument(spec, kwargs, key) if isinstance(error, TypeError) else None
        if wrong:
            raise ConfigError(wrong) from error
        cause: BaseException = error
        if error.__cause__ and "was raised from the environment creator" in str(error):
            # Gymnasium has added all of kwargs to the message.
            cause = error.__cause__
        problem = f"Gymnasium cannot make it: {describe_error(cause)}"
        raise ConfigError(f"{key}: {problem}.") from cause
    if not isinstance(getattr(generator, "bit_generator", None), np.random.PCG64):
        expected = "expected what gymnasium.Env.reset(seed=…) makes, a PCG64"
        raise ConfigError(f"{key}: its np_random is {one_line(generator)}; {expected}.")
    return env


def _package(spec: EnvSpec) -> str:
    """The package in which an env's class lies."""
    entry: Any = spec.entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.partition(":")[0].partition(".")[0]


def _wrong_argument(spec: EnvSpec, kwargs: Mapping[str, Any], key: str) -> str | None:
    """What does not fit the parameters of an env's class, if they are known."""
    try:
        entry: Any = spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError, ImportError, AttributeError):
        return None
    keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in keywords]
    given = {**spec.kwargs, **kwargs}
    for p in keywords:
        if p.default is p.empty and p.name not in given:
            return f"env.kwargs.{p.name}: missing; {spec.id} needs it."
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    if "render_mode" in kwargs and "render_mode" not in names:
        return f"{key}: cannot be drawn, since its class takes no render_mode."
    for name in kwargs:
        if name not in names:
            return f"env.kwargs.{name}: {spec.id} has no such parameter.{nearest(name, names)}"
    return None
