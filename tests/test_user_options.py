"""A file of the user's hides rlx's of the same name, of every group and in every command."""

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from test_sweeps import the_sweep

from rlx.conf import conf_dir
from rlx.sweeps.sweep import Sweep


def write(option: str, text: str) -> Path:
    """A file of the folder conf/ where the test stands."""
    file = Path("conf", f"{option}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file.absolute()


TUNED = "# @package _global_\nsteps: 300\nagent: {discount: 0.5}\n"
WORDS = ("agent=dqn", "env=cartpole", "seeds=2", "agent.hidden=[16]", "agent.learning_starts=100")


def discount(run: Path) -> float:
    """That of a run's agent."""
    return yaml.safe_load((run / "config.yaml").read_text())["agent"]["discount"]


def test_training_takes_the_users_file_and_says_so(rlx):
    file = write("tuned/dqn-cartpole", TUNED)
    result = rlx("train", *WORDS, *TINY)
    assert result.code == 0, result.err
    assert result.out.count(f"{file}, instead of rlx's") == 1 and discount(result.run) == 0.5
    other = rlx("train", *WORDS, *TINY, "tuned=none")
    assert "instead of rlx's" not in other.out and discount(other.run) != 0.5


@pytest.mark.parametrize("launcher", ["basic", "vector"])
def test_sweeps_take_it_wherever_they_go_on(launcher, rlx, tmp_path, monkeypatch):
    file = write("tuned/dqn-cartpole", TUNED)
    rates = "agent.learning_rate=1e-3,1e-4"
    result = rlx("train", "-m", *WORDS, *TINY, rates, f"hydra/launcher={launcher}")
    assert result.code == 0 and result.out.count(f"{file}, instead of rlx's") == 1
    sweep = the_sweep().absolute()
    shutil.rmtree("outputs/train")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert rlx("resume", sweep).code == 0
    runs = [job.run for job in Sweep(sweep).jobs()]
    assert [discount(run.path) for run in runs if run is not None] == [0.5, 0.5]


@pytest.mark.parametrize(
    "command, option, words, key",
    [
        ("train", "agent/dqn", (), "agent.discount"),
        ("train", "env/acrobot", (), "env.max_episode_steps"),
        ("train", "device/cpu", ("device=cpu",), "device.threads"),
        ("attack", "attack/fgsm", ("attack=fgsm",), "attack.modes"),
        ("attack", "effort/thorough", ("effort=thorough",), "effort.mine"),
        ("tune", "search/dqn", (), "search.num_envs"),
        ("train", "hydra/launcher/vector", ("hydra/launcher=vector",), "hydra.launcher.mine"),
    ],
)
def test_files_of_every_group_hide_rlxs(command, option, words, key, rlx):
    content = yaml.safe_load(Path(conf_dir(), f"{option}.yaml").read_text()) or {}
    group, *rest = key.removeprefix("hydra.").split(".")
    content[rest[-1]] = 77
    write(option, yaml.safe_dump(content))
    result = rlx(command, "agent=dqn", *words, "--cfg", "all") if command != "attack" else None
    result = result or rlx(command, *words, "--cfg", "all")
    composed = yaml.safe_load(result.out)
    composed = composed["hydra"] if key.startswith("hydra.") else composed
    assert result.code == 0 and composed[group][rest[-1]] == 77


def test_a_commands_own_file_stays_rlxs(rlx):
    """Where one stands may be another program's project."""
    write("train", "mine: 1\n")
    result = rlx("train", *WORDS, *TINY)
    assert result.code == 0, result.err


@pytest.mark.parametrize("defaults", ["[dqn, _self_]", "[/agent/dqn, _self_]", "[/agent: dqn]"])
def test_a_file_that_names_itself_is_one_line(defaults, rlx, tmp_path):
    file = write("agent/dqn", f"defaults: {defaults}\ndiscount: 0.5\n")
    result = rlx("train", "agent=dqn")
    assert result.code == 2 and not Path("outputs").exists()
    assert result.err == (
        f"rlx: {file}: its defaults name the file itself, which hides rlx's; give it another "
        "name.\n"
    )
