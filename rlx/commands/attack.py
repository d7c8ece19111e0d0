"""Attack trained policies: seeds × radii × heads × episodes in one batch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx.command import check_protocol, chosen, command
from rlx.config import Count, build, choice, load_class
from rlx.grids import parse_grid
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import console

if TYPE_CHECKING:
    import gymnasium

    from rlx.env import TensorEnv
    from rlx.robustness.study import Study
    from rlx.threat import Attack, Mode


@dataclass(frozen=True)
class Config:
    """The keys of attack.yaml."""

    attack: Any
    """The attack: a file of conf/attack, with `_target_` and its settings."""
    device: Any
    """Where it runs: a file of conf/device."""
    protocol: str | None
    """`corrected`, or `source` for the settings of the source study."""
    run: Any
    """Run directories, or folders with runs; null: the newest training."""
    checkpoint: str
    """`best`, or the step of a checkpoint."""
    seeds: Any
    """Which of the runs' seeds are attacked; null: all."""
    eps: Any
    """Radii of the box in units of `scale`: start:stop:step, numbers, fractions, a list."""
    scale: Any
    """What eps = 1 means: `bounds`, `std` or one number per component of an observation."""
    modes: Any
    """Which heads are attacked together, names of the attack's modes; null: all modes."""
    episodes: Count
    """Episodes of each seed, radius and mode."""
    max_num_envs: Count
    """Env copies that are played at once."""
    outputs: str
    """Folder of all runs."""
    trust: bool
    """Import what the run's config names, though somebody else made the run."""


@command("attack")
def main(composed: DictConfig) -> float:
    """Returns the mean area under the robustness curves."""
    _, study = _attacked(composed)
    return float(np.mean([curve.area for curve in study.curves.values()]))


def attack(composed: DictConfig) -> Run:
    """The finished study of a composed config."""
    output, _ = _attacked(composed)
    return output


def _attacked(composed: DictConfig) -> "tuple[Run, Study]":
    """Play, draw and print a study; its run directory, and what was found."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    eps = parse_grid(config.eps, "eps")
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import experiment
    from rlx.evaluation import REPORT, evaluate, evaluate_random
    from rlx.policies import env_age, load_policies
    from rlx.robustness.observations import ObservationSpread
    from rlx.robustness.study import Study, figure
    from rlx.robustness.sweep import probe, sweep
    from rlx.threat import Attack, unit_scale

    kind = load_class(config.attack, "attack", Attack)
    attack = build(kind, config.attack, "attack")
    device = experiment.setup_device(config.device)
    policy, spec, seeds = load_policies(runs, config.checkpoint, device, config.seeds)
    modes = chosen_modes(attack, policy.heads, config.modes)
    env = experiment.eval_env_config(experiment.training_config(runs[0]))
    age = env_age(runs, config.checkpoint)

    def make_env(num_envs: int) -> "TensorEnv":
        return experiment.make_env(env, num_envs, device, age)

    # Errors before anything is written.
    unit_scale(config.scale, spec.observation_space, lambda: np.ones(1))
    probe(policy, make_env(len(seeds)), spec, attack, modes)
    name = chosen("attack")
    source = runs[0].path.parent.name
    output = Run.create(config.outputs, "attack", source, composed)
    _header(config, runs, seeds, eps, list(modes), device)
    with output.writing():
        began = time.monotonic()
        spread = ObservationSpread(policy.heads[-1])
        clean = evaluate(
            policy, make_env, len(seeds), config.episodes, REPORT, device, spread.chooser
        )
        random = evaluate_random(policy, make_env, config.episodes, device)
        scale = unit_scale(config.scale, spec.observation_space, spread.std)
        _warn_of_small_radii(eps, scale, spec.observation_space)
        played = sweep(
            policy,
            make_env,
            spec,
            attack,
            modes,
            seeds=seeds,
            eps=eps,
            scale=scale,
            episodes=config.episodes,
            max_num_envs=config.max_num_envs,
            device=device,
        )
        wall_s = time.monotonic() - began
        steps = int(sum(episodes.lengths.sum() for episodes in played.values()))
        clean_returns = clean.returns.cpu().numpy()
        study = Study.of(name, eps, clean_returns, float(random.returns.mean()), played)
        files = {
            "table": output.path / "robustness.csv",
            "figure": output.path / "robustness.png",
        }
        study.write_csv(files["table"])
        title = f"{source} under {name}, {len(seeds)} seeds × {config.episodes} episodes"
        figure(study.summary(), title, config.scale).savefig(files["figure"])
        facts = {
            "run": [str(run.path) for run in runs],
            "seeds": seeds,
            "scale": scale,
            "wall_s": wall_s,
            "steps": steps,
            "steps_per_s": steps / wall_s,
        }
        returns = {mode: episodes.returns for mode, episodes in played.items()}
        output.complete(study.summary() | facts, returns)
    _print(study, len(seeds))
    console.result(output.path, wall_s, **files)
    return output, study


def _header(
    config: Config,
    runs: Sequence[Run],
    seeds: Sequence[int],
    eps: Sequence[float],
    modes: Sequence[str],
    device: object,
) -> None:
    """Say what is attacked, how, and how many episodes that takes."""
    total = len(seeds) * len(eps) * len(modes) * config.episodes
    console.facts(
        run=", ".join(str(run.path) for run in runs),
        seeds=f"{len(seeds)} ({console.ranges(seeds)})",
        attack=f"{chosen('attack')}, protocol {config.protocol}, modes {', '.join(modes)}",
        eps=f"{len(eps)} radii from {eps[0]:g} to {eps[-1]:g}, in units of {config.scale}",
        episodes=f"{config.episodes} per seed, radius and mode: {total:,} in all",
        device=device,
    )
    console.warn_of_unfinished(runs)


def chosen_modes(attack: "Attack", heads: Sequence[str], wanted: Any) -> "dict[str, Mode]":
    """The attack's modes for a policy with these heads, or those of them named by `modes=`."""
    modes = dict(attack.modes(heads))
    if wanted is None:
        return modes
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    return {choice(str(name), modes, "modes"): modes[name] for name in names}


def _warn_of_small_radii(eps: Sequence[float], scale: np.ndarray, space: "gymnasium.Space") -> None:
    """Say so where a radius is too small to change an observation of whole numbers."""
    small = [radius for radius in eps if 0 < radius * scale.max() < 1]
    if small and np.issubdtype(space.dtype, np.integer):
        text = f"eps up to {max(small):g} is less than one gray level, and changes no image"
        console.warning(text)


def _print(study: "Study", seeds: int) -> None:
    """The returns by radius and mode, then what the largest radius did in each mode."""
    from rlx.robustness.study import Cell

    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for cells in study.cells.values():
            estimate = cells[number].returns
            row.append(console.interval_text(estimate.iqm, estimate.ci95))
        rows.append(row)
    title = "Return: interquartile mean over seeds, 95 % bootstrap interval"
    console.table(title, ["eps", *study.cells], rows)
    _warn_of_undefined_scores(max(curve.undefined for curve in study.curves.values()))
    console.warn_of_few_seeds(seeds)
    rows = []
    for mode, curve in study.curves.items():
        area = console.interval_text(curve.area, curve.area_ci95)
        shares = study.cells[mode][-1].shares()
        rows.append([mode, area, study.critical_text(mode), *shares])
    title = (
        f"Scores from 0, random play ({study.random:.4g}), "
        f"to 1, clean play ({study.clean.iqm:.4g}). Critical eps: half the score is lost. "
        f"At eps {study.eps[-1]:g}: {Cell.words()}"
    )
    console.table(title, ["attacked", "area", "critical eps", *Cell.columns()], rows)


def _warn_of_undefined_scores(share: float) -> None:
    """Say so where clean play is no better than random play in a `share` of the resamples."""
    what = "clean play is no better than random play: there is nothing to lose, and no score"
    if share == 1:
        console.warning(what)
    elif share > 0:
        text = f"in {share:.1%} of the resamples {what}; the intervals leave them out"
        console.warning(text)
