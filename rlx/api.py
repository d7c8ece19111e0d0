"""The Python face: what the command line does, for notebooks and scripts.

import rlx

run = rlx.train(agent="dqn", env="cartpole", seeds=2, steps=20_000)
env = run.make_env()
obs, _ = env.reset(seed=0)
action = run.policy.act(obs)
study = rlx.attack(run, eps="0:0.1:0.05", scale="std")
study.figure()
rlx.figure(run.path, width=3.3, font_size=8).savefig("curves.pdf")
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit
from omegaconf import DictConfig

from rlx import conf
from rlx.command_line import explain, to_hydra
from rlx.composing import compose_config, hydra_left_as_it_is, tell_users_options
from rlx.config import build, load_class, plain
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.runs.finding import command_of, find
from rlx.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlx.agent import Agent
    from rlx.gym_policy import GymPolicy
    from rlx.show.figures import Style


def train(**overrides: object) -> "TrainedRun":
    """Train as `rlx train` does, and return the run.

    The keywords are the command line's keys: `agent="dqn"`, `env="cartpole"`, `seeds=2`,
    `steps=20_000`. Keys with a dot go into a dictionary: `**{"agent.learning_rate": 1e-3}`. Raises
    ConfigError where they cannot be, RunError where the run fails.
    """
    from rlx.commands.train import train as task

    with hydra_left_as_it_is():
        return TrainedRun(task(compose("train", **overrides)))


def attack(
    run: "TrainedRun | str | Path | Sequence[TrainedRun | str | Path]" = (), **overrides: object
) -> "AttackRun":
    """Attack a trained run as `rlx attack` does, and return the study.

    Several runs are attacked side by side, where they are of one agent and env. The keywords are
    the command line's keys: `eps="0:0.03:0.01"`, `attack="pgd"`, `episodes=50`. Policies that rlx
    did not train are attacked without `run`: `rlx.attack(victim="sb3:a.zip", env="cartpole")`.
    Raises ConfigError where they cannot be.
    """
    from rlx.commands.attack import attack as task

    runs = list(run) if isinstance(run, list | tuple) else [run]
    for one_run in runs:
        if not isinstance(one_run, TrainedRun | str | Path):
            kind = type(one_run).__name__
            raise ConfigError(f"run: expected a training, or the path of one, not {kind}.")
    paths = [str(one_run.path if isinstance(one_run, TrainedRun) else one_run) for one_run in runs]
    with hydra_left_as_it_is():
        return AttackRun(task(compose("attack", *paths, **overrides)))


def load(
    path: str | Path,
    *,
    checkpoint: str | int = "best",
    seed: int | None = None,
    trust: bool = False,
) -> "TrainedRun | AttackRun":
    """The run in the folder `path`, or the newest finished one below it.

    Of a training, `checkpoint` and `seed` say whose weights `run.policy` has: those kept for each
    seed ("best") or those of a step, and of which seed; None: the first. `trust`: import what the
    run's config names, whoever made it. Raises ConfigError where there is no such run.
    """
    command = command_of(str(path))
    if command == "attack":
        return AttackRun(find(str(path), "outputs", "attack", trusted=trust))
    found = find(str(path), "outputs", "train", trusted=trust)
    if not isinstance(checkpoint, str | int):
        raise ConfigError(f"checkpoint={checkpoint}: expected best, or the step of a checkpoint.")
    name = f"{checkpoint:09d}" if isinstance(checkpoint, int) else checkpoint
    return TrainedRun(found, checkpoint=name, seed=seed)


def figure(
    *runs: "TrainedRun | AttackRun | str | Path",
    mode: str | None = None,
    trust: bool = False,
    **style: float,
) -> "Figure":
    """What rlx draws of runs, as a figure of Matplotlib.

    One training or one attack is drawn as it draws itself, several as `rlx report` compares them;
    besides a sweep, or a run of `rlx certify`. `style`: `width` and `height` in inches and
    `font_size` in points, as in conf/figure. `mode`: which mode of attacks is compared; None: all
    heads at once, or the first that all have. `trust`: import what the runs' configs name, whoever
    made them. Raises ConfigError where nothing can be drawn.
    """
    from rlx.commands.report import figure as compared
    from rlx.show.figures import Style

    if not runs:
        raise ConfigError("figure: name the runs to draw, as in rlx.figure('outputs/train/A').")
    size = build(Style, style, "figure")
    paths = [str(run.path if isinstance(run, _Finished) else run) for run in runs]
    if len(runs) == 1 and mode is None and command_of(paths[0]) in ("train", "attack"):
        one = runs[0] if isinstance(runs[0], _Finished) else load(paths[0], trust=trust)
        return one.figure(size)
    return compared(paths, size, mode, trust)


def check_agent(agent: "str | type[Agent]", env: str | None = None, **keys: object) -> None:
    """Try an agent as `rlx check` does; ConfigError with what was expected where it fails.

    `agent`: a name of conf/agent, yours or rlx's, or a class. `keys` are its settings; the others
    are those of its YAML file, or of the file of the class that it derives from. `env`: a name of
    conf/env; None: one of rlx's small ones that fits.
    """
    from rlx.checks.agents import agent_checks, fitting

    keys = keys if isinstance(agent, str) else {**keys, "_target_": _target(agent)}
    name = agent if isinstance(agent, str) else _option("agent", agent)
    with hydra_left_as_it_is():
        node = plain(compose("train", agent=name, tuned="none").agent) if name else {}
        node |= keys
        env_node = compose("train", env=env or fitting(node)).env
    for _ in agent_checks(node, env_node):
        pass


def check_env(env: str | type, **keys: object) -> None:
    """Try an env as `rlx check` does; ConfigError with what was expected where it fails.

    `env`: a name of conf/env, yours or rlx's, or a class: a Dynamics, or a VectorEnv of tensors.
    `keys` are its parameters.
    """
    from rlx.checks.envs import env_checks

    node = dict(keys)
    if isinstance(env, str):
        with hydra_left_as_it_is():
            node = plain(compose("train", env=env).env) | node
    else:
        node["_target_"] = _target(env)
    for _ in env_checks(node):
        pass


def _target(kind: type) -> str:
    """A class as `_target_` names it."""
    if not isinstance(kind, type):
        raise ConfigError(f"expected a name or a class, not {kind!r}.")
    if "<locals>" in kind.__qualname__:
        raise ConfigError(f"{kind.__qualname__}: lies in a function; define it in a module.")
    return f"{kind.__module__}:{kind.__qualname__}"


def _option(group: str, kind: type) -> str | None:
    """The option of a config group that names `kind`, or the nearest class it derives from.

    None where there is no such option.
    """
    files = conf.group_files(group)
    named = {str(_read_target(file)).replace(":", "."): name for name, file in files.items()}
    for base in kind.__mro__:
        name = named.get(f"{base.__module__}.{base.__qualname__}")
        if name is not None:
            return name
    return None


def _read_target(file: Path) -> object:
    """The `_target_` of a YAML file; None where it has none."""
    import yaml

    node = yaml.safe_load(file.read_text())
    return node.get("_target_") if isinstance(node, dict) else None


class _Finished:
    """A finished run of any command: its folder, config and result."""

    def __init__(self, run: Run):
        self.run = run

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.run.path

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config that the run was made with, as in `run.config.agent.hidden`."""
        return self.run.config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The result, as in summary.json; NaN stands for null."""
        return self.run.summary()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


class TrainedRun(_Finished):
    """A run of `rlx train`."""

    def __init__(self, run: Run, checkpoint: str = "best", seed: int | None = None):
        super().__init__(run)
        self.checkpoint = checkpoint
        self.seed = seed

    @property
    def seeds(self) -> list[int]:
        """The seeds that were trained."""
        return parse_seeds(self.config.seeds)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl: a dictionary of each evaluation of each seed.

        `pandas.DataFrame(run.metrics())` has a column of each metric.
        """
        return self.run.metrics()

    @cached_property
    def policy(self) -> "GymPolicy":
        """The policy of one seed, which takes and gives NumPy. It acts greedily."""
        from rlx.gym_policy import GymPolicy
        from rlx.policies import load_policy

        policy, _, seeds = load_policy(self.run, self.checkpoint)
        seed = seeds[0] if self.seed is None else self.seed
        if seed not in seeds:
            raise ConfigError(f"seed={seed}: not in {self.path}, which has {seeds}.")
        return GymPolicy(policy, seeds.index(seed), plain(self.config.env))

    def make_env(self, **kwargs: Any) -> gymnasium.Env:
        """A copy of the run's env as Gymnasium's users know it: NumPy in and out, a time limit.

        Keywords go to the env, such as `render_mode="human"`. ConfigError where the env has no such
        form (Atari's and others that exist as batches alone).
        """
        from rlx import experiment
        from rlx.envs.batched import Dynamics
        from rlx.envs.gym import GymEnv
        from rlx.envs.registered import SingleEnv

        node = plain(self.config.env) | {"observe": None, "stack": 1, "workers": 1}
        kind = load_class(node, "env", object)
        limit = experiment.env_spec(node).max_episode_steps
        if issubclass(kind, Dynamics):
            parameters = experiment.class_parameters(node)
            single: gymnasium.Env = SingleEnv(kind(**parameters), **kwargs)
            return TimeLimit(single, limit)
        if not issubclass(kind, GymEnv):
            raise ConfigError(f"make_env: {kind.__name__} exists as a batch of envs alone.")
        if kwargs:
            node["kwargs"] = {**(node.get("kwargs") or {}), **kwargs}
        made: Any = experiment.make_env(node, 1, "cpu")
        return TimeLimit(made.envs[0], limit)

    def figure(self, style: "Style | None" = None) -> "Figure":
        """The learning curves of all seeds, as in learning.png."""
        from rlx.show import figures

        steps, seeds, values = self.run.curve()
        title = self.path.parent.name
        return figures.learning(steps, seeds, values, title, style=style or figures.SCREEN)


class AttackRun(_Finished):
    """A run of `rlx attack`: the study of an attack."""

    def metrics(self) -> list[dict[str, Any]]:
        """The table of the study: a dictionary for each attacked head and radius.

        `iqm`, `ci95_low` and `ci95_high` are the return's interquartile mean over seeds and its
        interval, as in robustness.csv.
        """
        rows = []
        for cell in self.summary["cells"]:
            row = {name: value for name, value in cell.items() if not isinstance(value, dict)}
            low, high = cell["return"]["ci95"]
            if "stuck_rate" in row:  # of a study made before
                row["truncation_rate"] = row.pop("stuck_rate")
            row |= {"iqm": cell["return"]["iqm"], "ci95_low": low, "ci95_high": high}
            rows.append(row)
        return rows

    def figure(self, style: "Style | None" = None) -> "Figure":
        """Return against the radius, with intervals over seeds, as in robustness.png."""
        from rlx.robustness.study import figure
        from rlx.show.figures import SCREEN

        attack_name = self.summary["cells"][0]["attack"]
        count = f"{len(self.summary['seeds'])} seeds × {self.config.episodes} episodes"
        title = f"{self.path.parent.name} under {attack_name}, {count}"
        return figure(self.summary, title, self.config.scale, style or SCREEN)


def compose(command: str, *runs: str, **overrides: object) -> DictConfig:
    """The config that `rlx <command> run … key=value …` would get. Raises ConfigError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for key, value in overrides.items():
        if conf.group_files(key) and not (isinstance(value, str) and value):
            raise ConfigError(
                f"{key}: expected a name of conf/{key}, not {type(value).__name__}; keys of the "
                f'{key} are given apart, as in **{{"{key}.name": value}}.'
            )
    experiment = overrides.get("experiment")
    if experiment and conf.sweeps_of(str(experiment)):
        raise ConfigError(f"experiment={experiment}: is a sweep; rlx -m makes many runs, not this.")
    words = [f"{key}={_word(value)}" for key, value in overrides.items()]
    line = to_hydra(command, [*runs, *words])
    try:
        composed = compose_config(command, [word for word in line if "=" in word])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error, command, line)) from None
    tell_users_options()
    return composed


def _word(value: object) -> str:
    """A Python value as one would type it behind key=."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, range):
        value = list(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_word(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_word(item)}' for key, item in value.items())}}}"
    return str(value)
