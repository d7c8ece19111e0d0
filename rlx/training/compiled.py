"""A training's steps as compiled functions: the graphs of its `Memory`, built by a compiler.

Two runs of one config compute the same to the bit, compiled or not; but compiled they round
otherwise than operation by operation.
"""

import os
import shlex
import signal
import time
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from rlx import contract
from rlx.agent import Agent, Part
from rlx.errors import ConfigError, RunError
from rlx.machine import compiler
from rlx.names import one_line
from rlx.runs.files import write
from rlx.show import console
from rlx.training import products
from rlx.training.evaluating import CompiledEvaluation
from rlx.training.host import Reads
from rlx.training.traced import Call, Function, Memory, Place, trace
from rlx.vector_step import play

if TYPE_CHECKING:
    from rlx.training.loop import Training

Build = Callable[[fx.GraphModule, list[Tensor]], Callable[..., Sequence[Tensor]]]
"""How a graph becomes a function of its inputs, of which an example is given."""
OPTIONS = {"size_asserts": False}
"""Of inductor. No `max_autotune`: it chooses by a clock, and another run would round otherwise."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: where inductor keeps what it has compiled."""
CHEAP = 60.0
"""Seconds of unsaved work that a signal may cost: compiling can take minutes, and is ended then."""


def compile_steps(training: "Training", *, strict: bool) -> "CompiledSteps":
    """The compiled vector steps of a training; `strict`: raise what cannot be compiled."""
    # Otherwise inductor takes a folder for temporary files. Its commands break at a space.
    with suppress(OSError, RuntimeError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and " " not in str(folder):
            os.environ.setdefault(CACHE, str(folder))
    if training.device.type == "cuda":
        return CompiledSteps(training, recorded, strict=strict)
    _name_compiler()
    with _interruptible(training):
        cheaper = products.decompositions() | {torch.ops.aten.tanh.default: _tanh}
    return CompiledSteps(training, inductor, cheaper, strict=strict)


def cache_folder() -> Path:
    """The folder in which compiled functions are kept for the next run."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "rlx" / "compiled"


def _name_compiler() -> None:
    """Tell inductor of a compiler with options, as in CXX="g++ -m64": it takes one word only."""
    import torch._inductor.config

    words = compiler()
    if len(words) == 1:
        torch._inductor.config.cpp.cxx = (None, words[0])
        return
    command = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
    program = cache_folder() / f"compiler-{zlib.crc32(command.encode()):08x}"
    with suppress(OSError):
        program.parent.mkdir(parents=True, exist_ok=True)
        write(program, command)
        program.chmod(0o755)
        torch._inductor.config.cpp.cxx = (None, str(program))


def _tanh(x: Tensor) -> Tensor:
    """tanh by one exponential, to an absolute error of 1e-7, in half the time of inductor's own."""
    return 1 - 2 / ((2 * x).exp() + 1)


class CompiledSteps:
    """The vector steps of one training, each function of which is built when it is first needed."""

    def __init__(
        self,
        training: "Training",
        build: Build,
        decompositions: dict | None = None,
        *,
        strict: bool = False,
    ):
        """`decompositions`: as of `trace`; `strict`: raise what cannot be compiled.

        NotTraceable where the env does not step in torch.
        """
        self.training = training
        self.build = build
        self.decompositions = decompositions
        self.strict = strict
        self.steps = torch.tensor(training.step, device=training.device)
        """int64 []: environment steps that each seed has made."""
        places: list[Place] = [(vars(self), "steps")]
        places += [(vars(training.log), name) for name in ("running", "sum", "count", "bad")]
        places += [(vars(training), name) for name in ("obs", "first")]
        self.memory = Memory(training.agent, training.env, training.carry, places)
        self.compiles = True
        """Whether functions are compiled; if not, they run as they are written."""
        self.calls: dict[Hashable, Call] = {}
        self.metric_names: dict[Hashable, list[str]] = {}
        self.evaluation = CompiledEvaluation(self)

    def vector_step(self) -> Tensor:
        """Act, step, learn; as the training does it without being compiled, to rounding.

        Returns the returns so far [S', N] of the running episodes, those that ended included.
        """
        training = self.training
        returns = self._noted("step", self._step)[0]
        training.step += training.num_envs
        if type(training.agent).update is Agent.update:
            parts = training.agent.due()
            self._check_host()
            for part in parts:
                self._learn_part(part)
        return returns

    def _learn_part(self, part: Part) -> None:
        """Learn a part, compiled where it is a function that can be told from others."""
        key = _key(part, self.memory.owners)
        if key is not None:
            self._noted(key, partial(self._learn, part))
            return
        self._learn(part)
        self.memory.settle(self.memory.tensors)
        self._check_host()

    def _check_host(self) -> None:
        """After what is not compiled: keep the agent's tensors where they are.

        Where an attribute has changed that compiled functions have read, none is used any more.
        """
        changed = self.memory.reads.changed()
        if self.memory.moved():
            self.memory.settle(self.memory.tensors)
            if self.compiles and self.memory.moved():
                changed = changed or "a buffer that was None"
        if changed is None:
            return
        self.refuse(f"{changed} changes between steps, and is no buffer")
        self.memory.reads = Reads()
        self.calls = {}
        self.compiles = False

    def _step(self) -> list[Tensor]:
        """Act, step the env, store, count; the returns so far, as of `Log.add`."""
        training = self.training
        agent = training.agent
        played = play(agent, training.env, training.obs, training.first, training.carry)
        self.steps += training.num_envs
        if type(agent).update is Agent.update:
            agent.store(played.transition)
        else:
            self._note(agent.update(played.transition))
        training.obs = played.obs
        training.first = played.first
        training.carry.update(played.transition.carry)
        return [training.log.add(played.transition.reward, played.first)]

    def _learn(self, part: Part) -> list[Tensor]:
        """Learn a part, and note its metrics."""
        self._note(part())
        return []

    def _note(self, metrics: dict[str, Tensor]) -> None:
        """Note metrics; RunError where they have a wrong shape."""
        training = self.training
        contract.check_metrics(training.agent, metrics, training.first.shape)
        training.log.note(metrics, self.steps)

    def _noted(self, key: Hashable, function: Function) -> Sequence[Tensor]:
        """Call `function` in its compiled form, which returns the metrics that it notes as well."""
        log = self.training.log

        def with_metrics() -> list[Tensor]:
            former = log.metrics
            log.metrics = {}
            try:
                outputs = function()
                self.metric_names[key] = list(log.metrics)
                return [*outputs, *log.metrics.values()]
            finally:
                log.metrics = former

        values = self._call(key, with_metrics)
        names = self.metric_names[key]
        others = len(values) - len(names)
        log.metrics |= dict(zip(names, values[others:], strict=True))
        return values[:others]

    def _call(self, key: Hashable, function: Function) -> Sequence[Tensor]:
        """Call `function` in its compiled form."""
        if key not in self.calls:
            self.calls[key] = self._built(key, function)
        return self.calls[key]()

    def _built(self, key: Hashable, function: Function) -> Call:
        """`function` in its compiled form; where that cannot be, as it is, and a line says so."""
        searches = key == "step" and not self.training.agent.traceable
        if searches or not self.compiles:
            return partial(self._as_written, function)
        name = key if isinstance(key, str) else key[1].__name__  # type: ignore[index]
        call = self.compile(name, self.memory, function)
        return call or partial(self._as_written, function)

    def compile(self, name: str, memory: Memory, function: Function) -> Call | None:
        """`function` of `memory`, compiled; None where that cannot be, and a line says so."""
        began = time.monotonic()
        if console.terminal.is_terminal:
            console.facts(compiling=f"{name} …")
        try:
            with _interruptible(self.training):
                graph = trace(memory, function, self.decompositions)
                call = _bound(graph, memory.tensors, self.build)
        except RunError:
            raise
        except Exception as error:
            if self.training.signal:  # Ctrl-C has reached the compiler too
                raise KeyboardInterrupt from error
            self.refuse(f"{name} cannot be compiled: {one_line(error)}", error)
            return None
        took = time.monotonic() - began
        self.training.has_compiled(took)
        console.facts(compiled=f"{name}, {took:.1f} s")
        return call

    def refuse(self, reason: str, error: Exception | None = None) -> None:
        """Say why something runs as it is written; ConfigError where it must not."""
        if self.strict:
            raise ConfigError(f"device.compile=true: {reason}.") from error
        console.warning(f"{reason}; it runs as it is written")

    def _as_written(self, function: Function) -> Sequence[Tensor]:
        """Call `function`, and keep all tensors where they are."""
        training = self.training
        # An agent may hold on to what it is given; what lies at a place is overwritten.
        training.obs = training.obs.clone()
        training.first = training.first.clone()
        training.carry |= {name: value.clone() for name, value in training.carry.items()}
        outputs = function()
        self.memory.settle(self.memory.tensors)
        return outputs


@contextmanager
def _interruptible(training: "Training") -> Iterator[None]:
    """Let SIGINT and SIGTERM end a training that compiles at once, if that loses little."""
    if time.monotonic() - training.saved_at < CHEAP:
        with training.interrupted_at_once():
            yield
        return
    # Held back in the compiler too, which Ctrl-C would reach as well.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def interpreted(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph as it is, one operation after another: equal to what was traced, bit for bit."""
    return graph


def inductor(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph as a compiled library, whose operations are fused."""
    import torch._inductor
    import torch._inductor.config

    on_cpu = inputs[0].device.type == "cpu"
    if on_cpu:
        _keep_scales(graph)
    options = OPTIONS | {"cpp_wrapper": on_cpu}
    with (
        torch.no_grad(),
        torch._inductor.config.patch(options),
        warnings.catch_warnings(action="ignore", category=UserWarning),
    ):
        return torch._inductor.compile(graph, list(inputs))


def _keep_scales(graph: fx.GraphModule) -> None:
    """Have numbers of each seed [S], which scale larger tensors, computed once and kept.

    inductor would compute them, pow and sqrt and all, for every few elements that they scale:
    Adam's took half of its time. It keeps what is seen by strides.
    """
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.unsqueeze.default):
        scale = node.args[0]
        tags = getattr(scale.target, "tags", ())
        if torch.Tag.pointwise not in tags or scale.target._schema.is_mutable:
            continue
        if scale.meta["val"].dim() == 1:
            with graph.graph.inserting_before(node):
                arguments = (scale, [*scale.meta["val"].shape], [1])
                kept = graph.graph.call_function(torch.ops.aten.as_strided.default, arguments)
            node.replace_input_with(scale, kept)
    graph.recompile()


def recorded(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph compiled for a GPU, and its kernels recorded as one CUDA graph.

    What it returns lies at one place, and the next call overwrites it.
    """
    call = inductor(graph, inputs)
    before = [tensor.clone() for tensor in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # A recording must not be the first call: kernels are loaded, and memory is asked for, there.
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(2):
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    for tensor, value in zip(inputs, before, strict=True):
        tensor.copy_(value)
    kernels = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(kernels):
        outputs = call(*inputs)

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        kernels.replay()
        return outputs

    return replay


def _bound(graph: fx.GraphModule, tensors: Sequence[Tensor], build: Build) -> Call:
    """The function that `build` makes of `graph`, called with those of `tensors` that it needs."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    needed = []
    for node, tensor in zip(inputs, tensors, strict=True):
        if node.users:
            needed.append(tensor.detach())
        else:
            graph.graph.erase_node(node)
    graph.recompile()
    return partial(_without_gradients, build(graph, needed), needed)


def _without_gradients(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Call `function`; the graph has its gradients inside."""
    with torch.no_grad():
        return function(*inputs)


def _key(part: Part, owners: Sequence[object]) -> Hashable | None:
    """What tells a part of learning from others; None: it is called as it is.

    `owners`: whose methods can be compiled. Others may be gone when the next has their id.
    """
    method = part.func if isinstance(part, partial) else part
    owner = getattr(method, "__self__", None)
    if owner is None or all(owner is not known for known in owners):
        return None
    arguments: list[tuple[str, object]] = []
    if isinstance(part, partial):
        arguments = [("", value) for value in part.args]
        arguments += sorted(part.keywords.items())
    constants = (bool, int, float, str, type(None))
    if not all(isinstance(value, constants) for _, value in arguments):
        return None
    # 1, 1.0 and True are equal, and a method may be the one that it overrides.
    typed = tuple((name, type(value), value) for name, value in arguments)
    return id(owner), method.__func__, typed  # type: ignore[union-attr]
