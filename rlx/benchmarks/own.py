"""rlx's own training, timed as `rlx train` does it between two evaluations."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlx.agent import Agent
from rlx.benchmarks.timing import Clock, wait
from rlx.config import build, plain
from rlx.errors import ConfigError
from rlx.training.compiled import CACHE, cache_folder
from rlx.training.config import Config, validated
from rlx.training.loop import Training

NO_KERNELS = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::_local_scalar")
"""Beginnings of the names of operations that compute nothing."""
PICKING = ("index", "gather", "scatter", "take")
"""Words in the names of operations that read or write some elements of their first tensor."""


class Timed:
    """A training with its Log, stepped without evaluations and checkpoints.

    It is timed in whole cycles, from behind a vector step after which something was learnt to
    behind another: a rollout and what is learnt from it belong together.
    """

    def __init__(self, config: Config, name: str, clock: Clock):
        """Make the training of a config, and let it learn for the first time."""
        resident = resident_bytes()
        self.clock = clock
        self.training = Training(config, name)
        self.learnt = False
        """Whether something was learnt after the last vector step."""
        self._watch_learning()
        began = time.perf_counter()
        self._until_learnt()
        wait(self.training.device)
        self.first_s = time.perf_counter() - began
        """Seconds, by the wall clock, until it first learnt: compiling is most of it."""
        self.resident = max(0, resident_bytes() - resident)
        """Bytes by which the process grew."""

    def speed(self, seconds: float) -> float:
        """Environment steps per second, summed over seeds, in about so many seconds.

        A measurement in which something was compiled is made again.
        """
        while True:
            compiled = self._functions()
            steps, took = self.cycles(seconds)
            if self._functions() == compiled:
                return steps * self.training.num_envs * len(self.training.seeds) / took

    def cycles(self, seconds: float) -> tuple[int, float]:
        """Step for whole cycles, about so many seconds; returns (vector steps, seconds)."""
        wait(self.training.device)
        began = self.clock()
        steps = 0
        while True:
            self._vector_step()
            steps += 1
            if self.learnt and self.clock() - began >= seconds:
                wait(self.training.device)
                return steps, self.clock() - began

    def tensors(self) -> int:
        """Bytes of the tensors that the training keeps: networks, optimisers, memory, env, Log."""
        training = self.training
        kept = [
            *training.agent.parameters(),
            *training.agent.buffers(),
            *training.env.state_dict().values(),
            *training.log.state_dict().values(),
            *training.carry.values(),
            training.obs,
        ]
        storages = {}
        for value in kept:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def _vector_step(self) -> None:
        # An agent that is compiled from its `update` alone learns after every step.
        self.learnt = self.training.compiles and _has_update(self.training.agent)
        self.training._vector_step()

    def _until_learnt(self) -> None:
        """Step until something was learnt; ConfigError where that never happens."""
        training = self.training
        self.learnt = False
        while not self.learnt:
            if training.step >= training.config.steps:
                raise ConfigError(
                    f"steps={training.config.steps}: {training.name} learns nothing in so many."
                )
            self._vector_step()

    def _functions(self) -> int:
        """How many functions have been compiled so far."""
        compiled = self.training.compiled
        return 0 if compiled is None else len(compiled.calls)

    def _watch_learning(self) -> None:
        """Note in `learnt` when something is learnt."""
        agent = self.training.agent
        kind: Any = type(agent)
        name = "update" if _has_update(agent) else "due"

        def watched(agent: Any, *arguments: Any) -> Any:
            result = getattr(kind, name)(agent, *arguments)
            self.learnt = bool(result)
            return result

        # In a class: what an agent itself holds, a compiled step takes for state of the agent's.
        agent.__class__ = type(kind.__name__, (kind,), {name: watched})


@dataclass
class Stage:
    """What a part of a vector step takes, a mean over whole cycles."""

    name: str
    ms: float = 0.0
    """Milliseconds per vector step of all seeds."""
    kernels: float = 0.0
    """Operations per vector step that compute something: those that are no views."""
    megabytes: float = 0.0
    """The size of what these operations read and write."""


TOTAL = "all"
"""The stage that all others are a part of."""


class Stages(TorchDispatchMode):
    """Takes an eager training apart into act, env, store, learn and log.

    `watch`: further methods of the agent, whose stages are parts of others.
    """

    def __init__(self, timed: Timed, watch: Sequence[str]):
        super().__init__()
        self.timed = timed
        self.active: list[Stage] = []
        training: Any = timed.training
        parts = [(training.agent, name, f"within: {name}") for name in watch]
        parts += [(training.agent, "act", "act"), (training.env, "step", "env")]
        if _has_update(training.agent):
            parts.append((training.agent, "update", "store, learn"))
        else:
            parts.append((training.agent, "store", "store"))
        parts += [(training.log, "note", "log"), (training.log, "add", "log")]
        self.stages = {TOTAL: Stage(TOTAL)}
        for owner, method, name in parts:
            stage = self.stages.setdefault(name, Stage(name))
            setattr(owner, method, partial(self._call, stage, getattr(owner, method)))
        if not _has_update(training.agent):
            self._watch_parts(training.agent)

    def measure(self, seconds: float) -> list[Stage]:
        """The stages: first timed, for so many seconds, then counted, for one cycle."""
        total = self.stages[TOTAL]
        began = self.timed.clock()
        steps, _ = self.timed.cycles(seconds)
        total.ms = self.timed.clock() - began
        for stage in self.stages.values():
            stage.ms *= 1e3 / steps
        times = {name: stage.ms for name, stage in self.stages.items()}
        with self, self._within(total):
            steps, _ = self.timed.cycles(0.0)
        for name, stage in self.stages.items():
            stage.ms = times[name]
            stage.kernels /= steps
            stage.megabytes /= 1e6 * steps
        return list(self.stages.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count an operation."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view and not func.name().startswith(NO_KERNELS):
            moved: Any = (args, kwargs, result)
            if any(word in func.name() for word in PICKING):
                # The large tensor stays where it is.
                moved = (args[1:], kwargs, None if func._schema.is_mutable else result)
            size = sum(leaf.nbytes for leaf in tree_leaves(moved) if isinstance(leaf, Tensor))
            for stage in self.active:
                stage.kernels += 1
                stage.megabytes += size
        return result

    def _watch_parts(self, agent: Any) -> None:
        """Time the parts of learning that `agent.due` returns."""
        due = agent.due
        stage = self.stages.setdefault("learn", Stage("learn"))

        def watched() -> list[Callable[[], Any]]:
            return [partial(self._call, stage, part) for part in self._call(stage, due)]

        agent.due = watched

    def _call(self, stage: Stage, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method within its stage."""
        with self._within(stage):
            return method(*arguments)

    @contextmanager
    def _within(self, stage: Stage) -> Iterator[None]:
        """Count what happens within this to the stage; its time, in seconds, for now."""
        self.active.append(stage)
        wait(self.timed.training.device)
        began = self.timed.clock()
        try:
            yield
        finally:
            wait(self.timed.training.device)
            stage.ms += self.timed.clock() - began
            self.active.pop()


def _has_update(agent: Agent) -> bool:
    """Whether the agent defines `update`, instead of `store` and `due`."""
    return type(agent).update is not Agent.update


def config_of(composed: Mapping[str, Any], seeds: int, *, compiled: bool) -> Config:
    """The config of a training of so many seeds, without a stop rule; `composed`: bench.yaml's."""
    keys = {field.name for field in fields(Config)}
    node = {name: value for name, value in plain(composed).items() if name in keys}
    device = {**node["device"], "compile": "true" if compiled else "false"}
    return build(Config, validated({**node, "device": device, "seeds": seeds, "stop": None}), "")


def libraries() -> int:
    """How many compiled libraries the cache on disk holds."""
    folder = Path(os.environ.get(CACHE, cache_folder()))
    return sum(1 for _ in folder.rglob("*.so"))


def resident_bytes() -> int:
    """The memory that this process has; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 0
    import resource

    return pages * resource.getpagesize()
