"""Play a trained run's greedy policy on new episodes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import Count, build
from rlx.show import console, figures
from rlx.sweeps.ranking import RETURN
from rlx.victims.subjects import SubjectConfig, Subjects, pin_subjects

if TYPE_CHECKING:
    from rlx.policies import Opened
    from rlx.show.video import Scene


@dataclass(frozen=True)
class Config(SubjectConfig):
    """The keys of evaluate.yaml."""

    device: Any
    """Where it runs: a file of conf/device."""
    figure: figures.Style
    """How large the figure is: a file of conf/figure."""
    checkpoint: str
    """`best`, or the step of a checkpoint."""
    seeds: Any
    """Which of the runs' seeds are played; null: all."""
    episodes: Count
    """Episodes of each seed."""
    video: bool
    """Whether to film episodes: video.mp4, or video.gif without PyAV."""
    video_seeds: Any
    """Which seeds are filmed, as `seeds`; null: the first."""
    video_episodes: Any
    """Which of the episodes: a count, a range, or a list of numbers from 0 on."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with the config, as far as it can be told without playing."""
    _load(build(Config, composed, ""))


def _load(config: Config) -> "tuple[Subjects, Opened, Sequence[Scene]]":
    """Whose policies are played, these, and what shall be filmed."""
    subjects = Subjects.of(config)

    from rlx import experiment
    from rlx.show import video

    device = experiment.setup_device(config.device)
    opened = subjects.open(config.checkpoint, device, config.seeds)
    return subjects, opened, video.scenes(config, opened.seeds)


@command("evaluate", check=check, pin=pin_subjects, measure=RETURN)
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean over seeds."""
    config = build(Config, composed, "")
    subjects, opened, scenes = _load(config)

    from rlx import experiment, statistics
    from rlx.env import time_limit_words
    from rlx.evaluation import REPORT, evaluate
    from rlx.robustness.observations import VisitCount
    from rlx.show import video

    device = opened.device
    policy = opened.policy
    seeds = opened.seeds
    if scenes:
        drawn = video.drawing(opened.env)
        camera = video.Camera(experiment.make_env(drawn, 1, device, opened.age))
    output = subjects.create(config.outputs, "evaluate", composed, opened)
    console.facts(
        **subjects.told,
        seeds=f"{len(seeds)} ({console.ranges(seeds)})",
        episodes=f"{config.episodes} per seed, checkpoint {config.checkpoint}",
        device=device,
    )
    console.warn_of_unfinished(subjects.runs)
    files = {}
    with output.writing():
        began = time.monotonic()
        grid = opened.make_env(1).grid
        make_choose = None
        if grid is not None:
            rows, columns = grid
            visits = VisitCount(rows * columns, policy.heads[-1], device)
            make_choose = visits.make_choose
        episodes = evaluate(
            policy, opened.make_env, len(seeds), config.episodes, REPORT, device, make_choose
        )
        wall_s = time.monotonic() - began
        if grid is not None:
            files["figure"] = output.path / "visits.png"
            per_episode = visits.count.cpu().numpy().reshape(grid) / episodes.returns.numel()
            title = f"{subjects.name}: steps spent in each cell, per greedy episode"
            figures.save(figures.grid(per_episode, title, config.figure), files["figure"])
        if scenes:
            films = [
                camera.greedy(policy, scene, REPORT + scene.episode, subjects.name)
                for scene in scenes
            ]
            files["video"] = video.save(camera, films, output.path)
        returns = episodes.returns.cpu().numpy()
        estimate = statistics.estimate(returns)
        steps = int(episodes.lengths.sum())
        values = {statistic.key: statistic.of(episodes) for statistic in statistics.STATISTICS}
        summary = {
            "run": subjects.paths,
            "seeds": seeds,
            "steps": steps,
            "wall_s": wall_s,
            "steps_per_s": steps / wall_s,
            "return": estimate.as_dict(),
        }
        output.complete(summary | values, {"returns": returns})
    table: dict[str, Any] = {"return": estimate.per_seed}
    for statistic in statistics.STATISTICS:
        table[statistic.column] = statistic.texts(values[statistic.key])
    console.per_seed(f"Greedy return over {config.episodes} episodes", seeds, table, estimate)
    console.time_limit(time_limit_words(opened.make_env(1)))
    console.result(output.path, wall_s, **files)
    return estimate.iqm
