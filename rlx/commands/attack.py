"""Attack trained policies: seeds × radii × heads × episodes in one batch."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx.command import check_protocol, command
from rlx.composing import chosen
from rlx.config import Count, NonNegative, build, choice, load_class
from rlx.errors import ConfigError
from rlx.grids import parse_grid
from rlx.runs.run import Run
from rlx.show import attack_tables, console, figures
from rlx.show.attack_run import AttackRun
from rlx.statistics import Bootstrap, Estimate, Robustness, one_of_many
from rlx.sweeps.ranking import Measure, Score
from rlx.trackers.tracker import Tracker
from rlx.trackers.tracking import Tracking, make_trackers
from rlx.victims.subjects import SubjectConfig, Subjects, pin_subjects

if TYPE_CHECKING:
    import gymnasium

    from rlx.env import TensorEnv
    from rlx.policies import Opened
    from rlx.robustness.attribution import Attribution
    from rlx.robustness.certificates import Certificates
    from rlx.robustness.study import Study
    from rlx.robustness.sweep import Game, Played
    from rlx.show.video import Camera, Film, Scene
    from rlx.threat import Attack, Mode, Threat


@dataclass(frozen=True)
class Config(SubjectConfig):
    """The keys of attack.yaml."""

    attack: Any
    """The attack: a file of conf/attack, with `_target_` and its settings."""
    effort: Any
    """How hard adversaries try: a file of conf/effort, whose values the attack's settings take."""
    device: Any
    """Where it runs: a file of conf/device."""
    figure: figures.Style
    """How large the figure is: a file of conf/figure."""
    protocol: str | None
    """`corrected`, or `source` for the settings of the source study."""
    checkpoint: str
    """`best`, or the step of a checkpoint."""
    seeds: Any
    """Which of the runs' seeds are attacked; null: all."""
    eps: Any
    """Radii of the box in units of `scale`: start:stop:step, numbers, fractions, a list."""
    scale: Any
    """What eps = 1 means: `bounds`, `std`, `reference`, `std:RUN` or one number per component of an
    observation."""
    manifold: str | None
    """`angle`: pairs of a cosine and a sine stay on the circle; null: all of the box."""
    modes: Any
    """Which heads are attacked together, names of the attack's modes; null: all modes."""
    episodes: Count
    """Episodes of each seed, radius and mode."""
    attribution: NonNegative | None
    """Radius at which the lost return is shared out among heads and components; null: nowhere."""
    max_num_envs: Count
    """Env copies that are played at once."""
    certify: bool
    """Whether it is also proved what no attack can do: decisions and, where the env can be copied,
    returns."""
    max_boxes: Count
    """Boxes that are bounded for a decision at a radius, where it is proved."""
    max_nodes: Count
    """States of an episode that are followed at a radius, where it is proved."""
    video: bool
    """Whether to film episodes clean and attacked: video.mp4, or video.gif without PyAV."""
    video_seeds: Any
    """Which seeds are filmed, as `seeds`; null: the first."""
    video_episodes: Any
    """Which of the episodes: a count, a range, or a list of numbers from 0 on."""
    video_eps: NonNegative | None
    """The radius at which they are attacked, one of `eps`; null: the largest."""
    tracker: Any = None
    """The trackers that are told of the study: files of conf/tracker, with their keys."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with an attack's config."""
    _load(build(Config, composed, ""))


def _area(run: Run, number: int) -> Score:
    """The area under the robustness curve, all heads attacked: 1 where nothing is lost."""
    attack = AttackRun.of(run)
    returns = attack.returns(attack.strongest_mode or attack.modes[0])
    seeds, _, episodes = returns.shape

    def robustness(bootstrap: Bootstrap) -> Robustness:
        eps = np.array(attack.summary["eps"])
        random, clean = attack.summary["random"], attack.summary["clean"]["iqm"]
        return Robustness.of(returns, eps, random, clean, bootstrap)

    own = robustness(Bootstrap(seeds, episodes))
    low, high = own.area.ci95
    estimate = Estimate(own.seed_areas.value, float(own.area.value), (float(low), float(high)))
    beside_others = robustness(one_of_many(number, seeds, episodes))
    return Score(estimate, beside_others.seed_areas, beside_others.area)


AREA = Measure("area", _area, of_env=False)


@command("attack", check=check, pin=pin_subjects, measure=AREA)
def main(composed: DictConfig) -> float:
    """Returns the mean area under the robustness curves."""
    _, study = _attacked(composed)
    return float(np.mean([curve.area for curve in study.curves.values()]))


def attack(composed: DictConfig) -> Run:
    """The finished study of a composed config."""
    output, _ = _attacked(composed)
    return output


@dataclass(frozen=True)
class Plan:
    """What a study plays: which policies, attacked how."""

    attack: "Threat"
    modes: "dict[str, Mode]"
    """The modes of the attack that are played, by name."""
    game: "Game"
    """The policies, the radii and the episodes; where the scale is `std`, not yet its numbers."""
    named_scale: object
    """`config.scale`, or the env's where it is null."""
    scale: object
    """`bounds`, `std` or numbers: what eps = 1 means."""
    env: "TensorEnv"
    """Copies of the env, as many as seeds."""
    components: Sequence[str]
    """The components of an observation to which harm is attributed; empty: it is not."""
    trackers: Mapping[str, Tracker]
    """The trackers that are told of the study, by name."""
    scenes: "Sequence[Scene]"
    """The episodes that are filmed."""
    camera: "Camera | None"
    """What films them; None: nothing does."""

    subjects: Subjects
    """Whose policies are attacked."""

    @property
    def opened(self) -> "Opened":
        """The policies, and their env."""
        return self.game.opened


@dataclass(frozen=True)
class Result:
    """What was played, and what it says."""

    study: "Study"
    played: "Mapping[str, Played]"
    """The episodes under attack, by mode."""
    scale: np.ndarray
    """What eps = 1 means for each component of an observation, [*O]."""
    attribution: "Attribution | None"
    """Who carries the harm; None: nobody asked."""
    certificates: "Certificates | None"
    """What no attack can do; None: nobody asked."""
    films: "Sequence[Film]"
    """Clean and attacked episodes in turn; empty: nobody asked."""
    wall_s: float
    """Seconds that playing took."""


def _attacked(composed: DictConfig) -> "tuple[Run, Study]":
    """Play, draw and print a study; its run directory, and the study."""
    from rlx.env import time_limit_words

    config = build(Config, composed, "")
    plan = _load(config)
    config = replace(config, scale=plan.named_scale)
    composed.scale = plan.named_scale
    output = plan.subjects.create(config.outputs, "attack", composed, plan.opened)
    with Tracking(output, plan.trackers) as tracking, output.writing():
        _header(config, plan)
        tracking.begin()
        result = _play(config, plan)
        files = _save(output, config, plan, result)
    attack_tables.print_study(result.study, len(plan.opened.seeds), time_limit_words(plan.env))
    if result.attribution is not None:
        console.table(*attack_tables.attribution(result.attribution))
    if result.certificates is not None:
        result.certificates.print()
    console.table(*attack_tables.costs(plan.game.costs.as_dict()))
    console.result(output.path, result.wall_s, **files)
    return output, result.study


def _load(config: Config) -> Plan:
    """The plan of a config; ConfigError where it cannot be played, before anything is written."""
    check_protocol(config.protocol)
    trackers = make_trackers(config.tracker)
    eps = parse_grid(config.eps, "eps")
    subjects = Subjects.of(config)

    from rlx.attacks.auto import Auto
    from rlx.evaluation import REPORT
    from rlx.experiment import make_env
    from rlx.robustness.attribution import component_names
    from rlx.robustness.clean_decisions import check_bounded
    from rlx.robustness.manifold import kept_angles
    from rlx.robustness.scale import named, resolved, unit_scale
    from rlx.robustness.sweep import Game, check_attackable
    from rlx.show import video
    from rlx.threat import Attack, Threat

    kind = load_class(config.attack, "attack", Threat)
    attack = build(kind, config.attack, "attack")
    device = subjects.attacking_device(config.device)
    opened = subjects.open(config.checkpoint, device, config.seeds)
    space = opened.spec.observation_space
    modes = chosen_modes(attack, opened.policy.heads, config.modes)
    env = opened.make_env(len(opened.seeds))
    angles = kept_angles(config.manifold, env)
    named_scale = named(config.scale, space, opened.env)
    scale = resolved(named_scale, opened, config.outputs, config.trust)
    scenes = video.scenes(config, opened.seeds)
    game = Game(
        opened,
        eps,
        unit_scale(scale, space, lambda: np.ones(space.shape or ())),
        config.episodes,
        REPORT,
        config.max_num_envs,
        angles=angles,
        runs=subjects.runs,
        checkpoint=config.checkpoint,
        victims=subjects.victims,
        filmed=[(scene.row, scene.episode) for scene in scenes],
    )
    check_attackable(game, attack, modes)
    if config.certify:
        check_bounded(opened)
    components: list[str] = []
    if config.attribution is not None:
        if not isinstance(attack, Attack | Auto):
            raise ConfigError(
                f"attribution: attack={chosen('attack')} plays whole episodes; "
                "use attack=auto, minq or pgd."
            )
        components = component_names(game, env.observation_units)
    camera = None
    if scenes:
        _filmed_radius(config, eps)
        camera = video.Camera(make_env(video.drawing(opened.env), 1, device, opened.age))
    return Plan(
        attack, modes, game, named_scale, scale, env, components, trackers, scenes, camera, subjects
    )


def _play(config: Config, plan: Plan) -> Result:
    """Play the policies without an attack, at random, and in every mode at every radius."""
    from rlx.evaluation import REPORT, evaluate, evaluate_random
    from rlx.robustness.clean_states import look
    from rlx.robustness.observations import ObservationSpread
    from rlx.robustness.planner import floor
    from rlx.robustness.scale import tell_radii, unit_scale
    from rlx.robustness.study import Study
    from rlx.robustness.sweep import sweep

    opened = plan.opened
    space = opened.spec.observation_space
    began = time.monotonic()
    spread = ObservationSpread(opened.policy.heads[-1])
    costs = plan.game.costs
    with costs.of("clean play"):
        clean = evaluate(
            opened.policy,
            opened.make_env,
            len(opened.seeds),
            config.episodes,
            REPORT,
            opened.device,
            spread.make_choose,
        )
    random = evaluate_random(opened.policy, opened.make_env, config.episodes, opened.device)
    game = replace(plan.game, scale=unit_scale(plan.scale, space, spread.std))
    tell_radii(game.eps, game.scale, opened.spec, plan.env, game.angles)
    _warn_of_small_radii(game.eps, game.scale, space)
    with costs.of("clean states"):
        states = look(game)
    with costs.of(chosen("attack")):
        played = sweep(game, plan.attack, plan.modes)
    attribution = _attributed(config, plan, game)
    certificates = _certified(config, plan, game, played)
    films = _filmed(config, plan, game, played)
    wall_s = time.monotonic() - began
    study = Study.of(
        chosen("attack"),
        game.eps,
        clean.returns.cpu().numpy(),
        float(random.returns.mean()),
        played,
        states,
        floor(game),
    )
    return Result(study, played, game.scale, attribution, certificates, films, wall_s)


def _single(plan: Plan, game: "Game", radius: float) -> "tuple[str, Attack]":
    """The attack, and its name; of a study of many the one that is strongest at a radius."""
    from rlx.attacks.auto import Auto
    from rlx.threat import Attack

    name = chosen("attack")
    attack = plan.attack
    if isinstance(attack, Auto):
        name, attack = attack.strongest_single(replace(game, eps=[radius]), plan.modes)
    assert isinstance(attack, Attack)  # others were refused
    return name, attack


def _filmed_radius(config: Config, eps: Sequence[float]) -> int:
    """The number of the radius that is filmed; ConfigError where it is none of `eps`."""
    radius = max(eps) if config.video_eps is None else config.video_eps
    if radius not in eps:
        raise ConfigError(
            f"video_eps={radius:g}: is not played; of {', '.join(f'{one:g}' for one in eps)}."
        )
    return list(eps).index(radius)


def _filmed(
    config: Config, plan: Plan, game: "Game", played: "Mapping[str, Played]"
) -> "list[Film]":
    """The scenes clean and as they were played, in the first mode; none where nothing films."""
    if plan.camera is None:
        return []
    from rlx.robustness.filming import films

    mode = next(iter(plan.modes))
    number = _filmed_radius(config, game.eps)
    return films(game, played[mode], chosen("attack"), number, plan.scenes, plan.camera)


def _attributed(config: Config, plan: Plan, game: "Game") -> "Attribution | None":
    """Who carries the harm at the radius `attribution`; None where that is null."""
    if config.attribution is None:
        return None
    from rlx.robustness.attribution import attribute

    name, attack = _single(plan, game, config.attribution)
    with game.costs.of("attribution"):
        return attribute(game, attack, name, config.attribution, plan.components)


def _certified(
    config: Config, plan: Plan, game: "Game", played: "Mapping[str, Played]"
) -> "Certificates | None":
    """What no attack can do at the radii of `game`; None where nobody asked."""
    if not config.certify:
        return None
    from rlx.attacks.minq import MinQ
    from rlx.robustness.certificates import Certificates, certify
    from rlx.robustness.worst_returns import bound_returns, why_unbounded
    from rlx.threat import Attack

    # An adversary moves no decision by itself; one step finds most of what can be moved.
    mover = plan.attack if isinstance(plan.attack, Attack) else MinQ(None, 1, 0, None)
    returns = {}
    unbounded = why_unbounded(game)
    if unbounded is not None:
        console.facts(certified=f"decisions alone: {unbounded}")
    with game.costs.of("certificates"):
        heads = certify(game, mover, config.max_boxes)
        for name, mode in plan.modes.items() if unbounded is None else ():
            known = played[name].returns
            found = bound_returns(game, mode.heads, config.max_nodes, config.max_boxes, known)
            if mode.shared and len(mode.heads) > 1:
                # Heads that see the same can be forced to less than each by itself.
                found = replace(found, upper=known)
            returns[name] = found
    return Certificates(game.eps, heads, returns)


def _save(output: Run, config: Config, plan: Plan, result: Result) -> dict[str, Path]:
    """Write the study's table, figure and summary; returns the files that are named at the end."""
    from rlx.robustness.study import figure
    from rlx.threat import Adversary

    study = result.study
    seeds = plan.opened.seeds
    files = {"table": output.path / "robustness.csv", "figure": output.path / "robustness.png"}
    study.write_csv(files["table"])
    episodes = f"{len(seeds)} seeds × {config.episodes} episodes"
    title = f"{plan.subjects.name} under {study.attack}, {episodes}"
    summary = study.summary()
    arrays = {mode: episodes.returns for mode, episodes in result.played.items()}
    if result.certificates is not None:
        summary["certificates"] = result.certificates.summary()
        arrays |= result.certificates.arrays()
    drawn = figure(summary, title, config.scale, config.figure)
    figures.save(drawn, files["figure"])
    if plan.camera is not None and result.films:
        from rlx.show import video

        files["video"] = video.save(plan.camera, result.films, output.path, group=2)
    steps = int(sum(episodes.lengths.sum() for episodes in result.played.values()))
    facts = {
        "run": plan.subjects.paths,
        "seeds": seeds,
        "scale": result.scale,
        "effort": chosen("effort") if isinstance(plan.attack, Adversary) else None,
        "units": plan.env.observation_units,
        "attribution": None if result.attribution is None else result.attribution.as_dict(),
        "cost": plan.game.costs.as_dict(),
        "wall_s": result.wall_s,
        "steps": steps,
        "steps_per_s": steps / result.wall_s,
    }
    output.complete(summary | facts, arrays)
    return files


def _header(config: Config, plan: Plan) -> None:
    """Say what is attacked, how, and how many episodes that takes."""
    seeds = plan.opened.seeds
    eps = plan.game.eps
    total = len(seeds) * len(eps) * len(plan.modes) * config.episodes
    console.facts(
        **plan.subjects.told,
        seeds=f"{len(seeds)} ({console.ranges(seeds)})",
        attack=f"{chosen('attack')}, protocol {config.protocol}, modes {', '.join(plan.modes)}",
        effort=chosen("effort"),
        eps=f"{len(eps)} radii from {eps[0]:g} to {eps[-1]:g}, in units of {config.scale}",
        episodes=f"{config.episodes} per seed, radius and mode: {total:,} in all",
        device=plan.opened.device,
    )
    console.warn_of_unfinished(plan.subjects.runs)


def chosen_modes(attack: "Threat", heads: Sequence[str], wanted: Any) -> "dict[str, Mode]":
    """The attack's modes for a policy with these heads, or those of them named by `modes=`."""
    modes = dict(attack.modes(heads))
    if wanted is None:
        return modes
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    return {choice(str(name), modes, "modes"): modes[name] for name in names}


def _warn_of_small_radii(eps: Sequence[float], scale: np.ndarray, space: "gymnasium.Space") -> None:
    """Warn of a radius that is too small to change an observation of whole numbers."""
    small = [radius for radius in eps if 0 < radius * scale.max() < 1]
    if small and np.issubdtype(space.dtype, np.integer):
        radii = f"eps up to {max(small):g}"
        console.warning(f"{radii} is less than one gray level, and changes no image")
