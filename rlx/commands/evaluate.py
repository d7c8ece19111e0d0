"""Play a trained run's greedy policy on new episodes."""

import time
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import Count, build
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of evaluate.yaml."""

    device: Any
    run: Any
    checkpoint: str
    seeds: Any
    episodes: Count
    video: bool
    outputs: str
    trust: bool


@command("evaluate")
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean over seeds."""
    config = build(Config, composed, "")
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import experiment
    from rlx.evaluation import REPORT, evaluate
    from rlx.policies import env_age, load_policies
    from rlx.robustness.sweep import Visits
    from rlx.show import figures, stats

    device = experiment.setup_device(config.device)
    policy, _, seeds = load_policies(runs, config.checkpoint, device, config.seeds)
    env = experiment.evaluated_env(experiment.trained(runs[0]))
    clock = env_age(runs, config.checkpoint)
    if config.video:
        from rlx.show import video

        filmed = video.camera(env, device, clock)
    output = Run.create(config.outputs, "evaluate", runs[0].path.parent.name, composed)
    report.start(
        run=", ".join(str(run.path) for run in runs), seeds=f"{len(seeds)} ({report.ranges(seeds)})",
        episodes=f"{config.episodes} per seed, checkpoint {config.checkpoint}", device=device,
    )  # fmt: skip
    report.unfinished(runs)
    with output.writing():
        began = time.monotonic()
        grid = experiment.make_env(env, 1, "cpu").grid
        visits = Visits(grid[0] * grid[1], policy.heads[-1], device) if grid else None
        chooser = visits.chooser if visits else None
        episodes = evaluate(
            policy,
            lambda n: experiment.make_env(env, n, device, clock),
            len(seeds),
            config.episodes,
            REPORT,
            device,
            chooser,
        )
        wall_s = time.monotonic() - began
        returns = episodes.returns.cpu().numpy()
        estimate = stats.estimate(returns)
        steps = int(episodes.lengths.sum())
        stuck = episodes.truncated.double().mean(1)
        files = {}
        if visits and grid:
            files["figure"] = output.path / "visits.png"
            title = f"{runs[0].path.parent.name}: steps spent in each cell, per greedy episode"
            figures.grid(
                visits.count.cpu().numpy().reshape(grid) / episodes.returns.numel(),
                files["figure"],
                title,
            )
        if config.video:
            files["video"] = output.path / "episode.gif"
            video.film(policy, filmed, 0, REPORT, files["video"])
        summary = {
            "run": [str(run.path) for run in runs],
            "seeds": seeds,
            "steps": steps,
            "wall_s": wall_s,
        }
        summary |= {
            "steps_per_s": steps / wall_s,
            "return": estimate.as_dict(),
            "truncation_rate": stuck,
        }
        output.complete(summary, {"returns": returns})
    columns = {
        "return": estimate.per_seed,
        "at the time limit": [f"{x:.0%}" for x in stuck.tolist()],
    }
    report.per_seed(f"Greedy return over {config.episodes} episodes", seeds, columns, estimate)
    report.end(output.path, wall_s, **files)
    return estimate.iqm
