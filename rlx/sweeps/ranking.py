"""What a sweep says: its jobs ranked, how sure the order is, and what each of its keys does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlx import statistics
from rlx.errors import ConfigError
from rlx.runs.run import Run
from rlx.statistics import Array, Estimate, Resampled
from rlx.sweeps.sweep import Job, Sweep, swept_keys


@dataclass(frozen=True)
class Score:
    """What a job's run is ranked by; more is better."""

    estimate: Estimate
    """The score of each seed, and the interquartile mean over seeds, as the run has it."""
    seeds: Resampled
    """The scores of the seeds, [S]."""
    iqm: Resampled
    """Their interquartile mean, []."""

    @classmethod
    def of(cls, estimate: Estimate, resampled: Array) -> "Score":
        """That of an estimate whose seeds have the scores `resampled` [resamples, S]."""
        if len(estimate.per_seed) == 1:
            resampled = np.full_like(resampled, np.nan)
        iqm = Resampled(np.array(estimate.iqm), statistics.iqm(resampled, 1))
        return cls(estimate, Resampled(estimate.per_seed, resampled), iqm)


@dataclass(frozen=True)
class Measure:
    """What the jobs of a command are ranked by; more is better."""

    name: str
    """As in "return"."""
    of: Callable[[Run, int], Score]
    """That of a finished run, resampled as that of the job of this number."""
    of_env: bool
    """Whether it may only be compared within one env."""


def _return(run: Run, number: int) -> Score:
    """The greedy return of a training or an evaluation."""
    from rlx.show.training_comparison import episode_returns

    returns = episode_returns(run)
    bootstrap = statistics.one_of_many(number, *returns.shape)
    return Score.of(Estimate.from_dict(run.summary()["return"]), bootstrap.means(returns))


RETURN = Measure("return", _return, of_env=True)


@dataclass(frozen=True)
class Effect:
    """What one value of a key does."""

    key: str
    value: str
    jobs: int
    """The number of finished jobs that have the value."""
    mean: Resampled
    """The mean over these jobs of their interquartile means, []."""


@dataclass(frozen=True)
class Ranking:
    """The finished jobs of a sweep that can be compared: of one env, where they are trainings."""

    env: str
    """The settings of the env that these jobs share and others have not; empty: there are none."""
    what: str
    """The name of the score."""
    jobs: list[Job]
    """The best first."""
    scores: list[Score]
    """The scores of the jobs."""
    keys: list[str]
    """The keys that tell these jobs from each other, those of the env left out."""

    @cached_property
    def lead(self) -> Resampled | None:
        """The probability that a seed of the first job is better than one of the second, [].

        None where fewer than two jobs have a score: an area is NaN without one.
        """
        scored = [score for score in self.scores if not np.isnan(score.estimate.iqm)]
        if len(scored) < 2:
            return None
        first, second, *_ = scored
        return statistics.probability_of_improvement(first.seeds, second.seeds)

    @cached_property
    def effects(self) -> list[Effect]:
        """The marginal mean of each value of each key that has several, some in common."""
        effects = []
        for key in self.keys:
            values = [job.settings.get(key, "") for job in self.jobs]
            distinct = sorted(set(values), key=in_order)
            if len(distinct) < 2 or len(distinct) == len(values) > 3:
                continue
            for value in distinct:
                pairs = zip(values, self.scores, strict=True)
                found = [score.iqm for other, score in pairs if other == value]
                # An area is NaN where an agent is no better than random play.
                scores = [score for score in found if np.isfinite(score.value)] or found
                mean = np.array([score.value for score in scores]).mean(keepdims=True)[0]
                resampled = np.mean([score.resampled for score in scores], axis=0)
                effects.append(Effect(key, value, len(scores), Resampled(mean, resampled)))
        return effects


def rankings(sweep: Sweep, measure: Measure) -> list[Ranking]:
    """The rankings of a sweep's finished jobs: one, or one for each env.

    Jobs whose result cannot be read are in none.
    """
    jobs = sweep.jobs()
    keys = swept_keys(jobs)
    env_keys = [key for key in keys if measure.of_env and _is_of_env(key)]
    groups: dict[str, list[tuple[Job, Score]]] = {}
    for job in jobs:
        score = _measured(measure, job)
        if score is not None:
            env = " ".join(f"{key}={job.settings.get(key, '')}" for key in env_keys)
            groups.setdefault(env, []).append((job, score))
    rankings = []
    for env, pairs in groups.items():
        finished = [job for job, _ in pairs]
        scores = [score for _, score in pairs]
        values = np.array([score.estimate.iqm for score in scores])
        order = np.argsort(-values, kind="stable").tolist()  # NaN comes last
        rankings.append(
            Ranking(
                env,
                measure.name,
                [finished[i] for i in order],
                [scores[i] for i in order],
                _told_apart(finished, [key for key in keys if key not in env_keys]),
            )
        )
    return rankings


def _told_apart(jobs: Sequence[Job], keys: list[str]) -> list[str]:
    """Those of the `keys` that tell these jobs from each other; all where that does none."""
    own = set(swept_keys(jobs))
    return [key for key in keys if key in own] or keys


def _measured(measure: Measure, job: Job) -> Score | None:
    """What a finished job is ranked by; None where it is not, or its result does not say it."""
    if not job.finished or job.run is None:
        return None
    try:
        return measure.of(job.run, job.number)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError):
        return None


def in_order(text: str) -> tuple[int, float, str]:
    """What values of a key are sorted by: numbers by size, then words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _is_of_env(key: str) -> bool:
    """Whether a key belongs to the env, or says on which episodes or seeds it is judged."""
    return key.split(".")[0] in ("env", "eval_env", "run", "stage")
