"""Other programs that train the same: each a process of its own, timed in turn with rlx."""

import json
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

from rlx.agent import Agent, Spec
from rlx.config import load_class, plain, varying
from rlx.errors import ConfigError, RunError
from rlx.experiment import typed_env

SERVER = Path(__file__).with_name("peer.py")
"""What serves a program: it says what the files peer_name.py hold."""
SCRIPTS = sorted(SERVER.parent.glob("peer_*.py"))


class Program(NamedTuple):
    """A program that can train what is timed."""

    script: Path
    name: str
    one_seed: bool
    """Whether it trains one seed at a time."""
    python: str
    """The interpreter that has its packages."""
    differences: list[str]
    """How its training differs from rlx's."""


def settings(
    agent: Mapping[str, Any], env: Mapping[str, Any], spec: Spec, num_envs: int
) -> dict[str, Any]:
    """What a peer must know of a training: the config groups `agent` and `env`, and the sizes.

    ConfigError where the agent has a number for each seed.
    """
    values = plain(agent)
    for name in sorted(varying(load_class(agent, "agent", Agent).config_type)):
        if isinstance(values.get(name), list):
            raise ConfigError(
                f"agent.{name}={values[name]}: several numbers of seeds are timed; expected one "
                "value for all seeds."
            )
    return {
        "agent": values,
        "env_id": env_id(env),
        "max_episode_steps": spec.max_episode_steps,
        "obs_shape": list(spec.observation_space.shape or ()),
        "choices": _choices(spec),
        "num_envs": num_envs,
    }


def env_id(env: Mapping[str, Any]) -> str | None:
    """Gymnasium's id of the env of the config group `env`; None where it has no such env."""
    node = typed_env(env)
    if node["observe"] is not None or node["stack"] != 1 or node.get("drift"):
        return None
    kind = load_class(env, "env", object)
    name = node.get("id") or getattr(kind, "gymnasium_id", None)
    return name if name in gymnasium.registry else None


def _choices(spec: Spec) -> int | None:
    """The number of actions; None where they are continuous."""
    discrete = isinstance(spec.action_space, gymnasium.spaces.Discrete)
    return spec.actions if discrete else None


def find(settings: Mapping[str, Any], given: Sequence[str]) -> tuple[list[Program], dict[str, str]]:
    """The programs that can train this, and of the others why not, by name.

    Each runs in the first interpreter of `given`, or else this one, that has its packages.
    ConfigError where a given one is no interpreter, or none of its programs can train this.
    """
    programs = []
    refused = {}
    outcome: dict[str, list[str]] = {python: [] for python in given}
    for script in SCRIPTS:
        peer = runpy.run_path(str(script))
        python = next((one for one in [*given, sys.executable] if has(one, peer["NEEDS"])), None)
        reason = peer["refusal"](settings)
        if python is None:
            reason = f"{peer['NEEDS'][0]} is not installed; name its interpreter by peer_python=…"
        if reason is None:
            program = Program(
                script,
                peer["PROGRAM"],
                peer["ONE_SEED"],
                str(python),
                peer["differences"](settings),
            )
            programs.append(program)
        else:
            refused[peer["PROGRAM"]] = reason
        if python in outcome:
            outcome[str(python)].append(f"{peer['PROGRAM']} {reason}" if reason else "")
    for python, reasons in outcome.items():
        if not reasons:
            raise ConfigError(f"peer_python={python}: has none of {_packages()}.")
        if all(reasons):
            raise ConfigError(f"peer_python={python}: {'; '.join(reasons)}.")
    return programs, refused


def has(python: str, packages: Sequence[str]) -> bool:
    """Whether an interpreter has all `packages`; ConfigError where it is no interpreter."""
    question = "import importlib.util, sys; print(all(map(importlib.util.find_spec, sys.argv[1:])))"
    try:
        answer = subprocess.run(
            [python, "-P", "-c", question, *packages], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"peer_python={python}: is no Python interpreter ({error}).") from None
    if answer.stdout.strip() not in ("True", "False"):
        raise ConfigError(
            f"peer_python={python}: is no Python interpreter of version 3.11 or later."
        )
    return answer.stdout.strip() == "True"


def _packages() -> str:
    """The packages of all peers, one of each."""
    needs = [runpy.run_path(str(script))["NEEDS"][0] for script in SCRIPTS]
    return ", ".join(needs)


class Peer:
    """A running program with the trainings of some numbers of seeds."""

    def __init__(self, program: Program, settings: Mapping[str, Any], log: Path):
        """Start it; what it prints goes to the file `log`."""
        self.program = program
        self.log = log
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [program.python, "-P", str(SERVER), str(program.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        facts = self._ask(settings)
        self.version: str = facts["version"]
        self.first_s = {int(seeds): float(took) for seeds, took in facts["first_s"].items()}
        """Seconds until the first steps were made, compiling included, by number of seeds."""

    def speed(self, seeds: int, seconds: float) -> float:
        """Environment steps per second, summed over seeds, in about so many seconds."""
        return float(self._ask({"seeds": seeds, "seconds": seconds})["steps_per_s"])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question; RunError where the program failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            lines = self.log.read_text().strip().splitlines() or ["no reason given"]
            raise RunError(f"{self.program.name} failed: {lines[-1]} (all of it: {self.log})")
        return dict(json.loads(answer))
