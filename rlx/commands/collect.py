"""Play policies of early and late checkpoints and log the episodes: a data set for offline agents."""

import math
import time
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import Count, Share, build, parse_grid
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of collect.yaml."""

    device: Any
    run: Any
    out: str
    steps: Count
    mix: Any
    epsilon: Share
    num_envs: Count
    seed: int
    outputs: str
    trust: bool


@command("collect")
def main(composed: DictConfig) -> None:
    """Writes the folder `out` and prints its card."""
    config = build(Config, composed, "")
    wrong = ConfigError(
        f"mix={config.mix}: expected numbers from 0 (a run's first checkpoint) to 1 (its last), as in 0:1:0.25 or [0,1]."
    )
    try:
        mix = parse_grid(config.mix, "mix")
    except ConfigError:  # it speaks of radii
        raise wrong from None
    if max(mix) > 1:
        raise wrong
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import experiment
    from rlx.data.writer import Writer

    env = experiment.evaluated_env(experiment.trained(runs[0]))
    if other := next(
        (run for run in runs if not experiment.same_env(run.config, runs[0].config)), None
    ):
        raise ConfigError(f"run={other.path}: its env differs from that of {runs[0].path}.")
    device, began = experiment.setup_device(config.device), time.monotonic()
    with Writer(config.out) as writer:
        data = _collected(config, runs, mix, env, device, writer)
    report.start(**data.card(), took=report.duration(time.monotonic() - began))
    report.end(writer.out)


def _collected(
    config: Config,
    runs: list[Run],
    mix: list[float],
    env: dict[str, Any],
    device: Any,
    writer: Any,
) -> Any:
    """The data set of `runs`, at the places `mix` between their first and last checkpoints."""
    from rlx import experiment
    from rlx.data.collecting import play
    from rlx.evaluation import exploring
    from rlx.nn.rng import Streams, reset_seeds, seed_tensor
    from rlx.policies import env_age, load_policies

    stack = env.get("stack", 1)
    sources = list(dict.fromkeys((run, _checkpoint(run, place)) for run in runs for place in mix))
    if len(sources) < len(runs) * len(mix):
        places = len(runs) * len(mix)
        report.start(mix=f"{places} places, but {len(sources)} checkpoints, in equal shares")
    loaded = [
        load_policies([run], checkpoint, device) for run, checkpoint in sources
    ]  # errors before the first step
    texts = []
    for number, ((run, checkpoint), (policy, _, seeds)) in enumerate(
        zip(sources, loaded, strict=True)
    ):
        keys = seed_tensor(seeds, device)
        name = f"collect {config.seed} {number}"
        rng = Streams(keys, f"{name} explore")
        clock = env_age([run], checkpoint)
        envs = experiment.make_env(env, len(seeds) * config.num_envs, device, clock)
        least = math.ceil(config.steps / len(sources) / envs.num_envs)
        resets = reset_seeds(keys, config.num_envs, name)
        before = writer.transitions
        choose = exploring(config.epsilon, rng, envs.rules)
        returns = play(policy, envs, resets, choose, least=least, stack=stack, writer=writer)
        made, mean = writer.transitions - before, sum(returns) / len(returns)
        what = f"{run.path.parent.name}, step {int(checkpoint):,}"
        texts.append(f"{what}: {len(returns)} episodes, {made:,} transitions, return {mean:.1f}")
        report.start(source=texts[-1])
    return writer.close({key: value for key, value in env.items() if key != "stack"}, stack, texts)


def _checkpoint(run: Run, place: float) -> str:
    """The checkpoint nearest to this place between the run's first and its last."""
    names = run.checkpoints.steps()
    if not names:
        raise ConfigError(f"run={run.path}: has no checkpoints left.")
    first, last = int(names[0]), int(names[-1])
    return min(names, key=lambda name: abs(int(name) - first - place * (last - first)))
