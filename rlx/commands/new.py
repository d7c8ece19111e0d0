"""Begin an agent, env or attack of your own: rlx new agent mine writes its two files."""

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from rlx.command import command
from rlx.conf import group_files, user_dir
from rlx.config import build, choice
from rlx.errors import ConfigError
from rlx.show import console


@dataclass(frozen=True)
class Config:
    """The keys of new.yaml."""

    what: Any
    """agent, env or attack, and its name."""


class Template(NamedTuple):
    """What a file begins with; NAME and CLASS stand for those of the new one."""

    python: str
    yaml: str
    next: str
    """The command lines that try it."""


AGENT = Template(
    python='''"""NAME: a DQN with a key of its own."""

from dataclasses import dataclass, replace

from rlx.agent import Transition
from rlx.agents import dqn
from rlx.config import Positive


@dataclass(frozen=True)
class Config(dqn.Config):
    reward_scale: Positive
    """What rewards are multiplied by before it learns from them."""


class CLASS(dqn.DQN):
    config_type = Config

    def store(self, transition: Transition) -> None:
        reward = transition.reward * self.config.reward_scale
        super().store(replace(transition, reward=reward))
''',
    yaml="""defaults: [dqn, _self_]
_target_: NAME.CLASS
reward_scale: 1.0
""",
    next="rlx check agent=NAME; rlx train agent=NAME env=cartpole tuned=dqn-cartpole",
)
ENV = Template(
    python='''"""NAME: walk up to 1; every step costs 1."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics


@dataclass(frozen=True)
class CLASS(Dynamics):
    """State [B, 1] of all copies at once: the place, from -2 to 2."""

    step: float
    """How far an action moves."""

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Discrete(2)
    max_episode_steps = 100
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        return draws - 0.5

    def transition(self, state: Tensor, action: Tensor, draws: Tensor):
        move = (action * 2 - 1).unsqueeze(-1) * self.step
        state = (state + move).clamp(-2, 2)
        terminated = state[:, 0] >= 1
        return state, -torch.ones_like(state[:, 0]), terminated

    def observe(self, state: Tensor) -> Tensor:
        return state
''',
    yaml="""_target_: NAME.CLASS
step: 0.1
""",
    next="rlx check env=NAME; rlx train agent=dqn env=NAME",
)
ATTACK = Template(
    python='''"""NAME: one step of an observation against the gradient, of a part of the radius."""

from dataclasses import dataclass

from torch import Tensor

from rlx.agent import Scores
from rlx.config import Share
from rlx.objective import Objective
from rlx.threat import Attack, Budget, Draw


@dataclass(frozen=True)
class CLASS(Attack):
    part: Share
    """How much of the radius it uses."""

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        gradient, _, _ = Objective("ce", None).gradient(scores, obs, None)
        return budget.project(obs + self.part * budget.radius * gradient.sign(), obs)
''',
    yaml="""_target_: NAME.CLASS
part: 1.0
""",
    next="rlx attack attack=NAME eps=0:0.1:0.05",
)
TEMPLATES = {"agent": AGENT, "env": ENV, "attack": ATTACK}


@command("new")
def main(composed: DictConfig) -> None:
    """Writes NAME.py where the user stands, and conf/<group>/NAME.yaml beside it."""
    words = build(Config, composed, "").what
    if not isinstance(words, list) or len(words) != 2:
        raise ConfigError("rlx new: name a kind and a name, as in: rlx new agent mine")
    group = choice(str(words[0]), TEMPLATES, "what")
    name = str(words[1])
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    template = TEMPLATES[group]
    _check(group, name, class_name, template.python)
    conf = user_dir() or Path("conf")
    texts = {
        conf.parent / f"{name}.py": template.python,
        conf / group / f"{name}.yaml": template.yaml,
    }
    for file in texts:
        if file.exists():
            raise ConfigError(f"{file}: is there already.")
    written: list[Path] = []
    try:
        for file, text in texts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "x") as opened:
                written.append(file)
                opened.write(text.replace("NAME", name).replace("CLASS", class_name))
    except OSError as error:
        for file in written:
            file.unlink()
        raise ConfigError(f"{error.filename}: cannot be written ({error.strerror}).") from None
    console.facts(wrote=", ".join(map(str, texts)))
    for line in template.next.replace("NAME", name).split("; "):
        console.facts(next=line)


def _check(group: str, name: str, class_name: str, python: str) -> None:
    """ConfigError where the new files cannot have this name, or would hide something."""
    said = f"rlx new {group} {name}"
    if not (name.isidentifier() and name.isascii() and class_name.isidentifier()):
        raise ConfigError(f"{said}: is no name in Python; expected one such as my_{group}.")
    if keyword.iskeyword(name) or keyword.iskeyword(class_name):
        raise ConfigError(f"{said}: is a word of Python's; expected a name such as my_{group}.")
    if name in group_files(group):
        raise ConfigError(f"{said}: there is {group}={name} already; take another name.")
    if re.search(rf"\b{class_name}\b", python.replace("CLASS", "")):
        raise ConfigError(f"{said}: its file imports {class_name} already; take another name.")
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{said}: there is a Python module {name} already; take another name.")
