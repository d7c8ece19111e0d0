"""Play policies of early and late checkpoints and log the episodes: a data set to learn from."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import RunConfig, command, pin_runs
from rlx.config import Count, Share, build
from rlx.data.writer import Writer, check_new
from rlx.errors import ConfigError
from rlx.grids import parse_grid
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import console

if TYPE_CHECKING:
    import torch

    from rlx.policies import Opened


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of collect.yaml."""

    device: Any
    """Where it runs: a file of conf/device."""
    out: str
    """A new folder for the data set."""
    steps: Count
    """Transitions in all, at least: every episode is played to its end."""
    mix: Any
    """Which checkpoints play, in equal shares: 0 is a run's first, 1 its last."""
    epsilon: Share
    """Share of uniformly random choices."""
    num_envs: Count
    """Env copies of each seed of a run."""
    seed: int
    """Which random numbers: another seed collects other episodes."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that plays."""

    run: Run
    checkpoint: str
    opened: "Opened"
    """The policies of all seeds of the run at the checkpoint, and their env."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with the config, as far as it can be told without playing."""
    _load(build(Config, composed, ""))


def _load(config: Config) -> tuple[dict[str, Any], list[Source]]:
    """The env of the runs, and the checkpoints that play in it."""
    check_new(config.out, f"out={config.out}")
    mix = _parse_mix(config.mix)
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import experiment

    env = experiment.eval_env_config(experiment.training_config(runs[0]))
    for run in runs:
        if not experiment.same_env(run.config, runs[0].config):
            raise ConfigError(f"run={run.path}: its env differs from that of {runs[0].path}.")
    return env, _sources(runs, mix, experiment.setup_device(config.device))


@command("collect", check=check, pin=pin_runs, writes=lambda composed: composed.out)
def main(composed: DictConfig) -> None:
    """Writes the folder `out` and prints its card."""
    config = build(Config, composed, "")
    env, sources = _load(config)

    began = time.monotonic()
    with Writer(config.out) as writer:
        descriptions = []
        for number, source in enumerate(sources):
            steps = config.steps / len(sources)
            description = _play(source, number, steps, config, writer)
            console.facts(source=description)
            descriptions.append(description)
        env_without_stack = {key: value for key, value in env.items() if key != "stack"}
        data = writer.close(env_without_stack, env.get("stack", 1), descriptions)
    console.facts(**data.card(), took=console.duration(time.monotonic() - began))
    console.result(writer.out)


def _parse_mix(mix: Any) -> list[float]:
    """The shares of a training, from 0 to 1; ConfigError where `mix` is anything else."""
    error = ConfigError(
        f"mix={mix}: expected numbers from 0 (a run's first checkpoint) to 1 (its last), "
        "as in 0:1:0.25 or [0,1]."
    )
    try:
        shares = parse_grid(mix, "mix")
    except ConfigError:  # it speaks of radii
        raise error from None
    if max(shares) > 1:
        raise error
    return shares


def _sources(runs: Sequence[Run], mix: Sequence[float], device: "torch.device") -> list[Source]:
    """The checkpoints of all `runs` at the shares `mix` of their trainings, each of them once.

    All are loaded at once, so that what is wrong with one is said before the first step.
    """
    from rlx.policies import open_runs

    requested = [(run, _checkpoint(run, share)) for run in runs for share in mix]
    checkpoints = list(dict.fromkeys(requested))
    if len(checkpoints) < len(requested):
        found = f"{len(checkpoints)} different ones found, in equal shares"
        console.facts(mix=f"{len(requested)} checkpoints requested, {found}")
    sources = []
    for run, checkpoint in checkpoints:
        sources.append(Source(run, checkpoint, open_runs([run], checkpoint, device)))
    return sources


def _checkpoint(run: Run, share: float) -> str:
    """The checkpoint nearest to this share of the way from the run's first to its last."""
    names = run.checkpoints.steps()
    if not names and run.checkpoints.has("best"):
        return "best"  # as in the zoo, where nothing else is kept
    if not names:
        raise ConfigError(f"run={run.path}: has no checkpoints left.")
    first = int(names[0])
    last = int(names[-1])
    return min(names, key=lambda name: abs(int(name) - first - share * (last - first)))


def _play(
    source: Source,
    number: int,
    steps: float,
    config: Config,
    writer: Writer,
) -> str:
    """Log at least `steps` transitions of a source; returns a line that describes them.

    The `number` of the source tells its random numbers from those of the others.
    """
    from rlx.data.collecting import play
    from rlx.nn.exploration import exploring
    from rlx.nn.rng import Streams, reset_seeds, seed_tensor

    opened = source.opened
    keys = seed_tensor(opened.seeds, opened.device)
    name = f"collect {config.seed} {number}"
    resets = reset_seeds(keys, config.num_envs, name)
    env = opened.make_env(resets.numel())
    rng = Streams(keys, f"{name} explore")
    choose = exploring(config.epsilon, rng, env.rules)
    before = writer.transitions
    returns = play(
        opened.policy,
        env,
        resets,
        choose,
        least=math.ceil(steps / resets.numel()),
        stack=opened.env.get("stack", 1),
        writer=writer,
    )
    mean = sum(returns) / len(returns)
    checkpoint = source.checkpoint
    if checkpoint != "best":
        checkpoint = f"step {int(checkpoint):,}"
    policy = f"{source.run.path.parent.name}, {checkpoint}"
    transitions = writer.transitions - before
    return f"{policy}: {len(returns)} episodes, {transitions:,} transitions, return {mean:.1f}"
