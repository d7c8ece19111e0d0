"""Every file of conf/ is composed with a partner that it is meant for, and is built."""

import importlib
import itertools
import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, compose, small
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf

from rlx.agent import Agent, OfflineAgent
from rlx.commands import attack as attack_command
from rlx.commands import bench as bench_command
from rlx.commands.train import Config as TrainConfig
from rlx.conf import conf_dir, group_files
from rlx.config import build, load_class, plain
from rlx.data.writer import Writer
from rlx.errors import ConfigError
from rlx.experiment import env_spec, make_agent, make_env, setup_device
from rlx.nn.rng import seed_tensor
from rlx.runs.finding import find
from rlx.runs.run import Run
from rlx.show import figures
from rlx.threat import Threat
from rlx.training.loop import Training
from rlx.victims.files import Victims
from rlx.victims.subjects import Subjects

CONF = Path(conf_dir())


def names(group: str) -> list[str]:
    """The options of a config group; "" stands for the commands."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


AGENTS, ENVS, ATTACKS = names("agent"), names("env"), names("attack")
NEEDS = {"gym": ("env.id=CartPole-v1",), "atari": ("env.game=pong",), "dmc": (), "dmc_state": ()}
"""What an env leaves to its user."""
PARTNERS = ("cartpole", "chain", "tic_tac_toe", "pendulum")
"""One of them suits every agent."""


def env_overrides(name: str) -> list[str]:
    """The overrides that choose an env, which is skipped where this machine lacks its package."""
    config = compose("train", f"env={name}", *NEEDS.get(name, ())).env
    if "atari" in config._target_:
        pytest.importorskip("ale_py")
    if "dmc" in config._target_:
        pytest.importorskip("dm_control")
    if name == "attacked":
        pytest.skip("needs victims; see tests/test_attacked_env.py")
    return [f"env={name}", *NEEDS.get(name, ())]


def agent_class(name: str) -> type[Agent]:
    """The class of an option of the group `agent`."""
    return load_class(compose("train", f"agent={name}").agent, "agent", Agent)


def natural_env(agent: str) -> list[str]:
    """Overrides of an env that the agent can learn in."""
    kind = agent_class(agent)
    for name in PARTNERS:
        overrides = [f"env={name}"]
        if name == "tic_tac_toe":
            overrides.append("env.opponent=self")
        spec = env_spec(compose("train", *overrides).env)
        if kind.games and spec.rules is None:
            continue
        observes = isinstance(spec.observation_space, kind.observations)
        if observes and isinstance(spec.action_space, kind.actions):
            return overrides
    raise AssertionError(f"agent={agent} fits none of {PARTNERS}; add an env for it")


def cheap(composed: DictConfig) -> list[str]:
    """Overrides that spare memory and change nothing else: one seed, a small replay."""
    keys = composed.agent
    sizes = {"buffer_size": 512, "learning_starts": 64}
    return ["seeds=1", *(f"agent.{key}={value}" for key, value in sizes.items() if key in keys)]


@pytest.fixture
def data_set(tmp_path):
    """data_set(env config) is a folder with two episodes of random observations of that env."""

    def make(env: DictConfig) -> Path:
        bare = OmegaConf.merge(env, {"stack": 1}) if "stack" in env else env
        single = make_env(bare, 1, "cpu")
        space, actions = single.single_observation_space, single.single_action_space
        assert isinstance(actions, spaces.Discrete)
        space.seed(0)
        writer, rng = Writer(str(tmp_path / "set")), np.random.default_rng(0)
        for _ in range(2):
            obs = np.stack([np.nan_to_num(space.sample()) for _ in range(9)])
            writer.add(obs, rng.integers(int(actions.n), size=8), np.ones(8, np.float32), True)
        writer.close(OmegaConf.to_container(env, resolve=True), 1, ["random"])
        return tmp_path / "set"

    return make


def built(data_set, *overrides: str) -> Training:
    """All that `rlx train` builds before it writes anything, of these overrides."""
    composed = compose("train", *overrides)
    kind = load_class(composed.agent, "agent", Agent)
    rest = cheap(composed)
    if issubclass(kind, OfflineAgent):
        rest.append(f"data={data_set(composed.env)}")
    training = Training(build(TrainConfig, compose("train", *overrides, *rest), ""), "test")
    with torch.no_grad():
        action, _ = training.agent.policy.act(training.obs, training.first, training.carry)
    assert action.shape[:2] == training.obs.shape[:2]
    assert training.env.single_action_space.contains(action[0, 0].numpy())
    return training


def test_the_folders_are_all_known():
    """A new group needs a test here."""
    tested = {
        "agent",
        "attack",
        "bench",
        "defence",  # tests/test_defences.py
        "device",
        "effort",
        "env",
        "experiment",
        "figure",  # tests/test_figures.py
        "hydra",  # launchers: tests/test_vector.py
        "help",  # synonyms: tests/test_kinds.py
        "preset",
        "protocol",
        "reference",  # scales: tests/test_scale.py
        "search",  # tests/test_tuning.py
        "tracker",  # tests/test_trackers.py
        "tuned",
    }
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == tested


@pytest.mark.parametrize("name", names(""))
def test_commands(name):
    composed = compose(name)
    missing = [f"{key}=x" for key in OmegaConf.missing_keys(composed)]
    module = importlib.import_module(f"rlx.commands.{name}")
    assert callable(module.main)
    if hasattr(module, "Config"):
        build(module.Config, compose(name, *missing), "")


@pytest.mark.parametrize("name", AGENTS)
def test_agents(name, data_set):
    training = built(data_set, f"agent={name}", *natural_env(name))
    assert isinstance(training.agent, agent_class(name))


@pytest.mark.parametrize("name", ENVS)
def test_envs(name, data_set):
    overrides = env_overrides(name)
    spec = env_spec(compose("train", *overrides).env)
    agent = "dqn" if isinstance(spec.action_space, spaces.Discrete) else "ppo"
    training = built(data_set, f"agent={agent}", *overrides, "~tuned", "num_envs=2")
    for _ in range(3):
        training._vector_step()
    assert training.step == 6


@pytest.mark.parametrize("effort", names("effort"))
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, effort):
    composed = compose("attack", f"attack={name}", f"effort={effort}")
    kind = load_class(composed.attack, "attack", Threat)
    assert isinstance(build(kind, composed.attack, "attack"), kind)
    build(attack_command.Config, composed, "")


@pytest.mark.parametrize("name", names("device"))
def test_devices(name):
    node = compose("train", f"device={name}").device
    assert node.name == name
    if name == "cuda" and not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            setup_device(node)
        return
    device = setup_device(node)
    assert device.type == ("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    assert torch.backends.cudnn.deterministic, "the same command gives the same images' gradients"


@pytest.fixture
def four_gpus(monkeypatch):
    """A torch that sees four GPUs; returns those that were made its current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_gpu_is_chosen_by_its_number(four_gpus):
    node = compose("train", "device=cuda", "++device.index=3").device
    assert setup_device(node) == torch.device("cuda", 3) and four_gpus == [3]
    node = compose("train", "device=auto").device
    assert setup_device(node) == torch.device("cuda") and four_gpus == [3]
    for index, message in (
        (4, "device.index=4: torch sees GPUs 0 to 3 here."),
        (-1, "device.index=-1: must be at least 0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            setup_device(compose("train", "device=cuda", f"++device.index={index}").device)


def test_an_attack_is_played_on_a_gpu_where_policies_see_images(four_gpus):
    """Searches of small operations are done sooner on a CPU; what the user says is done."""
    zoo = Subjects((find("zoo:hdqn-acrobot", "outputs"),), None)

    def in_env(name):
        return Subjects((), Victims((), plain(compose("train", f"env={name}").env), None))

    for subjects, keys, kind in (
        (zoo, ("device=auto",), "cpu"),
        (zoo, ("device=cuda",), "cuda"),
        (zoo, ("device=auto", "device.index=1"), "cuda"),
        (in_env("mini_breakout"), ("device=auto",), "cpu"),
        (in_env("cartpole_frames"), ("device=auto",), "cuda"),
        (in_env("cartpole_frames"), ("device=cpu",), "cpu"),
    ):
        assert subjects.attacking_device(compose("attack", *keys).device).type == kind, keys


def test_the_processes_of_a_pool_take_one_gpu_each(four_gpus, monkeypatch):
    node = compose("train", "device=auto").device
    for number, index in ((1, 0), (2, 1), (4, 3), (5, 0)):
        monkeypatch.setattr(multiprocessing.current_process(), "_name", f"LokyProcess-{number}")
        assert setup_device(node) == torch.device("cuda", index)
    chosen = compose("train", "device=auto", "++device.index=2").device
    assert setup_device(chosen) == torch.device("cuda", 2)


def test_the_cpu_has_no_number():
    with pytest.raises(ConfigError, match=r"^device\.index=0: .*the CPU; leave it out"):
        setup_device(compose("train", "device=cpu", "++device.index=0").device)


def parts(stem: str) -> tuple[str, str]:
    """(agent, env) of a file's name."""
    pairs = itertools.product(AGENTS, ENVS)
    found = [(agent, env) for agent, env in pairs if stem == f"{agent}-{env}"]
    assert len(found) == 1, f"{stem}: not the name of an agent, a dash, the name of an env"
    return found[0]


@pytest.mark.parametrize("name", names("tuned"))
def test_tuned_settings(name, data_set):
    agent, env = parts(name)
    overrides = [f"agent={agent}", *env_overrides(env)]
    defaults = compose("train", *overrides, "~tuned")
    assert compose("train", *overrides) != defaults, "it changes something"
    training = built(data_set, *overrides)
    assert isinstance(training.agent, agent_class(agent))


@pytest.mark.parametrize("name", names("preset"))
def test_presets(name, data_set):
    stem = name.removesuffix("-source")
    if stem in ATTACKS:
        composed = compose("attack", f"attack={stem}", "protocol=source")
        assert composed.protocol == "source" and composed != compose("attack", f"attack={stem}")
        kind = load_class(composed.attack, "attack", Threat)
        build(kind, composed.attack, "attack")
        return
    if stem != name:
        agent, env = parts(stem)
        training = built(data_set, f"agent={agent}", *env_overrides(env), "protocol=source")
        assert training.config.protocol == "source"
        return
    (agent,) = [agent for agent in AGENTS if stem.startswith(f"{agent}-")]
    own = OmegaConf.load(CONF / "preset" / f"{name}.yaml").agent
    training = built(
        data_set, f"agent={agent}", *env_overrides("pong"), f"preset@_global_={name}", "~tuned"
    )
    for key in own:
        if key not in ("buffer_size", "learning_starts"):
            assert training.config.agent[key] == own[key], key


@pytest.mark.parametrize("name", names("experiment"))
def test_experiments(name, data_set):
    overrides = [f"experiment={name}"]
    if "\nlines:" in group_files("experiment")[name].read_text():
        for line in compose("study", *overrides).lines.values():
            verb, *words = [word for word in line.split() if word[0] != "{"]
            single = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in words]
            compose(verb, *single)
        return
    if OmegaConf.missing_keys(compose("train", *overrides)):
        overrides += env_overrides("atari")[1:]
    built(data_set, *overrides)


@pytest.mark.parametrize("name", names("protocol"))
def test_protocols(name, data_set):
    # The default agent and env have settings of both.
    assert built(data_set, f"protocol={name}").config.protocol == name


@pytest.mark.parametrize("name", names("bench"))
def test_benchmarks(name):
    agent, env = (name, "acrobot") if name in AGENTS else parts(name)
    overrides = [f"agent={agent}", *env_overrides(env)]
    composed = compose("bench", *overrides)
    defaults = compose("bench", *overrides, "~bench@agent", "~bench@_global_")
    assert composed != defaults, "it changes something"
    config = build(bench_command.Config, composed, "")
    rest = [f"agent.{key}=512" for key in ("buffer_size",) if key in config.agent]
    composed = compose("bench", *overrides, *rest)
    make_agent(composed.agent, env_spec(composed.env), seed_tensor([0]), composed.num_envs)


def printed(text: str) -> dict[str, list[str]]:
    """The rows of a printed table: first column → the others."""
    table = {}
    for line in text.splitlines():
        if "│" in line:
            first, *rest = (cell.strip() for cell in line.strip("│| ").split("│"))
            table[first] = rest
    return table


def test_drift_draws_the_policy_that_learns_beside_the_one_that_stopped(
    rlx, monkeypatch, real_figures
):
    drifting = ("env=cartpole_drift", "env.drift.begin=80", "env.drift.end=120")
    trained = rlx(
        "train",
        "agent=ppo",
        *drifting,
        *TINY,
        *small("ppo", learning_rate=0.02),
        "seeds=2",
        "eval_episodes=3",
    )
    lines_drawn = []
    draw = figures.curves

    def spy(panels, *rest):
        lines_drawn.extend(panels.values())
        return draw(panels, *rest)

    monkeypatch.setattr(figures, "curves", spy)
    result = rlx("drift", trained.run, "episodes=3")
    assert result.code == 0, result.err
    (lines,) = lines_drawn
    learning, frozen = result.summary["cells"]
    assert learning == "goes on learning" and frozen == "frozen at checkpoint 000000300"
    assert [line.label for line in lines] == [learning, frozen]
    assert (result.run / "drift.png").stat().st_size > 5000
    assert result.summary["steps"] == [300, 600] and {"300", "600"} <= printed(result.out).keys()
    returns = {
        label: [cell["return"]["per_seed"] for cell in cells]
        for label, cells in result.summary["cells"].items()
    }
    logged = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    means = [[row["return/mean"] for row in logged if row["step"] == step] for step in (300, 600)]
    assert returns[learning] == means
    assert returns[frozen][0] == means[0], "the same weights, env and episodes"
    assert returns[frozen][1] != means[1]


def test_old_names_of_keys_work_with_a_warning(rlx, tmp_path):
    """On the command line, in a user's YAML, and in the config of a run made before."""
    short = [word for word in TINY if not word.startswith("num_envs=")]
    learn = ("agent=dqn", "env=cartpole", "agent.hidden=[8]", "seeds=1", *short)
    typed = rlx("train", *learn, "copies=2")
    assert typed.code == 0 and "copies is called num_envs now" in typed.err
    assert Run(typed.run).config.num_envs == 2
    settings = tmp_path / "conf" / "experiment"
    settings.mkdir(parents=True)
    (settings / "old.yaml").write_text("# @package _global_\ncopies: 3\n")
    written = rlx("train", *learn, "experiment=old")
    assert written.code == 0, written.err
    assert Run(written.run).config.num_envs == 3
    both = rlx("train", *learn, "experiment=old", "num_envs=2")
    assert Run(both.run).config.num_envs == 2, "what is typed wins"
    file = typed.run / "config.yaml"
    file.write_text(file.read_text().replace("num_envs: 2", "copies: 2"))
    assert rlx("evaluate", typed.run, "episodes=2").code == 0
    assert rlx("resume", typed.run, "steps=900").code == 0
    assert Run(typed.run).config.num_envs == 2
