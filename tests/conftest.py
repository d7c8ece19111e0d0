"""Shared: running the real command line in this process, and small trained runs."""

import copy
import functools
import json
import os
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from rlx import cli
from rlx.agent import Agent, OfflineAgent
from rlx.conf import conf_dir
from rlx.config import load_class
from rlx.experiment import env_spec
from rlx.show import figures

torch.set_num_threads(1)

TINY = (
    "steps=600",
    "eval_every=300",
    "eval_episodes=2",
    "final_episodes=5",
    "num_envs=4",
    "checkpoint_every=300",
)


class Result:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        """What a failed test shows of it."""
        return f"<exit code {self.code}; {self.err.strip()[-600:] or self.out.strip()[-600:]}>"

    @property
    def run(self) -> Path:
        """The run directory: the last line of its output."""
        return Path(self.out.strip().splitlines()[-1])

    @property
    def summary(self) -> dict:
        """Its summary.json."""
        return json.loads((self.run / "summary.json").read_text())


def pytest_addoption(parser):
    parser.addoption(
        "--trials",
        type=int,
        default=1,
        help="how often runs are killed, each time at another moment",
    )
    parser.addoption(
        "--rounding", type=int, default=0, help="which other machine's rounding to pretend"
    )


@pytest.fixture(autouse=True, scope="session")
def another_rounding(request):
    """With --rounding: each element of a matrix product or convolution is off by an ulp or two.

    By how many depends on the product's shape and the element's place in it, as BLAS libraries
    differ. Equal shapes still give equal bits.
    """
    machine = request.config.getoption("--rounding")
    if not machine:
        yield
        return

    @functools.cache
    def noise(shape: torch.Size) -> torch.Tensor:
        """Whole numbers from -2 to 2, the same whenever this shape is asked for."""
        generator = torch.Generator().manual_seed(hash((machine, tuple(shape))) % 2**31)
        return torch.randint(-2, 3, shape, generator=generator)

    def rounded(product):
        @functools.wraps(product)
        def call(*arguments, **options):
            out = product(*arguments, **options)
            size = out.detach().abs()
            ulp = torch.finfo(out.dtype).eps / 2
            off = noise(out.shape) * ulp * (size + 0.2 * size.mean(-1, keepdim=True) * (size > 0))
            return out + off.to(out.dtype)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((torch, "bmm"), (torch, "baddbmm"), (torch.nn.functional, "conv2d")):
            patch.setattr(module, name, rounded(getattr(module, name)))
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process begins with a half of its own, and takes of the other's when it is done.

    xdist's default hands tests out in advance, and a few take a hundred times as long as most.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


SAVE = figures.save


@pytest.fixture(autouse=True, scope="session")
def quick():
    """Commands do not wait for the disk, and write blank figures: see `real_figures`.

    Nothing here cuts the power, and half of the time of a short run went into its figure.
    """

    def blank(figure, path: Path) -> None:
        Image.new("RGB", (8, 8)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(figures, "save", blank)
        yield


@pytest.fixture
def real_figures(monkeypatch):
    """Figures are written as a user gets them."""
    monkeypatch.setattr(figures, "save", SAVE)


@pytest.fixture(autouse=True)
def seeded():
    """Tests that draw from torch's own generator draw the same every time."""
    torch.manual_seed(0)


@pytest.fixture
def rlx(capsys, tmp_path, monkeypatch):
    """rlx("train", "steps=100") runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    """A folder of short runs: two hDQN on Acrobot (3 and 2 seeds), one DQN on CartPole (2)."""
    root = tmp_path_factory.mktemp("runs")
    acrobot = "env.max_episode_steps=100"
    for extra in (
        ("seeds=3", acrobot),
        ("seeds=7:9", acrobot),
        ("agent=dqn", "env=cartpole", "seeds=2"),
    ):
        learn = ("agent.learning_starts=100", "agent.hidden=[16]", "agent.replay_ratio=0.25")
        assert cli.run(["train", *TINY, *learn, *extra, f"outputs={root}"]) == 0
    return root


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory):
    """(folder, output) of a finished sweep of two jobs, below outputs/."""
    from test_sweeps import RATES, SMALL

    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.chdir(folder)
        assert cli.run(["train", "-m", *SMALL, RATES]) == 0
    return folder, out.getvalue()


@pytest.fixture
def done(rlx, finished_sweep, tmp_path):
    """What the command of `finished_sweep` did, in the folder of the test."""
    folder, out = finished_sweep
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return Result(0, out, "")


@pytest.fixture
def composed():
    """composed("train", "agent=dqn") is the config that `rlx train agent=dqn` would get."""
    return compose


def compose(command: str, *overrides: str):
    return copy.deepcopy(_composed(command, *overrides))


@functools.cache
def _composed(command: str, *overrides: str):
    import hydra

    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        return hydra.compose(command, list(overrides))


def apart(one: dict, other: dict, before: dict) -> float:
    """How far two states of a learner are apart, as a share of what `other` changed since `before`.

    Of the worst tensor, in norms: rounding may turn the sign of a gradient that is next to nothing,
    and Adam then makes a whole step of it.
    """
    worst = 0.0
    for name, value in other.items():
        off = (one[name].double() - value.double()).norm()
        changed = (value.double() - before[name].double()).norm() + 1e-6 * value.double().norm()
        worst = max(worst, float(off / changed.clamp_min(1e-12)))
    return worst


AGENTS = sorted(path.stem for path in Path(conf_dir(), "agent").glob("*.yaml"))
ENVS = {
    "acrobot": ("env.max_episode_steps=20",),
    "chain": (),
    "pendulum": (),
    "gym": ("env.id=CartPole-v1",),
    "tic_tac_toe": ("env.opponent=self",),
    "cartpole_frames": (),
    "mini_breakout": ("env.max_episode_steps=20",),
}
"""Envs of every kind, and overrides that make their episodes short."""


def fits(agent: str, env: str) -> bool:
    """Whether the agent can learn in the env."""
    kind = load_class(compose("train", f"agent={agent}").agent, "agent", Agent)
    spec = env_spec(compose("train", f"env={env}", *ENVS[env]).env)
    is_image = len(spec.observation_space.shape or ()) == 3
    if issubclass(kind, OfflineAgent):  # tests/test_bcq.py
        return False
    if kind.games or spec.rules is not None:
        return kind.games and spec.rules is not None
    if is_image:  # agents with convolutions, each with one of the two
        return (agent, env) in (
            ("dqn", "cartpole_frames"),
            ("ppo", "cartpole_frames"),
            ("efficientzero", "mini_breakout"),
        )
    observes = isinstance(spec.observation_space, kind.observations)
    return observes and isinstance(spec.action_space, kind.actions)


PAIRS = [(agent, env) for agent in AGENTS for env in ENVS if fits(agent, env)]
"""Every agent in every env that it can learn in."""
SMALL = {
    "learning_starts": 32,
    "hidden": "[16]",
    "replay_ratio": 0.5,
    "buffer_size": 400,
    "epsilon_steps": 500,
    "rollout_steps": 16,
    "latent": 8,
    "lstm": 8,
    "projection": 16,
    "simulations": 4,
    "reanalyse": 0.25,
    "head": 8,
    "batch_size": 8,
    "conv": "[[4,8,8]]",
    "anneal_steps": 600,
    "epochs": 2,
    "minibatches": 2,
    "initial_value": 0.1,
}
"""Values of keys with which an agent learns soon and quickly."""


def stop_rule(window: int, solved: int) -> str:
    """A stop rule: `solved` over `window` episodes; it gives no seed of CartPole up."""
    return (
        f"stop={{window: {window}, solved: {solved}, give_up_from: 400, give_up_every: 10, "
        "give_up_below: 0, episodes: 500}"
    )


def small(agent: str, **changes: object) -> list[str]:
    """Overrides that make an agent learn soon and quickly: those of its own keys."""
    keys = compose("train", f"agent={agent}").agent
    values = SMALL | changes
    if "simulations" in keys and "replay_ratio" not in changes:
        values["replay_ratio"] = 0.1  # a learner step is a hundred of the others'
    return [f"agent.{key}={value}" for key, value in values.items() if key in keys]
