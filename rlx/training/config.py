"""The config of a training: the keys of conf/train.yaml, and their types."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlx.composing import chosen
from rlx.config import Count, NonNegative, choice, convert, load_class, typed
from rlx.errors import ConfigError
from rlx.experiment import Device, typed_env
from rlx.grids import parse_rows
from rlx.runs.finding import find_all
from rlx.victims.files import Victims


@dataclass(frozen=True)
class Config:
    """The keys of train.yaml."""

    agent: Any
    """The agent that learns: a file of conf/agent, with its keys."""
    env: Any
    """The env that the agent learns in: a file of conf/env, with its keys."""
    device: Any
    """The device that computes: a file of conf/device, with its keys."""
    protocol: str | None
    """`corrected`, or `source`: as the source study did it, mistakes included.

    null: there are no settings of a source study.
    """
    seeds: Any
    """A count, a range or a list of seeds: trained together, each as if alone."""
    steps: Count
    """Environment steps per seed; of an offline agent, minibatches."""
    num_envs: Count
    """Env copies per seed of an agent that acts."""
    eval_every: Count
    """Environment steps between two greedy evaluations."""
    eval_episodes: Count
    """Episodes of an evaluation while learning, by which the best weights are kept."""
    final_episodes: Count
    """Episodes, new ones, on which the kept weights are reported at the end."""
    eval_env: Any
    """Keys of env that differ in evaluations, and when the run is attacked."""
    checkpoint_every: Count
    """Environment steps between two checkpoints that stay."""
    checkpoint_seconds: NonNegative | None
    """Seconds after which another checkpoint is saved; it is replaced by the next but one."""
    stop: Any
    """A stop rule on training returns; null: none.

    The weights at the stop are kept instead of the best evaluated ones.
    """
    outputs: str
    """Folder of all runs."""
    # Runs of earlier versions lack these.
    data: str | None = None
    """Data set of an offline agent."""
    skip_bad: bool = False
    """Leave bad shards of the data set out, instead of refusing it."""
    keep: str = "best"
    """`best`: each seed's weights of its best evaluation; `attacked`: of its best one where the
    lower counts of the return and of that under an attack, of the radius that agent.defence shall
    resist; `newest`: its newest."""
    tracker: Any = None
    """The trackers that are told of the run: files of conf/tracker, with their keys."""

    def __post_init__(self) -> None:
        parse_rows(self.seeds)
        choice(self.keep, ("best", "attacked", "newest"), "keep")
        if self.keep == "attacked" and not self.agent.get("defence"):
            raise ConfigError("keep=attacked: needs a defence, which says what is to be resisted.")


def run_name(config: Config) -> str:
    """Agent and env, as in "dqn-cartpole"; of Gymnasium's and Atari's envs the id or the game."""
    env = chosen("env")
    if env in ("gym", "atari"):
        env = str(config.env.get("id", config.env.get("game"))).replace("/", "-")
    return f"{chosen('agent')}-{env}"


def validated(composed: Mapping[str, Any]) -> DictConfig:
    """A training's config with every value of the type that its key has; raises ConfigError.

    What is saved, compared and read from here on holds no `200k` and no text where a number
    belongs.
    """
    config = typed(Config, composed, "")
    for group in ("agent", "env", "eval_env", "device"):
        config[group] = convert({} if config[group] is None else config[group], dict, group)
    config["env"] = _pinned(typed_env(config["env"]))
    config["eval_env"] = _pinned(_typed_eval_env(config["eval_env"], config["env"]))
    config["agent"] = _typed_agent(config["agent"], config["env"])
    del config["eval_env"]["_target_"]
    config["device"] = typed(Device, config["device"], "device")
    config["stop"] = _typed_stop(config["stop"])
    config["data"] = _absolute_data(config["data"])
    return OmegaConf.create(config)


def _typed_agent(node: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any]:
    """The config group `agent` for the config group `env`, every value of its type.

    The scale of its defence is numbers.
    """
    from rlx.agent import Agent
    from rlx.defence import Defence
    from rlx.robustness.scale import scale_of_env

    agent = load_class(node, "agent", Agent)
    unnamed = node.get("defence")
    if isinstance(unnamed, Mapping) and "_target_" not in unnamed:
        raise ConfigError(f"agent.defence={unnamed}: is of no defence; add one, as defence=sa.")
    values = typed(agent.config_type, node, "agent")
    defence = values.get("defence")
    if isinstance(defence, Defence):
        pinned = {"_target_": node["defence"]["_target_"], **dataclasses.asdict(defence)}
        values["defence"] = pinned | {"scale": scale_of_env(defence.scale, env)}
    return {"_target_": node["_target_"], **values}


def _typed_eval_env(node: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any]:
    """The config group `eval_env`, every value of its type: some keys of the group `env`.

    `_target_` is that of the env.
    """
    return typed_env({**node, "_target_": env["_target_"]}, "eval_env", partial=True)


def _pinned(env: dict[str, Any]) -> dict[str, Any]:
    """The config group `env` with the victims of env=attacked as they are found from any folder.

    A run may be resumed from another one, when there may be newer victims.
    """
    from rlx.robustness.attacked_env import AttackedEnv

    if load_class(env, "env", object) is not AttackedEnv:
        return env
    if env.get("workers", 1) != 1:
        raise ConfigError(
            f"env.workers={env['workers']}: expected 1; the victims' own env may have processes."
        )
    if env.get("victims"):
        env["victims"] = Victims.of_node(env["victims"]).keys()
    elif "run" in env:
        runs = find_all(env["run"], "outputs")
        env["run"] = [str(run.path.absolute()) for run in runs]
    return env


def _typed_stop(node: object) -> dict[str, Any] | None:
    """The settings of the stop rule, every value of its type; None where there is none."""
    from rlx.training import stopping

    if not node:
        return None
    return typed(stopping.Config, convert(node, dict, "stop"), "stop")


def _absolute_data(data: str | None) -> str | None:
    """The data set as it is found from any folder: a run may be resumed from another one."""
    if not data or data.startswith("minari:"):
        return data
    return str(Path(data).absolute())
