"""Play policies of early and late checkpoints and log the episodes: a data set to learn from."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import Count, Share, build
from rlx.errors import ConfigError
from rlx.grids import parse_grid
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import console

if TYPE_CHECKING:
    import torch

    from rlx.agent import Policy
    from rlx.data.writer import Writer


@dataclass(frozen=True)
class Config:
    """The keys of collect.yaml."""

    device: Any
    """Where it runs: a file of conf/device."""
    run: Any
    """Run directories, or folders with runs; null: the newest training."""
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
    outputs: str
    """Folder of all runs."""
    trust: bool
    """Import what the run's config names, though somebody else made the run."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that plays."""

    run: Run
    checkpoint: str
    policy: "Policy"
    """Of all seeds of the run."""
    seeds: Sequence[int]


@command("collect")
def main(composed: DictConfig) -> None:
    """Writes the folder `out` and prints its card."""
    config = build(Config, composed, "")
    mix = _parse_mix(config.mix)
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import experiment
    from rlx.data.writer import Writer

    env = experiment.eval_env_config(experiment.training_config(runs[0]))
    for run in runs:
        if not experiment.same_env(run.config, runs[0].config):
            raise ConfigError(f"run={run.path}: its env differs from that of {runs[0].path}.")
    device = experiment.setup_device(config.device)
    began = time.monotonic()
    stack = env.get("stack", 1)
    with Writer(config.out) as writer:
        sources = _sources(runs, mix, device)
        texts = []
        for number, source in enumerate(sources):
            steps = config.steps / len(sources)
            text = _play(source, number, steps, env, config, device, writer)
            console.facts(source=text)
            texts.append(text)
        frames_env = {key: value for key, value in env.items() if key != "stack"}
        data = writer.close(frames_env, stack, texts)
    console.facts(**data.card(), took=console.duration(time.monotonic() - began))
    console.result(writer.out)


def _parse_mix(mix: Any) -> list[float]:
    """Numbers from 0 to 1; ConfigError where they are others."""
    wrong = ConfigError(
        f"mix={mix}: expected numbers from 0 (a run's first checkpoint) to 1 (its last), "
        "as in 0:1:0.25 or [0,1]."
    )
    try:
        shares = parse_grid(mix, "mix")
    except ConfigError:  # it speaks of radii
        raise wrong from None
    if max(shares) > 1:
        raise wrong
    return shares


def _sources(runs: Sequence[Run], mix: Sequence[float], device: "torch.device") -> list[Source]:
    """The checkpoints of all `runs` at the shares `mix` of their trainings, each of them once.

    All are loaded at once, so that what is wrong with one is said before the first step.
    """
    from rlx.policies import load_policies

    wanted = [(run, _checkpoint(run, share)) for run in runs for share in mix]
    checkpoints = list(dict.fromkeys(wanted))
    if len(checkpoints) < len(wanted):
        text = f"{len(wanted)} places, but {len(checkpoints)} checkpoints, in equal shares"
        console.facts(mix=text)
    sources = []
    for run, checkpoint in checkpoints:
        policy, _, seeds = load_policies([run], checkpoint, device)
        sources.append(Source(run, checkpoint, policy, seeds))
    return sources


def _checkpoint(run: Run, share: float) -> str:
    """The checkpoint nearest to this share of the way from the run's first to its last."""
    names = run.checkpoints.steps()
    if not names:
        raise ConfigError(f"run={run.path}: has no checkpoints left.")
    first = int(names[0])
    last = int(names[-1])
    return min(names, key=lambda name: abs(int(name) - first - share * (last - first)))


def _play(
    source: Source,
    number: int,
    steps: float,
    env: dict[str, Any],
    config: Config,
    device: "torch.device",
    writer: "Writer",
) -> str:
    """Log at least `steps` transitions of a source; returns what is said of it.

    The `number` of the source tells its random numbers from those of the others.
    """
    from rlx import experiment
    from rlx.data.collecting import play
    from rlx.nn.exploration import exploring
    from rlx.nn.rng import Streams, reset_seeds, seed_tensor
    from rlx.policies import env_age

    keys = seed_tensor(source.seeds, device)
    name = f"collect {config.seed} {number}"
    resets = reset_seeds(keys, config.num_envs, name)
    age = env_age([source.run], source.checkpoint)
    envs = experiment.make_env(env, resets.numel(), device, age)
    rng = Streams(keys, f"{name} explore")
    choose = exploring(config.epsilon, rng, envs.rules)
    before = writer.transitions
    returns = play(
        source.policy,
        envs,
        resets,
        choose,
        least=math.ceil(steps / resets.numel()),
        stack=env.get("stack", 1),
        writer=writer,
    )
    mean = sum(returns) / len(returns)
    what = f"{source.run.path.parent.name}, step {int(source.checkpoint):,}"
    count = f"{len(returns)} episodes, {writer.transitions - before:,} transitions"
    return f"{what}: {count}, return {mean:.1f}"
