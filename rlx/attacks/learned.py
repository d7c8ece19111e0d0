"""The learned adversary: an agent of rlx that learns when forcing a decision hurts.

Zhang et al. 2021 (arXiv:2101.08452) train such an adversary on what is observed; Sun et al. 2022
(arXiv:2106.05087) let it direct the decision, and a gradient find the observation.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from rlx.agent import Policy
from rlx.composing import compose_config, hydra_left_as_it_is
from rlx.conf import group_files
from rlx.config import Count, Index, build, choice, plain
from rlx.env import TensorEnv
from rlx.errors import ConfigError
from rlx.evaluation import SELECTION, evaluate
from rlx.experiment import make_env, training_config
from rlx.nn.seed_axis import take
from rlx.policies import load_policies
from rlx.robustness.attacked_env import AttackedEnv
from rlx.robustness.sweep import Game, Played
from rlx.rollout import rollout
from rlx.runs.finding import find, is_in_zoo
from rlx.runs.run import Run
from rlx.show import console
from rlx.threat import Adversary, Mode, Witness
from rlx.training.config import Config, validated
from rlx.training.loop import Training
from rlx.training.resuming import resumed

LEARNING_RADII = 6
"""Radii at most at which an adversary learns; it sees the radius, and acts at those between."""
CLEAN_EPISODES = 10
"""Clean episodes of each victim by whose returns rewards are scaled, where no run has others."""
EVALUATIONS = 8
"""Evaluations of a training, by which the weights are kept."""
GO_ON = "the same command"
"""What takes up a training that was interrupted."""
CHECKPOINT_SECONDS = 60.0
"""Seconds after which a training is saved, so that little is lost where it is interrupted."""


@dataclass(frozen=True)
class Learned(Adversary):
    """A training in env=attacked, of one adversary for each victim and restart.

    An adversary serves all radii: it sees its own, and what it learns at large ones helps at small
    ones. It is trained once and kept beside the victims' run. The restart of each victim and radius
    is chosen on selection episodes, and a larger radius may use what was learnt at a smaller one.
    """

    agent: str
    """The agent that learns which choices to force, a file of conf/agent.

    Its settings are those of conf/tuned."""
    continuous_agent: str
    """The agent that learns which way to push continuous actions, likewise."""
    agent_keys: dict[str, Any]
    """Keys of the agent that differ from these settings."""
    adversary_steps: Count
    """Environment steps of each adversary, at all radii together."""
    adversary_envs: Count
    """Env copies of each adversary, about: each radius has the same number of them."""
    restarts: Count
    """Adversaries of each victim."""
    selection_episodes: Count
    """Episodes of each radius by which weights and restarts are chosen."""
    steps: Count
    """Gradient steps of the search for an observation that forces a choice."""
    samples: Index
    """Random corners of the box that are tried beside them."""

    def __post_init__(self) -> None:
        choice(self.agent, group_files("agent"), "attack.agent")
        choice(self.continuous_agent, group_files("agent"), "attack.continuous_agent")

    def check(self, game: Game, modes: Mapping[str, Mode]) -> None:
        if not game.runs and game.victims is None:
            raise ConfigError("attack=learned: needs policies of runs, or of files.")
        if max(game.eps) == 0:
            raise ConfigError(f"eps={list(game.eps)}: a learned attack needs a radius above 0.")
        for mode in modes.values():
            make_env(self._env(game, mode), 1, game.opened.device)

    def play(self, game: Game, modes: Mapping[str, Mode]) -> dict[str, Played]:
        self.check(game, modes)
        with game.costs.of("learned"):
            return {name: self._played(game, name, mode) for name, mode in modes.items()}

    def _played(self, game: Game, name: str, mode: Mode) -> Played:
        """The episodes of one mode, by the adversaries that did best on selection episodes."""
        run = self._trained(game, name, mode)
        policy, _, _ = load_policies([run], "best", game.opened.device)
        victims = len(game.opened.seeds)
        shape = (victims, self.restarts, len(game.eps))
        # The adversaries of a victim are next to each other, and each serves all radii.
        rows = torch.arange(victims * self.restarts).repeat_interleave(len(game.eps))
        env = self._env(game, mode)
        trial = _facts(game, env, take(policy, rows), SELECTION, self.selection_episodes)
        restart, radius = _best(trial["returns"].mean(1).reshape(shape), game.eps)
        rows = torch.from_numpy(np.arange(victims)[:, None] * self.restarts + restart).flatten()
        env = {**env, "restarts": 1}
        facts = _facts(game, env, take(policy, rows), game.first_reset_seed, game.episodes)

        def cells(name: str) -> np.ndarray:
            """A fact about the episodes, [S, E, P]."""
            values = facts[name].reshape(victims, len(game.eps), -1)
            return np.take_along_axis(values, radius[:, :, None], 1)

        def replay(
            row: int, number: int, episode: int, victims_env: TensorEnv, witness: Witness
        ) -> None:
            member = row * len(game.eps) + int(radius[row, number])
            attacked = make_env({**env, "members": [member]}, 1, game.opened.device)
            assert isinstance(attacked, AttackedEnv)
            attacked.env = victims_env
            attacked.witness = witness
            rollout(take(policy, rows[[member]]), attacked, game.reset_seeds_of(episode))

        return Played(
            returns=cells("returns"),
            lengths=cells("lengths"),
            truncated=cells("truncated"),
            decisions={head: cells(f"decisions/{head}") for head in mode.heads},
            flips={head: cells(f"flips/{head}") for head in mode.heads},
            replay=replay,
        )

    def _agent(self, game: Game) -> str:
        """The agent that learns to attack these victims."""
        if isinstance(game.opened.spec.action_space, gymnasium.spaces.Box):
            return self.continuous_agent
        return self.agent

    def _env(self, game: Game, mode: Mode) -> dict[str, Any]:
        """The config group `env` of the adversaries of one mode, rewarded with minus the return."""
        return {
            "_target_": f"{AttackedEnv.__module__}.{AttackedEnv.__qualname__}",
            "run": [str(run.path.absolute()) for run in game.runs],
            "checkpoint": game.checkpoint,
            "seeds": list(game.opened.seeds),
            "mode": _env_mode(mode, game.opened.policy.heads),
            "eps": list(game.eps),
            "scale": game.scale.flatten().tolist(),
            "manifold": "angle" if game.angles else None,
            "restarts": self.restarts,
            "steps": self.steps,
            "samples": self.samples,
            "unit": 1.0,
            "victims": None if game.victims is None else game.victims.keys(),
        }

    def _config(self, game: Game, mode: Mode) -> DictConfig:
        """The config of the training of one mode's adversaries."""
        env = self._env(game, mode)
        env["eps"] = _learning_radii(game.eps)
        env["unit"] = None if game.victims is None else _size_of_returns(game)
        radii = len(env["eps"])
        with hydra_left_as_it_is():
            config = plain(
                compose_config(
                    "train",
                    [f"agent={self._agent(game)}", "env=attacked", f"steps={self.adversary_steps}"],
                )
            )
        config["agent"] |= self.agent_keys
        config["env"] = env
        config["device"] = {
            "name": game.opened.device.type,
            "threads": torch.get_num_threads(),
        }
        config["seeds"] = len(game.opened.seeds) * self.restarts
        config["num_envs"] = max(1, round(self.adversary_envs / radii)) * radii
        config["eval_every"] = math.ceil(self.adversary_steps / EVALUATIONS)
        config["eval_episodes"] = self.selection_episodes * radii
        config["final_episodes"] = radii
        config["checkpoint_every"] = self.adversary_steps
        config["checkpoint_seconds"] = CHECKPOINT_SECONDS
        return validated(config)

    def _trained(self, game: Game, name: str, mode: Mode) -> Run:
        """The finished training of one mode's adversaries: found, gone on with, or made."""
        config = self._config(game, mode)
        root = _folder(game, config)
        config.outputs = str(root)
        run = _newest(root, any(run.trusted for run in game.runs))
        if run is not None and run.unfinished() is None:
            console.facts(adversary=f"of {name}, trained before: {run.path}")
            return run
        if run is None:
            training = Training(build(Config, config, ""), f"{self._agent(game)}-attacked")
            run = Run.create(config.outputs, "train", training.name, config)
            self._tell(game, name, run)
            with console.only_progress():
                training.run(run, go_on=GO_ON)
            return run
        self._tell(game, name, run)
        with run.lock(), console.only_progress():
            saved = validated(training_config(run))
            training, warnings = resumed(run, saved)
            for warning in warnings:
                console.warning(warning)
            training.run(run, saved, GO_ON)
        return run

    def _tell(self, game: Game, name: str, run: Run) -> None:
        """Print who is trained, and where."""
        victims = len(game.opened.seeds)
        console.facts(
            adversary=f"of {name}, {victims} victims × {self.restarts} restarts: {run.path}"
        )


def _learning_radii(eps: Sequence[float]) -> list[float]:
    """The radii at which an adversary learns: above 0, evenly spread, the largest among them."""
    positive = sorted(radius for radius in eps if radius > 0)
    count = min(LEARNING_RADII, len(positive))
    ends = np.linspace(0, len(positive), count + 1)[1:]
    return [positive[round(end) - 1] for end in ends]


def _size_of_returns(game: Game) -> float:
    """The mean size of the clean returns of policies that are of no run, in three digits."""
    opened = game.opened
    played = evaluate(
        opened.policy,
        opened.make_env,
        len(opened.seeds),
        CLEAN_EPISODES,
        SELECTION,
        opened.device,
    )
    return float(f"{float(played.returns.abs().mean()):.3g}") or 1.0


def _env_mode(mode: Mode, heads: Sequence[str]) -> str:
    """What env=attacked calls a mode of a policy with these `heads`."""
    if mode.shared or len(mode.heads) not in (1, len(heads)):
        raise ConfigError(
            f"modes: a learned attack is of one head or of all, not of {', '.join(mode.heads)}"
            f"{' through one sensor' if mode.shared else ''}."
        )
    return mode.heads[0] if len(mode.heads) == 1 else "both"


def _folder(game: Game, config: DictConfig) -> Path:
    """Where the adversaries of a `config` are kept: beside the victims, if that can be written.

    Its name is a fingerprint of the victims' weights and of all that decides what is learnt.
    """
    settings = plain(config)
    del settings["outputs"]
    del settings["device"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in game.opened.policy.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    parent = Path(config.outputs)
    if game.victims is not None:
        digest.update(json.dumps(game.victims.hashes).encode())
    elif os.access(game.runs[0].path, os.W_OK) and not is_in_zoo(game.runs[0].path):
        parent = game.runs[0].path.absolute()
    return parent / "adversaries" / digest.hexdigest()[:16]


def _newest(root: Path, trusted: bool) -> Run | None:
    """The newest training below `root` that is finished, or else that can go on; None: neither."""
    for finished in (True, False):
        with suppress(ConfigError):
            return find(str(root), str(root), finished=finished, trusted=trusted)
    return None


def _facts(
    game: Game, node: dict[str, Any], policy: Policy, first_reset_seed: int, episodes: int
) -> dict[str, np.ndarray]:
    """What happens in the episodes of each member of the env `node`, [M, P] by name.

    `policy`: the adversary of each member, M rows. The names are those of `Played`, with the head
    behind a slash.
    """
    device = game.opened.device
    members = len(next(policy.parameters()))
    numbers = torch.arange(first_reset_seed, first_reset_seed + episodes, device=device)
    parts: list[dict[str, Tensor]] = []
    for chunk in numbers.split(max(1, game.max_num_envs // members)):
        env = make_env(node, members * len(chunk), device)
        played = rollout(policy, env, chunk.expand(members, -1))
        facts = {
            "returns": -played.returns,
            "lengths": played.lengths,
            "truncated": played.truncated,
        }
        attacked = cast(AttackedEnv, env)
        for head in attacked.heads:
            facts[f"decisions/{head}"] = attacked.decisions()[head].view(members, -1)
            facts[f"flips/{head}"] = attacked.flips()[head].view(members, -1)
        parts.append(facts)
    return {name: torch.cat([part[name] for part in parts], 1).cpu().numpy() for name in parts[0]}


def _best(returns: np.ndarray, eps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which restart is the worst for each victim and radius, and at which radius it shall act.

    `returns`: mean returns [S, R, E] on selection episodes. Both results are int64 [S, E]: the
    restart of each radius by itself, and the radius no larger whose restart is the worst of all.
    """
    restart = returns.argmin(1)
    lowest = returns.min(1)
    radii = np.asarray(eps)
    allowed = radii[None, :] <= radii[:, None]  # [radius, radius that may act for it]
    radius = np.where(allowed, lowest[:, None, :], np.inf).argmin(2)
    return restart, radius
