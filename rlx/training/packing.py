"""Trainings that differ in seeds and numbers alone, as one batch along the seed axis.

A pack is a run of its own until it ends. Then it is taken apart into one run for each member, as if
each had been trained alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium.spaces import Box
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlx.agent import Agent
from rlx.config import build, load_class, varying
from rlx.errors import RunError
from rlx.grids import parse_seeds
from rlx.robustness.attacked_env import AttackedEnv
from rlx.rollout import Episodes
from rlx.runs.run import Run
from rlx.show import console
from rlx.trackers.tracking import Tracking, track_finished
from rlx.training import result, state
from rlx.training.config import Config
from rlx.training.loop import Training


def why_alone(config: DictConfig) -> str | None:
    """Why a training, of this validated config, can be a member of no pack; None: it can be."""
    if config.stop:
        return "with a stop rule, which takes seeds out of a batch, each is trained alone"
    if issubclass(load_class(config.env, "env", object), AttackedEnv):
        return "with env=attacked, which has a victim for each seed, each is trained alone"
    return None


def shared(config: DictConfig) -> dict[str, Any]:
    """What the members of a pack have in common of their validated configs."""
    values: Any = OmegaConf.to_container(config)
    for key in ("seeds", "outputs", "device", "tracker"):
        del values[key]
    for name in _varying(config):
        if values["agent"].get(name) is not None:
            # Whether there is a number at all is decided before the batch is made.
            values["agent"][name] = "a number for each seed"
    return values


def packed(members: Sequence[DictConfig]) -> DictConfig:
    """The config of a pack of these validated configs, which are alike."""
    config = members[0].copy()
    config.seeds = [parse_seeds(member.seeds) for member in members]
    for name in _varying(config):
        values = [member.agent.get(name) for member in members]
        if not OmegaConf.is_list(values[0]) and all(value == values[0] for value in values):
            continue
        rows = []
        for value, seeds in zip(values, config.seeds, strict=True):
            rows += list(value) if OmegaConf.is_list(value) else [value] * len(seeds)
        config.agent[name] = rows
    return config


def _varying(config: DictConfig) -> list[str]:
    """The settings of the agent that may differ between the seeds of a batch."""
    agent = load_class(config.agent, "agent", Agent)
    return sorted(varying(agent.config_type))


class Pack(Training):
    """A training of several members; their seeds are its rows, one member after the other."""

    def __init__(self, config: Config, name: str):
        super().__init__(config, name)
        self.members: list[list[int]] = []
        """The rows of each member."""
        row = 0
        for seeds in config.seeds:
            self.members.append(list(range(row, row + len(seeds))))
            row += len(seeds)
        self.watch: Callable[[Pack], None] | None = None
        """What is told of each evaluation, and may drop members."""
        self.culprit: dict[int, str] = {}
        """The number of the member whose env raised, and ended the pack, and what; or empty."""

    def _seeds_text(self) -> str:
        """How many members there are, and their seeds."""
        counts = {len(rows) for rows in self.members}
        each = f" of {counts.pop()}" if len(counts) == 1 else f", {len(self.seeds)}"
        return f"{len(self.members)} jobs{each} seeds ({console.ranges(set(self.seeds))})"

    def alive(self) -> list[int]:
        """The numbers of the members that have not dropped out."""
        running = set(self.running.tolist())
        return [number for number, rows in enumerate(self.members) if running.issuperset(rows)]

    def failed(self) -> dict[int, str]:
        """Why members have dropped out, by their number."""
        alive = self.alive()
        reasons = {int(number): text for number, text in self._reasons().items()}
        # A pack that was killed goes on from before some dropped out.
        return {number: text for number, text in reasons.items() if number not in alive}

    def _reasons(self) -> dict[str, str]:
        """What the run knows of members that dropped out; JSON has no numbers as keys."""
        return dict(self.output.meta().get("dropped", {}))

    def drop(self, members: Mapping[int, str]) -> None:
        """Go on without some members; the texts say why. RunError where none is left."""
        reasons = {str(number): text for number, text in members.items()}
        self.output.write_meta(dropped=self._reasons() | reasons)
        gone = {row for number in members for row in self.members[number]}
        kept = [place for place, row in enumerate(self.running.tolist()) if row not in gone]
        if not kept:
            self.running = self.running[:0]
            raise RunError("every job of the batch dropped out")
        self.take(torch.tensor(kept, dtype=torch.int64, device=self.device))

    def _vector_step(self) -> Tensor:
        """The step of a training; with actions of real numbers, members may drop out behind it."""
        with self._blaming(self.num_envs):
            returns = super()._vector_step()
        # An env may raise on the actions that come of such weights, and end the whole batch.
        if isinstance(self.spec.action_space, Box) and not self._has_finite_weights().all():
            self._check()
        return returns

    def _check(self) -> None:
        """Drop the members of which a seed met a number that is not finite."""
        bad: dict[int, str] = {}
        rows = self.running.tolist()
        finite = self._has_finite_weights()
        for number in self.alive():
            places = torch.tensor([rows.index(row) for row in self.members[number]])
            seeds = [self.seeds[row] for row in self.members[number]]
            log = self.log.part(places)
            try:
                log.check(seeds, self.obs[places])
            except RunError as error:
                bad[number] = str(error)
                continue
            if not finite[places].all():
                # What they would do to an env could end the evaluation of all members.
                seed = seeds[int(torch.nonzero(~finite[places])[0])]
                bad[number] = f"weights of seed {seed} became non-finite by step {self.step:,}"
        for reason in bad.values():
            console.warning(f"one of the batch drops out: {reason}")
        if bad:
            self.drop(bad)

    def _evaluate(self, progress: console.Progress) -> None:
        """As Training does, then let `watch` decide who goes on."""
        with self._blaming(self.config.eval_episodes):
            super()._evaluate(progress)
        if self.watch is not None:
            self.watch(self)

    @contextmanager
    def _blaming(self, copies: int) -> Iterator[None]:
        """Note whose env raises within the context, where there are `copies` of it for each seed.

        The other envs have made that step, or have not: nothing can go on from there.
        """
        try:
            yield
        except RunError as error:
            if error.copy is not None:
                row = int(self.running[error.copy // copies])
                number = next(i for i, rows in enumerate(self.members) if row in rows)
                self.culprit = {number: str(error)}
            raise

    def _has_finite_weights(self) -> Tensor:
        """bool [S'], on the CPU: whether all weights of a seed's policy are finite."""
        finite = torch.ones(len(self.running), dtype=torch.bool, device=self.device)
        for weights in self.agent.policy.parameters():
            finite &= weights.isfinite().flatten(1).all(1)
        return finite.cpu()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows of an evaluation, each with its place in the batch."""
        places = self.running.tolist()
        self.output.log([row | {"row": place} for row, place in zip(rows, places, strict=True)])

    def _finish(self) -> float:
        """The members report for themselves; see `take_apart`."""
        return float("nan")


def take_apart(
    pack: Pack, number: int, config: DictConfig, run: Run, episodes: Episodes | None
) -> float:
    """Make the new, empty `run` that of a member, as if it had been trained alone.

    `number`: which member; `config`: its own config; `episodes`: the last evaluation of all rows,
    None where each member is judged alone. Returns the interquartile mean of the member's last
    evaluation while it learnt.
    """
    rows = pack.members[number]
    member = Training(build(Config, config, ""), pack.name)
    state.take_part(member, pack, rows)
    member.output = run
    member.tracking = Tracking(run, {})  # until the run is complete
    own = None
    if episodes is not None:
        own = Episodes(*(tensor[rows] for tensor in vars(episodes).values()))
    with run.writing(), console.only_progress():
        run.write_meta(compiled=pack.output.meta().get("compiled"), batch=len(pack.members))
        metrics = [row for row in pack.output.metrics() if row["row"] in rows]
        run.log([{key: row[key] for key in row if key != "row"} for row in metrics])
        _copy_checkpoints(pack, rows, member)
        member.began = time.monotonic()  # `wall_s` is the member's share of all before
        member.save()
        value = result.finish(member, member.wall_s, own)
    track_finished(run, member.trackers)
    return value


def _copy_checkpoints(pack: Pack, rows: Sequence[int], member: Training) -> None:
    """Save the member's policy at each step before the last of which the pack has a checkpoint."""
    checkpoints = pack.output.checkpoints
    for name in checkpoints.steps():
        counters = checkpoints.counters(name)
        if int(name) >= pack.step or not counters.get("lasting"):
            continue
        places = [counters["rows"].index(row) for row in rows]
        policy = {key: value[places] for key, value in checkpoints.load(name).items()}
        facts = {"seeds": [pack.seeds[row] for row in rows], "rows": list(range(len(rows)))}
        member.output.checkpoints.save(name, counters | facts, policy)
