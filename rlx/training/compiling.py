"""Whether a training's steps are compiled, and by what; importing this imports no compiler."""

import shutil
import subprocess
from typing import TYPE_CHECKING

from rlx import experiment
from rlx.envs.batched import BatchedEnv
from rlx.envs.view import View
from rlx.errors import ConfigError
from rlx.machine import compiler
from rlx.show import console

if TYPE_CHECKING:
    from rlx.training.loop import Training

LEAST_STEPS = 5_000
"""Vector steps from which on compiling is worth its time."""
LEAST_SEARCHES = 1_000
"""The same of an agent that searches: of 53 ms a step, of two seeds on `catch`, 29 are saved."""


def wanted(training: "Training") -> bool:
    """Whether to compile, by the config alone; ConfigError where it says so and cannot be."""
    mode = experiment.compile_mode(training.config.device)
    if mode == "false":
        return False
    reason = obstacle(training)
    if mode == "true":
        if reason is not None:
            raise ConfigError(f"device.compile=true: {reason}.")
        return True
    # Seeds that stop would each time ask for functions of another size.
    vector_steps = training.config.steps // training.num_envs
    least = LEAST_STEPS if training.agent.traceable else LEAST_SEARCHES
    return reason is None and training.stop is None and vector_steps >= least


def still_wanted(training: "Training", compiled: bool) -> bool:
    """Whether a resumed training, `compiled` before, is so again; a line says where it cannot."""
    reason = obstacle(training) if compiled else None
    if reason is not None:
        console.warning(
            f"the run was compiled, and goes on as it is written: {reason}; "
            "its numbers are rounded otherwise from here on"
        )
    return compiled and reason is None


def obstacle(training: "Training") -> str | None:
    """Why the vector steps cannot be compiled; None: nothing is known of."""
    kind = type(training.agent)
    if training.data is not None:
        return f"{kind.__name__} learns from a data set; compiled are agents that act"
    if not kind.traceable and training.device.type == "cuda":
        return f"{kind.__name__}'s learning is compiled on a CPU only"
    env = training.env
    while isinstance(env, View):
        env = env.env
    if not isinstance(env, BatchedEnv):
        return f"{type(env).__name__} does not step in torch"
    if training.device.type == "cpu" and shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler {compiler()[0]} here"
    return None


def by_what(training: "Training") -> str | None:
    """What the vector steps are compiled by; None: they are not compiled."""
    if not training.compiles:
        return None
    if training.device.type == "cuda":
        return "inductor, recorded as CUDA graphs"
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True)
    return f"inductor, {version.stdout.partition(chr(10))[0]}"


def description(training: "Training") -> str:
    """What the header says of compiling."""
    if training.compiles:
        return "yes: half a minute to some minutes the first time, seconds from then on"
    reason = obstacle(training)
    return "no" if reason is None else f"no: {reason}"


def begin(training: "Training") -> None:
    """Give a training, of the seeds that still learn, its compiled vector steps.

    Where they cannot be compiled they run as written, and a line says so; ConfigError where they
    must be compiled.
    """
    # Imported here: torch's compiler takes seconds.
    from rlx.training.compiled import compile_steps
    from rlx.training.traced import NotTraceable

    strict = experiment.compile_mode(training.config.device) == "true"
    try:
        training.compiled = compile_steps(training, strict=strict)
    except NotTraceable as error:
        if strict:
            raise ConfigError(f"device.compile=true: {error}.") from error
        console.warning(f"the steps cannot be compiled: {error}; they run as written")
        training.compiles = False
