"""How a training ends: the kept weights' last evaluation, its summary, figure and table."""

from typing import TYPE_CHECKING, Any

import torch

from rlx import statistics
from rlx.env import time_limit_words
from rlx.evaluation import REPORT, evaluate
from rlx.rollout import Episodes
from rlx.runs.listing import defence_of
from rlx.show import console, figures

if TYPE_CHECKING:
    from rlx.training.loop import Training


def finish(training: "Training", wall_s: float, episodes: Episodes | None = None) -> float:
    """Evaluate the kept weights of a training, save its result and print it.

    `wall_s`: seconds that the run has taken; `episodes`: that evaluation, if it is done. Returns
    the interquartile mean of the last evaluation while it learnt.
    """
    if episodes is None:
        episodes = final_episodes(training)
    returns = episodes.returns.cpu().numpy()
    estimate = statistics.estimate(returns)
    run = training.output
    figure = run.path / "learning.png"
    steps, seeds, values = run.curve()
    if steps:
        drawn = figures.learning(
            steps, seeds, values, training.name, training.unit, training.threshold
        )
        figures.save(drawn, figure)
    summary = _summary(training, episodes, estimate, wall_s)
    run.complete(summary, {"returns": returns})
    _table(training, summary, estimate)
    _warnings(training)
    saving = f"{training.saving_s:.1f} s for checkpoints"
    console.facts(saving=f"{saving}, {training.saving_s / wall_s:.1%} of the time")
    shares = console.shares_text(training.spent())
    if shares:
        console.facts(spent=f"{shares} of the time of vector steps")
    training.tracking.end()
    if training.is_part:
        console.facts(took=console.duration(wall_s))
    else:
        console.result(run.path, figure=figure, wall_s=wall_s)
    # A seed that stopped before its first evaluation has the value by which it stopped.
    last = torch.where(training.last.isnan(), training.kept.value, training.last)
    return float(statistics.iqm(last.numpy()))


def final_episodes(training: "Training") -> Episodes:
    """The episodes by which the kept weights of a training are judged in the end."""
    return evaluate(
        training.kept.policy,
        training.make_env,
        len(training.seeds),
        training.config.final_episodes,
        REPORT,
        training.device,
    )


def _summary(
    training: "Training", episodes: Episodes, estimate: statistics.Estimate, wall_s: float
) -> dict[str, Any]:
    """The contents of summary.json."""
    steps = training.step
    steps_of_all = steps * len(training.seeds)
    if training.stop is not None:
        # Each seed learnt until its own stop.
        steps = int(training.kept.step.max())
        steps_of_all = int(training.kept.step.sum())
    return {
        "seeds": training.seeds,
        "steps": steps,
        "wall_s": wall_s,
        "steps_per_s": steps_of_all / wall_s,
        "checkpoints_s": training.saving_s,
        "return": estimate.as_dict(),
        "reward_threshold": training.threshold,
        "observations": type(training.spec.observation_space).__name__,
        **{statistic.key: statistic.of(episodes) for statistic in statistics.STATISTICS},
        "kept": training.kept.facts(),
    }


def _table(training: "Training", summary: dict[str, Any], estimate: statistics.Estimate) -> None:
    """Print a line for each seed."""
    kept = training.kept
    columns: dict[str, Any] = {"return": estimate.per_seed}
    for statistic in statistics.STATISTICS:
        columns[statistic.column] = statistic.texts(summary[statistic.key])
    columns["kept at step"] = [f"{step:,}" for step in kept.step.tolist()]
    when = "best evaluation"
    if training.config.keep == "attacked":
        when += " (the lower return with and without an attack)"
    if training.stop is not None:
        when = "stop"
        columns["stop rule"] = ["met" if solved else "not met" for solved in kept.solved.tolist()]
    elif training.keeps_newest:
        when = "last evaluation"
    count = training.config.final_episodes
    played = f"Greedy return over {count:,} new episode{'s' if count > 1 else ''}"
    title = f"{played}, weights kept at each seed's {when}"
    console.per_seed(title, training.seeds, columns, estimate)
    defence = defence_of(training.config.agent)
    if defence:
        console.facts(defence=f"{defence}; the returns above are without an attack")
    console.time_limit(time_limit_words(training.make_env(1)))


def _warnings(training: "Training") -> None:
    """Print what the run met that its settings do not fit."""
    for warning in training.agent.warnings():
        console.warning(warning)
    if not training.log.metrics:
        steps = f"{training.step:,} {training.unit}"
        console.facts(
            warning=f"nothing was learnt within {steps}; "
            "see agent.learning_starts or agent.rollout_steps"
        )
