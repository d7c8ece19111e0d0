"""Attack trained policies: seeds × radii × heads × episodes in one batch, with honest statistics."""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx.command import command
from rlx.config import Count, build, check_protocol, choice, chosen, load_class, parse_grid
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import report

if TYPE_CHECKING:
    from rlx.attack import Attack
    from rlx.robustness.sweep import Played


@dataclass(frozen=True)
class Config:
    """The keys of attack.yaml."""

    attack: Any
    device: Any
    protocol: str | None
    run: Any
    checkpoint: str
    seeds: Any
    eps: Any
    scale: Any
    modes: Any
    episodes: Count
    max_num_envs: Count
    outputs: str
    trust: bool


@command("attack")
def main(composed: DictConfig) -> float:
    """Returns the mean area under the robustness curves."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    eps = parse_grid(config.eps, "eps")
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import attack as attacks
    from rlx import experiment
    from rlx.evaluation import REPORT, evaluate, evaluate_random
    from rlx.policies import env_age, load_policies
    from rlx.robustness.sweep import Visited, probe, sweep
    from rlx.show import figures

    kind: Any = load_class(config.attack, "attack", attacks.Attack)
    attack = build(kind, config.attack, "attack")
    device = experiment.setup_device(config.device)
    policy, spec, seeds = load_policies(runs, config.checkpoint, device, config.seeds)
    modes = chosen_modes(attack, policy.heads, config.modes)
    env = experiment.evaluated_env(experiment.trained(runs[0]))
    clock = env_age(runs, config.checkpoint)

    def make_env(num_envs: int) -> Any:
        return experiment.make_env(env, num_envs, device, clock)

    # Errors before anything is written.
    attacks.unit_scale(config.scale, spec.observation_space, lambda: np.ones(1))
    probe(policy, make_env(len(seeds)), spec, attack, modes)
    output = Run.create(config.outputs, "attack", runs[0].path.parent.name, composed)
    name = chosen("attack")
    report.start(
        run=", ".join(str(run.path) for run in runs), seeds=f"{len(seeds)} ({report.ranges(seeds)})",
        attack=f"{name}, protocol {config.protocol}, modes {', '.join(modes)}",
        eps=f"{len(eps)} radii from {eps[0]:g} to {eps[-1]:g}, in units of {config.scale}",
        episodes=f"{config.episodes} per seed, radius and mode: {len(seeds) * len(eps) * len(modes) * config.episodes:,} in all",
        device=device,
    )  # fmt: skip
    report.unfinished(runs)
    with output.writing():
        began = time.monotonic()
        visited = Visited(policy.heads[-1])
        clean = evaluate(
            policy, make_env, len(seeds), config.episodes, REPORT, device, visited.chooser
        )
        random = float(evaluate_random(policy, make_env, config.episodes, device).returns.mean())
        scale = attacks.unit_scale(config.scale, spec.observation_space, visited.std)
        small = [radius for radius in eps if 0 < radius * scale.max() < 1]
        if small and np.issubdtype(spec.observation_space.dtype, np.integer):
            report.start(
                warning=f"eps up to {max(small):g} is less than one gray level, and changes no picture"
            )
        played = sweep(
            policy,
            make_env,
            spec,
            attack,
            modes,
            seeds,
            eps,
            scale,
            config.episodes,
            config.max_num_envs,
            device,
        )
        wall_s = time.monotonic() - began
        steps = int(sum(p.lengths.sum() for p in played.values()))
        summary = summarise(name, eps, clean.returns.cpu().numpy(), random, played)
        summary |= {
            "run": [str(run.path) for run in runs],
            "seeds": seeds,
            "scale": scale,
            "wall_s": wall_s,
        }
        summary |= {"steps": steps, "steps_per_s": steps / wall_s}
        _write_csv(output.path / "robustness.csv", summary["cells"])
        title = f"{runs[0].path.parent.name} under {name}, {len(seeds)} seeds × {config.episodes} episodes"
        cells = {
            mode: [cell for cell in summary["cells"] if cell["head"] == mode] for mode in modes
        }
        curves = [figures.RobustnessCurve(f"{name} on {mode}", eps, cells[mode]) for mode in modes]
        figures.robustness(
            {title: curves},
            output.path / "robustness.png",
            f"eps ({eps_unit(config.scale)})",
            random,
        )
        output.complete(summary, {mode: p.returns for mode, p in played.items()})
    _print(summary, modes, eps)
    report.end(
        output.path,
        wall_s,
        table=output.path / "robustness.csv",
        figure=output.path / "robustness.png",
    )
    return float(np.mean([summary["area"][mode] for mode in modes]))


def eps_unit(scale: object) -> str:
    """What a radius of 1 is, in words."""
    names = {
        "bounds": "half the range of the observation space",
        "std": "a standard deviation of the observations of clean play",
    }
    return f"1: {names.get(str(scale), f'the units {scale}')}"


def chosen_modes(
    attack: "Attack", heads: Sequence[str], wanted: Any
) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The attack's modes for a policy with these heads, or those named by `modes=`."""
    modes = dict(attack.modes(heads))
    names = [wanted] if isinstance(wanted, str) else list(modes if wanted is None else wanted)
    return {choice(str(name), modes, "modes"): modes[name] for name in names}


def summarise(
    name: str,
    eps: Sequence[float],
    clean: np.ndarray,
    random: float,
    played: "Mapping[str, Played]",
) -> dict[str, Any]:
    """The statistics of a sweep: a cell per mode and radius, a curve per mode."""
    from rlx.show import stats

    bootstrap = stats.Bootstrap(*clean.shape)
    cells, curves = [], {}
    for mode, p in played.items():
        curves[mode] = curve = stats.curve(p.returns, clean, random, np.array(eps), bootstrap)
        for e, radius in enumerate(eps):
            flips = {
                head: float(p.flips[head][:, e].sum() / max(1, p.decisions[head][:, e].sum()))
                for head in p.flips
            }
            taken = sum(p.decisions[head][:, e].sum() for head in p.flips)
            cells.append(
                {
                    "attack": name,
                    "head": mode,
                    "eps": radius,
                    "return": stats.estimate(p.returns[:, e], bootstrap).as_dict(),
                    "score": curve.score[e],
                    "flip_rate": float(
                        sum(p.flips[head][:, e].sum() for head in p.flips) / max(1, taken)
                    ),
                    "flip_rate_per_head": flips,
                    "truncation_rate": float(p.truncated[:, e].mean()),
                }
            )
    return {
        "eps": list(eps), "clean": stats.estimate(clean, bootstrap).as_dict(), "random": random,
        "cells": cells,
        "area": {mode: curve.area for mode, curve in curves.items()},
        "area_ci95": {mode: curve.area_ci95 for mode, curve in curves.items()},
        "critical_eps": {mode: _within(curve.critical_eps, eps) for mode, curve in curves.items()},
        "critical_eps_ci95": {mode: [_within(c, eps) for c in curve.critical_eps_ci95] for mode, curve in curves.items()},
        "undefined_resamples": {mode: curve.undefined for mode, curve in curves.items()},
    }  # fmt: skip


def _within(critical: float, eps: Sequence[float]) -> float | str:
    if math.isinf(critical):
        return f">{eps[-1]:g}" if critical > 0 else f"≤{eps[0]:g}"
    return critical


def _write_csv(path: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "attack",
                "head",
                "eps",
                "iqm",
                "ci95_low",
                "ci95_high",
                "score",
                "flip_rate",
                "truncation_rate",
            ]
        )
        for cell in cells:
            value = cell["return"]
            rates = [cell[name] for name in ("score", "flip_rate", "truncation_rate")]
            writer.writerow(
                [cell["attack"], cell["head"], cell["eps"], value["iqm"], *value["ci95"], *rates]
            )


def _print(summary: Mapping[str, Any], modes: Mapping[str, Any], eps: Sequence[float]) -> None:
    by = {(cell["head"], cell["eps"]): cell for cell in summary["cells"]}

    def returned(mode: str, radius: float) -> str:
        cell = by[mode, radius]["return"]
        return report.interval_text(cell["iqm"], cell["ci95"])

    report.table(
        "Return: interquartile mean over seeds, 95 % bootstrap interval",
        ["eps", *modes],
        [[f"{radius:g}", *(returned(mode, radius) for mode in modes)] for radius in eps],
    )
    rows = []
    for mode in modes:
        worst = by[mode, eps[-1]]
        critical = [
            x if isinstance(x, str) else f"{x:.3g}"
            for x in (summary["critical_eps"][mode], *summary["critical_eps_ci95"][mode])
        ]
        rows.append(
            [
                mode,
                report.interval_text(summary["area"][mode], summary["area_ci95"][mode]),
                critical[0]
                if critical[1] == "nan"
                else f"{critical[0]} [{critical[1]}, {critical[2]}]",
                f"{worst['flip_rate']:.0%}",
                f"{worst['truncation_rate']:.0%}",
            ]
        )
    if share := max(summary["undefined_resamples"].values()):
        what = "clean play is no better than random play: there is nothing to lose, and no score"
        report.start(
            warning=what
            if share == 1
            else f"in {share:.1%} of the resamples {what}; the intervals leave them out"
        )
    report.few(len(summary["seeds"]))
    report.table(
        f"Scores from 0, random play ({summary['random']:.4g}), to 1, clean play ({summary['clean']['iqm']:.4g}). "
        f"Critical eps: half the score is lost. At eps {eps[-1]:g}: decisions flipped, episodes stuck at the time limit",
        ["attacked", "area", "critical eps", "flipped", "stuck"],
        rows,
    )
