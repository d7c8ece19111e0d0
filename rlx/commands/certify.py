"""Certify decisions: the share that no observation in a box can change, from below and above."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx.command import command
from rlx.composing import chosen
from rlx.config import Count, build, load_class
from rlx.errors import ConfigError
from rlx.grids import parse_grid
from rlx.runs.run import Run
from rlx.show import console, figures
from rlx.statistics import Estimate, one_of_many
from rlx.sweeps.ranking import Measure, Score
from rlx.victims.subjects import SubjectConfig, Subjects, pin_subjects

if TYPE_CHECKING:
    from rlx.robustness.sweep import Game
    from rlx.threat import Attack


@dataclass(frozen=True)
class Config(SubjectConfig):
    """The keys of certify.yaml."""

    attack: Any
    """What tries to change the decisions that are not certified: a file of conf/attack."""
    effort: Any
    """What `attack=minq` takes its numbers from: a file of conf/effort."""
    device: Any
    """Where it runs: a file of conf/device."""
    figure: figures.Style
    """How large the figure is: a file of conf/figure."""
    checkpoint: str
    """`best`, or the step of a checkpoint."""
    seeds: Any
    """Which of the runs' seeds are certified; null: all."""
    eps: Any
    """Radii of the box in units of `scale`: start:stop:step, numbers, fractions, a list."""
    scale: Any
    """What eps = 1 means: `bounds`, `std`, `reference`, `std:RUN` or one number per component of an
    observation."""
    manifold: str | None
    """`angle`: only what keeps pairs of a cosine and a sine on the circle changes a decision. The
    bounds are those of all of the box still."""
    episodes: Count
    """Clean episodes of each seed whose decisions are looked at."""
    max_boxes: Count
    """Boxes that are bounded for a decision at a radius before it is given up."""
    returns: bool
    """Whether the worst returns of these episodes are searched too, all heads attacked."""
    max_nodes: Count
    """States of an episode that are followed at a radius, in the search for its worst return."""


@dataclass(frozen=True)
class Plan:
    """Whose decisions are certified, and where."""

    game: "Game"
    """The policies, the radii and the episodes; where the scale is `std`, not yet its numbers."""
    attack: "Attack"
    """What tries to change decisions."""
    named_scale: object
    """`config.scale`, or the env's where it is null."""
    scale: object
    """`std`, `bounds` or numbers: what eps = 1 means."""
    subjects: Subjects
    """Whose policies they are."""
    numbers: bool
    """Whether an observation is one of some numbers, all of which can be tried."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with the config, as far as it can be told without playing."""
    _load(build(Config, composed, ""))


def _certified(run: Run, number: int) -> Score:
    """The certified share, in the mean over heads and radii."""
    estimate = Estimate.from_dict(run.summary()["certified"])
    per_seed = estimate.per_seed[:, None]
    return Score.of(estimate, one_of_many(number, *per_seed.shape).means(per_seed))


CERTIFIED = Measure("certified", _certified, of_env=False)


@command("certify", check=check, pin=pin_subjects, measure=CERTIFIED)
def main(composed: DictConfig) -> float:
    """Returns the certified share, in the mean over heads and radii."""
    config = build(Config, composed, "")
    plan = _load(config)
    config = replace(config, scale=plan.named_scale)
    composed.scale = plan.named_scale

    from rlx.robustness.certificates import Certificates, certify, figure
    from rlx.robustness.observations import play_spread
    from rlx.robustness.scale import tell_radii, unit_scale
    from rlx.robustness.worst_returns import bound_returns
    from rlx.threat import box_of

    opened = plan.game.opened
    subjects = plan.subjects
    output = subjects.create(config.outputs, "certify", composed, opened)
    eps = plan.game.eps
    console.facts(
        **subjects.told,
        seeds=f"{len(opened.seeds)} ({console.ranges(opened.seeds)})",
        eps=f"{len(eps)} radii from {eps[0]:g} to {eps[-1]:g}, in units of {config.scale}",
        episodes=f"{config.episodes} clean ones per seed, checkpoint {config.checkpoint}",
        attack=f"{chosen('attack')}, and up to {config.max_boxes:,} boxes per decision and radius",
        device=opened.device,
    )
    console.warn_of_unfinished(subjects.runs)
    with output.writing():
        began = time.monotonic()
        space = box_of(opened.spec.observation_space)
        scale = unit_scale(plan.scale, space, lambda: play_spread(opened, config.episodes)[0])
        game = replace(plan.game, scale=scale)
        env = opened.make_env(1)
        if plan.numbers:
            console.facts(observation="a number: ±eps · scale, rounded down")
        else:
            tell_radii(eps, scale, opened.spec, env, game.angles)
        heads = certify(game, plan.attack, config.max_boxes)
        returns = {}
        if config.returns:
            mode, (attacked, _) = next(iter(plan.attack.modes(opened.policy.heads).items()))
            returns[mode] = bound_returns(game, attacked, config.max_nodes, config.max_boxes)
        certificates = Certificates(eps, heads, returns)
        wall_s = time.monotonic() - began
        files = {"table": output.path / "certify.csv", "figure": output.path / "certify.png"}
        certificates.write_csv(files["table"], opened.seeds)
        if returns:
            files["returns"] = output.path / "returns.csv"
            certificates.write_returns(files["returns"], opened.seeds)
        drawn = figure(certificates.summary(), subjects.name, config.scale, config.figure)
        figures.save(drawn, files["figure"])
        facts = {
            "run": subjects.paths,
            "seeds": opened.seeds,
            "scale": scale,
            "units": env.observation_units,
            "attack": chosen("attack"),
            "max_boxes": config.max_boxes,
            "max_nodes": config.max_nodes if config.returns else None,
            "wall_s": wall_s,
        }
        output.complete(certificates.summary() | facts, certificates.arrays())
    certificates.print()
    console.warn_of_few_seeds(len(opened.seeds))
    console.result(output.path, wall_s, **files)
    return certificates.mean.iqm


def _load(config: Config) -> Plan:
    """The plan of a config; ConfigError where there are no bounds, before anything is written."""
    eps = parse_grid(config.eps, "eps")
    subjects = Subjects.of(config)

    from rlx.evaluation import REPORT
    from rlx.experiment import setup_device
    from rlx.robustness.clean_decisions import check_bounded
    from rlx.robustness.manifold import kept_angles
    from rlx.robustness.scale import named, resolved, unit_scale
    from rlx.robustness.sweep import Game, check_attackable
    from rlx.robustness.worst_returns import why_unbounded
    from rlx.threat import Attack, Threat, box_of

    kind = load_class(config.attack, "attack", Threat)
    if not issubclass(kind, Attack):
        raise ConfigError(
            f"attack={chosen('attack')}: plays whole episodes; rlx certify needs one that moves "
            "each decision by itself, as attack=pgd."
        )
    attack = build(kind, config.attack, "attack")
    opened = subjects.open(config.checkpoint, setup_device(config.device), config.seeds)
    space = box_of(opened.spec.observation_space)
    named_scale = named(config.scale, space, opened.env)
    scale = resolved(named_scale, opened, config.outputs, config.trust)
    game = Game(
        opened,
        eps,
        unit_scale(scale, space, lambda: np.ones(space.shape or ())),
        config.episodes,
        REPORT,
        max_num_envs=len(opened.seeds) * config.episodes,
        angles=kept_angles(config.manifold, opened.make_env(len(opened.seeds))),
        runs=subjects.runs,
        checkpoint=config.checkpoint,
        victims=subjects.victims,
    )
    check_bounded(opened)
    numbers = space is not opened.spec.observation_space
    if not numbers:
        check_attackable(game, attack, attack.modes(opened.policy.heads))
    unbounded = why_unbounded(game) if config.returns else None
    if unbounded is not None:
        raise ConfigError(f"returns: {unbounded}.")
    return Plan(game, attack, named_scale, scale, subjects, numbers)
