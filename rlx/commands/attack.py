"""Attack trained policies: seeds × radii × heads × episodes in one batch, with honest statistics."""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
from omegaconf import DictConfig

from rlx import report
from rlx.config import ConfigError, at_least, build, choice, conf_dir, load_class, parse_grid
from rlx.run import Run

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rlx.agent import Choose, Policy, Scores, Spec
    from rlx.attack import Attack
    from rlx.evaluation import MakeEnv


@dataclass(frozen=True)
class Config:
    """The keys of attack.yaml."""

    attack: Any
    device: Any
    protocol: str
    run: Any
    checkpoint: str
    seeds: Any
    eps: Any
    scale: Any
    modes: Any
    episodes: int
    max_copies: int
    outputs: str


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="attack")
def main(composed: DictConfig) -> float:
    """Returns the mean area under the robustness curves."""
    config = build(Config, composed, "")
    at_least(config.episodes, 1, "episodes")
    at_least(config.max_copies, 1, "max_copies")
    eps = parse_grid(config.eps, "eps")
    runs = Run.find_all(config.run, config.outputs)

    from rlx import attack as attacks
    from rlx import experiment, figures
    from rlx.evaluation import REPORT, evaluate, evaluate_random

    kind: Any = load_class(config.attack, "attack", attacks.Attack)
    attack = build(kind, config.attack, "attack")
    device = experiment.setup_device(config.device)
    policy, spec, seeds = experiment.load_policies(runs, config.checkpoint, device, config.seeds)
    modes = chosen_modes(attack, policy.heads, config.modes)
    env = runs[0].config.env

    def make_env(copies: int) -> Any:
        return experiment.make_env(env, copies, device)

    attacks.unit_scale("std" if config.scale == "std" else config.scale, spec.observation_space, lambda: np.ones(1))  # errors early
    output = Run.create(config.outputs, "attack", runs[0].path.parent.name, composed)
    name = _name(composed)
    report.start(
        run=", ".join(str(run.path) for run in runs), seeds=f"{len(seeds)} ({report.ranges(seeds)})",
        attack=f"{name}, protocol {config.protocol}, modes {', '.join(modes)}",
        eps=f"{len(eps)} radii from {eps[0]:g} to {eps[-1]:g}, in units of {config.scale}",
        episodes=f"{config.episodes} per seed, radius and mode: {len(seeds) * len(eps) * len(modes) * config.episodes:,} in all",
        device=device,
    )  # fmt: skip
    began = time.monotonic()
    visited = Visited(spec)
    clean = evaluate(policy, make_env, len(seeds), config.episodes, REPORT, device, visited.chooser)
    random = float(evaluate_random(policy, make_env, config.episodes, device).returns.mean())
    scale = attacks.unit_scale(config.scale, spec.observation_space, visited.std)
    played = sweep(policy, make_env, spec, attack, modes, seeds, eps, scale, config.episodes, config.max_copies, device)
    wall_s = time.monotonic() - began

    summary = summarise(name, eps, clean.returns.cpu().numpy(), random, played)
    summary |= {"status": "completed", "run": [str(run.path) for run in runs], "seeds": seeds, "scale": scale, "wall_s": wall_s}
    summary |= {"steps": int(sum(p.lengths.sum() for p in played.values()))}
    summary["steps_per_s"] = summary["steps"] / wall_s
    output.write_summary(summary)
    np.savez_compressed(output.path / "returns.npz", **{mode: p.returns for mode, p in played.items()})
    _write_csv(output.path / "robustness.csv", summary["cells"])
    title = f"{runs[0].path.parent.name} under {name}, {len(seeds)} seeds × {config.episodes} episodes"
    curves = [
        figures.RobustnessCurve(f"{name} on {mode}", eps, [cell for cell in summary["cells"] if cell["head"] == mode]) for mode in modes
    ]
    figures.robustness(curves, output.path / "robustness.png", title, f"eps, radius of the box in units of {config.scale}")
    output.write_meta(status="completed", wall_s=wall_s)
    _print(summary, modes, eps)
    report.end(output.path, wall_s, table=output.path / "robustness.csv", figure=output.path / "robustness.png")
    return float(np.mean([summary["area"][mode] for mode in modes]))


def chosen_modes(attack: "Attack", heads: Sequence[str], wanted: Any) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The attack's modes for a policy with these heads, or those named by `modes=`."""
    modes = dict(attack.modes(heads))
    names = [wanted] if isinstance(wanted, str) else list(modes if wanted is None else wanted)
    return {choice(str(name), modes, "modes"): modes[name] for name in names}


@dataclass
class Played:
    """One mode's episodes: arrays [S, E, P], and per head the decisions taken and flipped [S, E]."""

    returns: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    decisions: dict[str, np.ndarray]
    flips: dict[str, np.ndarray]


def sweep(
    policy: "Policy",
    make_env: "MakeEnv",
    spec: "Spec",
    attack: "Attack",
    modes: Mapping[str, tuple[tuple[str, ...], bool]],
    seeds: Sequence[int],
    eps: Sequence[float],
    scale: np.ndarray,
    episodes: int,
    max_copies: int,
    device: "torch.device",
) -> dict[str, Played]:
    """Play every mode × radius × episode of every seed, as columns of one batch [S, modes · E · P], in chunks of `max_copies`."""
    import torch

    from rlx.evaluation import REPORT
    from rlx.rollout import rollout

    shape = (len(modes), len(eps), episodes)
    columns = torch.arange(math.prod(shape), device=device)
    mode, radius, episode = torch.unravel_index(columns, shape)
    radii = torch.tensor(eps, dtype=torch.float32, device=device)[radius]
    width = max(1, max_copies // len(seeds))
    parts = []
    began = time.monotonic()
    with report.Progress(len(columns), "columns") as progress:
        for chunk in columns.split(width):
            reset = (REPORT + episode[chunk]).expand(len(seeds), -1)
            attacker = Attacker(attack, policy, spec, list(modes.values()), mode[chunk], radii[chunk], seeds, reset, scale)
            played = rollout(policy, make_env(reset.numel()), reset, attacker.chooser)
            parts.append((played.returns, played.lengths, played.truncated, attacker.decisions, attacker.flips))
            progress.update(int(chunk[-1]) + 1)
    returns, lengths, truncated = (torch.cat([part[i] for part in parts], 1).unflatten(1, shape).cpu().numpy() for i in range(3))
    decisions, flips = (
        {head: torch.cat([part[i][head] for part in parts], 1).unflatten(1, shape).sum(-1).cpu().numpy() for head in policy.heads}
        for i in (3, 4)
    )
    return {
        name: Played(
            returns[:, m], lengths[:, m], truncated[:, m],
            {head: decisions[head][:, m] for head in heads}, {head: flips[head][:, m] for head in heads},
        )
        for m, (name, (heads, _)) in enumerate(modes.items())
    }  # fmt: skip


class Attacker:
    """Chooses greedily on perturbed observations, and counts the decisions that the perturbation flipped.

    Each column of its batch [S, B] has a radius and a mode of its own; random numbers depend on seed, episode, head and step
    only, so that no cell's result depends on the other cells or on chunks.
    """

    def __init__(
        self,
        attack: "Attack",
        policy: "Policy",
        spec: "Spec",
        modes: Sequence[tuple[tuple[str, ...], bool]],
        mode: "Tensor",
        radii: "Tensor",
        seeds: Sequence[int],
        reset_seeds: "Tensor",
        scale: np.ndarray,
    ):
        import torch

        from rlx.attack import Budget
        from rlx.rng import mix64, seed_tensor, stream_key

        self.attack, self.shape, device = attack, reset_seeds.shape, reset_seeds.device
        space: Any = spec.observation_space
        self.low, self.high = (torch.as_tensor(bound, dtype=torch.float32, device=device) for bound in (space.low, space.high))
        self.scale = torch.as_tensor(scale, dtype=torch.float32, device=device)
        self.budget_type = Budget
        base = mix64(seed_tensor(seeds, device).unsqueeze(1) + mix64(reset_seeds))
        shared = torch.tensor([together for _, together in modes], device=device)[mode]
        self.radius, self.key, self.draws, self.decisions, self.flips = {}, {}, {}, {}, {}
        for head in policy.heads:
            attacked = torch.tensor([head in heads for heads, _ in modes], device=device)[mode]
            self.radius[head] = torch.where(attacked, radii, 0.0).expand(self.shape)
            self.key[head] = torch.where(shared, stream_key(base, "all heads"), stream_key(base, head))
            self.draws[head] = 0
            self.decisions[head] = torch.zeros(self.shape, dtype=torch.int64, device=device)
            self.flips[head] = torch.zeros(self.shape, dtype=torch.int64, device=device)
        self.idle = {head: not bool(radius.any()) for head, radius in self.radius.items()}

    def chooser(self, ids: "Tensor") -> "Choose":
        """For `rollout`: how the copies `ids` [S', B'] choose."""
        from rlx.rng import uniform

        flat = ids.flatten()
        radius = {head: value.flatten()[flat].view(ids.shape) for head, value in self.radius.items()}
        key = {head: value.flatten()[flat].view(ids.shape) for head, value in self.key.items()}

        def choose(head: str, obs: "Tensor", scores: "Scores", deciding: "Tensor") -> "Tensor":
            clean = scores(obs).argmax(-1)
            self.decisions[head].view(-1).index_add_(0, flat, deciding.flatten().long())
            if self.idle[head]:
                return clean

            def draw(count: int) -> "Tensor":
                counter = key[head].new_full((), self.draws[head])
                self.draws[head] += count
                return uniform(key[head], counter, count)

            box = radius[head].view(*ids.shape, *[1] * self.scale.dim()) * self.scale
            seen = self.attack.perturb(scores, obs, self.budget_type(box, self.low, self.high), draw)
            decision = scores(seen).argmax(-1)
            self.flips[head].view(-1).index_add_(0, flat, ((decision != clean) & deciding).flatten().long())
            return decision

        return choose


class Visited:
    """Greedy choices that note the spread of the observations they see."""

    def __init__(self, spec: "Spec"):
        self.spec = spec
        self.count = 0.0
        self.sum: Any = 0.0
        self.square: Any = 0.0

    def chooser(self, ids: "Tensor") -> "Choose":
        """For `rollout`."""
        from rlx.agent import greedy

        def choose(head: str, obs: "Tensor", scores: "Scores", deciding: "Tensor") -> "Tensor":
            weight = deciding.double().view(*deciding.shape, *[1] * (obs.dim() - 2))
            self.count += weight.sum()
            self.sum += (obs * weight).sum((0, 1))
            self.square += (obs.double().square() * weight).sum((0, 1))
            return greedy(head, obs, scores, deciding)

        return choose

    def std(self) -> np.ndarray:
        """Standard deviation of every component over all seeds and steps, [*O]."""
        mean = self.sum / self.count
        return (self.square / self.count - mean.square()).clamp_min(0).sqrt().cpu().numpy()


def summarise(name: str, eps: Sequence[float], clean: np.ndarray, random: float, played: Mapping[str, Played]) -> dict[str, Any]:
    """The statistics of a sweep: a cell per mode and radius, a curve per mode."""
    from rlx import stats

    bootstrap = stats.Bootstrap(*clean.shape)
    cells, curves = [], {}
    for mode, p in played.items():
        curves[mode] = curve = stats.curve(p.returns, clean, random, np.array(eps), bootstrap)
        for e, radius in enumerate(eps):
            flips = {head: float(p.flips[head][:, e].sum() / max(1, p.decisions[head][:, e].sum())) for head in p.flips}
            taken = sum(p.decisions[head][:, e].sum() for head in p.flips)
            cells.append(
                {
                    "attack": name,
                    "head": mode,
                    "eps": radius,
                    "return": stats.estimate(p.returns[:, e], bootstrap).as_dict(),
                    "score": curve.score[e],
                    "flip_rate": float(sum(p.flips[head][:, e].sum() for head in p.flips) / max(1, taken)),
                    "flip_rate_per_head": flips,
                    "stuck_rate": float(p.truncated[:, e].mean()),
                }
            )
    return {
        "eps": list(eps), "clean": stats.estimate(clean, bootstrap).as_dict(), "random": random,
        "cells": cells,
        "area": {mode: curve.area for mode, curve in curves.items()},
        "area_ci95": {mode: curve.area_ci95 for mode, curve in curves.items()},
        "critical_eps": {mode: _or_more(curve.critical_eps, eps) for mode, curve in curves.items()},
        "critical_eps_ci95": {mode: [_or_more(c, eps) for c in curve.critical_eps_ci95] for mode, curve in curves.items()},
    }  # fmt: skip


def _or_more(critical: float, eps: Sequence[float]) -> float | str:
    return f">{eps[-1]:g}" if math.isinf(critical) else critical


def _write_csv(path: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["attack", "head", "eps", "iqm", "ci95_low", "ci95_high", "score", "flip_rate", "stuck_rate"])
        for cell in cells:
            value = cell["return"]
            writer.writerow(
                [cell["attack"], cell["head"], cell["eps"], value["iqm"], *value["ci95"], cell["score"], cell["flip_rate"], cell["stuck_rate"]]
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
        critical = [x if isinstance(x, str) else f"{x:.3g}" for x in (summary["critical_eps"][mode], *summary["critical_eps_ci95"][mode])]
        rows.append(
            [
                mode,
                report.interval_text(summary["area"][mode], summary["area_ci95"][mode]),
                critical[0] if critical[1] == "nan" else f"{critical[0]} [{critical[1]}, {critical[2]}]",
                f"{worst['flip_rate']:.0%}",
                f"{worst['stuck_rate']:.0%}",
            ]
        )
    report.table(
        f"Scores from 0, random play ({summary['random']:.4g}), to 1, clean play ({summary['clean']['iqm']:.4g}). "
        f"Critical eps: half the score is lost. At eps {eps[-1]:g}: decisions flipped, episodes stuck at the time limit",
        ["attacked", "area", "critical eps", "flipped", "stuck"],
        rows,
    )


def _name(composed: DictConfig) -> str:
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices["attack"])
