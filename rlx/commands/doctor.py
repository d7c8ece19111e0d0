"""Say what this machine has and lacks; of a line, as env=pong device=cuda, whether it can train."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile

from omegaconf import DictConfig
from packaging.requirements import Requirement

from rlx.command import command
from rlx.commands.train import check
from rlx.composing import overrides_text
from rlx.errors import ConfigError, RunError
from rlx.machine import compiler, cores, cpu_name, existing_folder, free_memory
from rlx.names import one_line
from rlx.runs.versions import versions
from rlx.show import console

PROBES = {
    "box2d": ("import Box2D; print(Box2D.__version__)", 'pip install "gymnasium[box2d]"'),
    "atari": ("import ale_py; print(ale_py.__version__)", 'pip install "rlx[atari]"'),
    "mujoco": (
        "import mujoco, dm_control.suite; print(mujoco.__version__)",
        'pip install "rlx[dmc]"',
    ),
    "drawing": (
        "import gymnasium; env = gymnasium.make('CartPole-v1', render_mode='rgb_array');"
        "env.reset(); print('images of', env.render().shape)",
        'pip install "gymnasium[classic-control]"',
    ),
    "mujoco drawing": (
        "import rlx.envs.dmc, os; from dm_control import suite;"
        "suite.load('cartpole', 'balance').physics.render(8, 8);"
        "print('by', os.environ.get('MUJOCO_GL', 'a window'))",
        "apt install libegl1, or another MUJOCO_GL",
    ),
}
"""What is tried → the Python line that prints what there is, and what to do where it fails."""


@command("doctor")
def main(composed: DictConfig) -> None:
    """Prints what there is; RunError where the training of this config could not begin."""
    import torch

    made_by = versions()
    console.facts(
        rlx=f"{made_by['rlx']}, commit {made_by['commit'] or 'unknown'}",
        python=f"{made_by['python']}, {sys.executable}",
        torch=f"{torch.__version__}, {torch.get_num_threads()} threads where a run does not say",
        cuda=_cuda(),
        cpu=f"{cpu_name()}, {cores()} cores, {torch.backends.cpu.get_cpu_capability()}",
        memory=f"{free_memory() / 1e9:,.1f} GB free",
        compiler=_compiler(),
    )
    for name in PROBES:
        console.facts(**{name: _probed(name)})
    for extra, state in _extras().items():
        console.facts(**{f"[{extra}]": state})
    words = f"rlx train {overrides_text()}".strip()
    try:
        console.facts(outputs=_outputs(str(composed.outputs)))
        check(composed)
    except ConfigError as error:
        raise RunError(f"{words}: cannot be done here. {error}") from None
    console.facts(ready=words)


def _cuda() -> str:
    """The GPUs, or why there is none."""
    import torch

    if torch.version.cuda is None:
        return "not in this build of torch: https://pytorch.org/get-started says which has it"
    if not torch.cuda.is_available():
        return f"{torch.version.cuda}, but torch sees no GPU (nvidia-smi: does the driver?)"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}: {', '.join(names)}"


def _outputs(root: str) -> str:
    """How much can be written into the folder `root`; ConfigError where nothing can."""
    folder = existing_folder(root)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"outputs={root}: cannot be written ({error.strerror}).") from None
    return f"{root} can be written, {shutil.disk_usage(folder).free / 1e9:,.1f} GB free"


def _compiler() -> str:
    """The C++ compiler that device.compile needs on a CPU."""
    words = compiler()
    try:
        said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"no {words[0]}: trainings run as written, slower; apt install g++, or set CXX"
    return said.stdout.partition("\n")[0]


def _probed(name: str) -> str:
    """What a probe printed; where it failed, why, and what to do.

    It has a process of its own: a library that draws may end it.
    """
    code, remedy = PROBES[name]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | paths,
        )
    except subprocess.TimeoutExpired:
        return f"nothing within a minute; {remedy}"
    if probe.returncode == 0:
        return probe.stdout.strip()
    reason = one_line((probe.stderr.strip().splitlines() or [f"code {probe.returncode}"])[-1])
    return f"no ({reason}); {remedy}"


def _extras() -> dict[str, str]:
    """Extra of rlx → whether all that it needs is there, as the installed metadata has it."""
    try:
        metadata = importlib.metadata.metadata("rlx")
        requirements = [Requirement(text) for text in importlib.metadata.requires("rlx") or ()]
    except importlib.metadata.PackageNotFoundError:
        return {"extras": "unknown: rlx itself is not installed; pip install -e ."}
    states = {}
    for extra in metadata.get_all("Provides-Extra") or ():
        needed = [
            one for one in requirements if one.marker and one.marker.evaluate({"extra": extra})
        ]
        missing = [one.name for one in needed if not _is_there(one)]
        remedy = f'lacks {", ".join(missing)}; pip install "rlx[{extra}]"'
        states[extra] = remedy if missing else "there"
    return states


def _is_there(requirement: Requirement) -> bool:
    """Whether a package is installed, in a version that is asked for."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)
