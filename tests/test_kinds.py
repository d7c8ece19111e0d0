"""Faults that were found once, by their kind: each test states what is right, and not how."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, small, stop_rule
from omegaconf import OmegaConf

from rlx import experiment
from rlx.agent import Scores
from rlx.attacks.noise import Noise
from rlx.benchmarks import atari100k
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.evaluation import REPORT
from rlx.experiment import make_env
from rlx.names import closest, nearest
from rlx.policies import Opened, env_age
from rlx.robustness.sweep import Game, sweep
from rlx.runs.checkpoints import Checkpoints
from rlx.runs.finding import find
from rlx.runs.run import Run
from rlx.runs.versions import versions
from rlx.threat import Boxes, Mode
from rlx.training.loop import Training
from rlx.training.resuming import resumed

LEARN = ("agent.learning_starts=64", "agent.hidden=[8]")
PPO = ("agent=ppo", "env=cartpole", *TINY, *small("ppo"))


def tensors(number: float = 0.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((1,), number)}


def made(root: Path, name: str = "x", **config: object) -> Run:
    """A run as a command leaves it that is killed early."""
    return Run(Run.create(str(root), "train", name, OmegaConf.create({"a": 1, **config})).path)


# A. Numbers


def test_policies_of_several_ages_are_not_played_in_one_drifting_env(rlx):
    drift = (
        "env=cartpole_drift",
        "env.drift.begin=0",
        "env.drift.end=100",
        "agent=dqn",
        *TINY,
        *LEARN,
    )
    old = rlx("train", *drift, "seeds=1").run
    young = rlx("train", *drift, "seeds=1:2", "steps=300").run
    for pair in ((old, young), (young, old)):
        result = rlx("evaluate", *pair, "episodes=2")
        assert result.code == 2 and "steps old" in result.err
    assert rlx("evaluate", old, "episodes=2").code == 0
    assert env_age([Run(old)], "300") == 300 // 4
    assert env_age([Run(old)], "last") == env_age([Run(old)], "best") == 600 // 4


def test_a_seed_that_stopped_keeps_its_value(tmp_path):
    run = made(tmp_path)
    rows = [
        {"step": 1, "seed": 0, "return/mean": -300.0},
        {"step": 1, "seed": 1, "return/mean": -450.0},
    ]
    rows += [
        {"step": 2, "seed": 0, "return/mean": -85.0},
        {"step": 2, "seed": 1, "return/mean": -450.0},
    ]
    rows += [{"step": 3, "seed": 1, "return/mean": -440.0}]
    run.log(rows)
    steps, seeds, values = run.curve()
    assert (steps, seeds) == ([1, 2, 3], [0, 1])
    assert values.tolist() == [[-300, -450], [-85, -450], [-85, -440]]


def test_a_seed_that_stopped_before_its_first_evaluation_is_not_left_out(tmp_path):
    run = made(tmp_path)
    run.log([{"step": 5, "seed": 1, "return/mean": 3.0}])
    run.checkpoints.save("best", {"seeds": [0, 1], "value": [7.0, 3.0], "step": [2, 5]}, tensors())
    assert run.curve()[2].tolist() == [[7.0, 3.0]]


def test_steps_per_second_are_those_of_the_steps_that_were_made(rlx):
    rule = stop_rule(window=5, solved=15)
    arguments = (
        "agent=dqn",
        "env=cartpole",
        "seeds=3",
        "num_envs=1",
        "steps=2000",
        "eval_every=1000",
        "eval_episodes=2",
    )
    summary = rlx("train", *arguments, *LEARN, rule).summary
    made_steps = sum(summary["kept"]["step"])
    assert made_steps < 3 * summary["steps"]
    assert summary["steps_per_s"] == pytest.approx(made_steps / summary["wall_s"])


class Scored:
    """What the Atari table asks of a run."""

    def __init__(self, agent: str, seeds: list[int], scores: list[float], steps: int = 100_000):
        facts = {
            "agent": {"_target_": agent},
            "env": {"game": "pong"},
            "seeds": seeds,
            "steps": steps,
        }
        self.config = OmegaConf.create(facts)
        self.scores = scores

    def summary(self):
        return {"return": {"per_seed": self.scores}}


def test_the_atari_table_keeps_agents_and_budgets_apart_and_counts_a_seed_once(capsys):
    one, other = Scored("a.DQN", [0, 1], [6.0, 9.0]), Scored("b.Zero", [0, 1], [20.0, 19.0])
    longer = Scored("a.DQN", [2], [10.0], steps=250_000)
    atari100k.table([one, other, longer])
    shown = capsys.readouterr().out
    assert shown.count("pong") == 3 and " 7.5 " in shown and " 19.5 " in shown
    assert "250,000 decisions, not the benchmark's 100,000" in shown
    atari100k.table([one, Scored("a.DQN", [2], [12.0])])
    assert " 9 " in capsys.readouterr().out, "more seeds of one kind are one row"
    with pytest.raises(ConfigError, match="seed 1 of pong is in two runs"):
        atari100k.table([one, Scored("a.DQN", [1], [12.0])])


class Looking(torch.nn.Module):
    """Decides by the sum of what it sees, and notes it."""

    heads = ("action",)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.observed: list[torch.Tensor] = []

    def initial_carry(self, batch):
        return {}

    def act(self, obs, first, carry, choose):
        shown = []

        def scores(obs):
            shown.append(obs.detach().clone())
            return torch.stack([obs.sum(-1), -obs.sum(-1)], -1)

        action = choose("action", obs, Scores(scores), torch.ones_like(first))
        self.observed.append(shown[-1].unflatten(-1, (3, 4)))
        return action, carry


def test_what_a_stack_shows_of_the_past_is_what_was_shown():
    """Each observation begins with what the last one ended with, perturbed or not.

    Only the newest can be moved.
    """
    node = {"_target_": "rlx.envs.cartpole.CartPole", "stack": 3, "max_episode_steps": 6}
    spec, cpu, policy = experiment.env_spec(node), torch.device("cpu"), Looking()
    modes = {"action": Mode(("action",), shared=False)}
    noise = Noise("corners", 1.0, True)
    assert spec.stack == 3
    opened = Opened(policy, spec, [0], node, 0, cpu)
    sweep(Game(opened, [0, 0.1], np.ones(12), 2, REPORT, 100), noise, modes)
    first, *rest = policy.observed
    assert len(rest) >= 5 and first.shape == (1, 4, 3, 4)
    assert torch.equal(first[:, :, 0], first[:, :, 2])
    assert torch.equal(first[:, :, 1], first[:, :, 2])
    clean = make_env(node, 2, cpu).reset(seed=2_000_000)[0].unflatten(1, (3, 4))[:, -1]
    torch.testing.assert_close(first[0, :2, 2], clean)
    torch.testing.assert_close((first[0, 2:, 2] - clean).abs(), torch.full((2, 4), 0.1))
    before = first
    for now in rest[:5]:
        assert torch.equal(now[:, :, :2], before[:, :, 1:])
        before = now


def test_gray_levels_are_whole_and_never_more_than_the_radius(composed):
    import gymnasium

    space = gymnasium.spaces.Box(0, 255, (1, 2, 2), np.uint8)
    obs = torch.tensor([0.0, 100.0, 200.0, 255.0]).view(1, 1, 1, 2, 2)
    for radius, levels in ((0.4, 0), (0.9, 0), (1.0, 1), (2.55, 2), (3.0, 3)):
        budget = Boxes.of(space, torch.ones(1, 2, 2)).around(obs, torch.full((1, 1), radius))
        moved = budget.project(obs + radius, obs)
        assert torch.equal(moved, (obs + levels).clamp(0, 255)), radius


# B. Data and work


def test_words_for_numbers_are_numbers_in_a_run(rlx):
    run = rlx(
        "train",
        *PPO,
        "steps=1k",
        "num_envs=4",
        "env.max_episode_steps=1e2",
        "agent.anneal_steps=${steps}",
    ).run
    config = OmegaConf.load(run / "config.yaml")
    assert config.steps == config.agent.anneal_steps == 1000
    assert config.env.max_episode_steps == 100
    assert rlx("resume", run, "steps=1200").code == 0
    drift = ("env=cartpole_drift", "env.drift.begin=1k", "agent=dqn", *TINY, *LEARN, "seeds=1")
    assert OmegaConf.load(rlx("train", *drift).run / "config.yaml").env.drift.begin == 1000


BAD_VALUES = [
    ("env.stack=two", "env.stack=two: expected a whole number"),
    ("env.stack=0", "env.stack=0: must be at least 1"),
    ("env.observe=0", "env.observe=0: expected a list"),
    ("env.workers=many", "env.workers=many: expected a whole number"),
    ("env.max_episode_steps=abc", "env.max_episode_steps=abc: expected a whole number"),
    ("env.max_episode_steps=1.5", "env.max_episode_steps=1.5: expected a whole number"),
    ("env.max_episode_steps=-1", "env.max_episode_steps=-1: must be at least 1"),
    ("env.gravity=heavy", "env.gravity=heavy: expected a number"),
    ("eval_env.gravity=heavy", "eval_env.gravity=heavy: expected a number"),
    ("eval_env.gravty=1", "Did you mean 'eval_env.gravity'?"),
    (
        "env.drift={parameter: gravity, to: 1, begin: x, end: 3}",
        "env.drift.begin=x: expected a whole number",
    ),
    ("env.drift=3", "env.drift=3: expected keys with values"),
    ("device.threads=two", "device.threads=two: expected a whole number"),
    ("stop={window: x}", "stop.window=x: expected a whole number"),
]


@pytest.mark.parametrize(("override", "message"), BAD_VALUES, ids=lambda x: x.partition("=")[0])
def test_every_value_has_a_type(override, message, rlx, tmp_path):
    result = rlx("train", "agent=dqn", "env=cartpole", override)
    assert result.code == 2 and message in result.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override", ["env.id=5", "env.workers=0", "env.max_episode_steps=x", "env.kwargs=3"]
)
def test_values_of_vector_envs_have_types_too(override, rlx, tmp_path):
    result = rlx("train", "agent=dqn", "env=gym", "env.id=CartPole-v1", override)
    assert result.code == 2
    assert override.partition("=")[0] in result.err
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_ordered_by_number(tmp_path):
    run = made(tmp_path)
    for step in (999_000_000, 999_500_000, 1_000_000_000, 1_000_500_000):
        run.checkpoints.save(
            f"{step:09d}",
            {"step": step, "seeds": [0], "lasting": True},
            tensors(step),
            tensors(step),
        )
    assert run.checkpoints.folder("last").name == "1000500000"
    assert run.newest().counters["step"] == 1_000_500_000
    assert run.checkpoints.load("last", "training")["w"] == 1_000_500_000


def test_nothing_is_decided_about_a_run_that_another_process_writes(rlx, tmp_path):
    run = Run(rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARN, "seeds=1").run)
    before = sorted(str(path) for path in run.path.rglob("*"))
    with run.lock():
        for arguments in (("steps=800",), ("seeds=2",)):
            result = rlx("resume", run.path, *arguments)
            assert result.code == 2 and "another process is writing it" in result.err
    assert sorted(str(path) for path in run.path.rglob("*")) == before


def test_what_was_saved_between_loading_and_locking_is_not_deleted(rlx):
    run = Run(rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARN, "seeds=1").run)
    stale, _ = resumed(run, run.config)
    assert rlx("resume", run.path, "steps=900").code == 0
    longer = run.config
    longer.steps = 1200
    with pytest.raises(ConfigError, match="has gone on to step 900 meanwhile"):
        stale.run(run, longer)
    assert run.checkpoints.steps()[-1] == "000000900"


def test_recovering_waits_for_whoever_is_between_two_renames(tmp_path, monkeypatch):
    run = made(tmp_path)
    run.checkpoints.save("best", {"seeds": [0]}, tensors())
    run.checkpoints.save("000000100", {"step": 100, "seeds": [0]}, tensors(), tensors())
    rename, other = Path.rename, []

    def renamed(self, target):
        result = rename(self, target)
        if self.name == "best" and not other:
            other.append(Run(run.path).newest().counters["step"])
        return result

    monkeypatch.setattr(Path, "rename", renamed)
    with run.lock():
        run.checkpoints.save("best", {"seeds": [0]}, tensors(1))
    assert other == [100] and run.checkpoints.load("best")["w"] == 1


@pytest.mark.parametrize("spelled", ["nothing", "outputs", "folder", "itself", "relative"])
def test_a_replaced_run_is_found_again_however_it_is_named(spelled, tmp_path, monkeypatch):
    run, grown = made(tmp_path / "o"), made(tmp_path / "other", b=2)
    for one in (run, grown):
        one.write_meta(status="completed")
    path = run.path
    grown.path.rename(path.with_name(f".{path.name}.partial"))
    path.rename(path.with_name(f".{path.name}.former"))  # and now the power fails
    monkeypatch.chdir(path.parent)
    names = {
        "nothing": None,
        "outputs": str(tmp_path / "o"),
        "folder": str(path.parent),
        "itself": str(path),
        "relative": path.name,
    }
    found = find(names[spelled], str(tmp_path / "o"))
    assert found.path.resolve() == path and found.config.b == 2
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def stopped_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Let the process get a signal behind the vector step that reaches `step`."""
    vector_step = Training._vector_step

    def one(self):
        result = vector_step(self)
        if self.step >= step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(Training, "_vector_step", one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_ends_a_sweep_and_says_how_to_go_on(number, rlx, monkeypatch):
    stopped_at(monkeypatch, 200, number)
    result = rlx("train", "-m", *PPO, "seeds=1", "agent.hidden=[8],[16],[32]")
    (run,) = Path("outputs/train/ppo-cartpole").iterdir()
    assert result.code == 128 + number
    assert json.loads((run / "meta.json").read_text())["status"] == "interrupted"
    (sweep,) = Path("outputs/sweeps").iterdir()
    lines = result.err.splitlines()
    assert f"rlx resume {run}" in lines[0]
    assert "0 of 3 done" in lines[1] and lines[1].endswith(f"rlx resume {sweep}")


def test_a_sweep_is_checked_before_it_begins_and_says_all_that_is_wrong(rlx, tmp_path):
    result = rlx("train", "-m", *PPO, "seeds=1", "agent.minibatches=5,3,100,2")
    assert result.code == 2 and list(tmp_path.iterdir()) == []
    assert [
        line
        for line in result.err.splitlines()
        if "does not divide" in line and line.startswith("rlx: ")
    ].__len__() == 3
    assert "3 of 4 jobs are wrong" in result.err


def test_what_fails_in_a_sweep_is_told_at_once_and_at_the_end(rlx, monkeypatch):
    learn = Training._learn

    def failing(self, progress):
        if self.config.agent["hidden"] == [16]:
            raise RunError("the simulator lost its connection")
        return learn(self, progress)

    monkeypatch.setattr(Training, "_learn", failing)
    result = rlx("train", "-m", *PPO, "seeds=1", "agent.hidden=[8],[16],[32]")
    told = [line for line in result.err.splitlines() if "lost its connection" in line]
    assert result.code == 1
    assert len(told) == 2
    assert "agent.hidden=[16]" in told[0]
    assert "1 of 3" in result.err
    assert len(list(Path("outputs/train/ppo-cartpole").iterdir())) == 3


def test_an_interrupt_that_cannot_save_says_so(rlx, monkeypatch):
    stopped_at(monkeypatch, 200)
    monkeypatch.setattr(
        Checkpoints, "save", lambda *_, **__: (_ for _ in ()).throw(RunError("no space left"))
    )
    result = rlx("train", *PPO, "seeds=1")
    (run,) = Path("outputs/train/ppo-cartpole").iterdir()
    meta = json.loads((run / "meta.json").read_text())
    assert result.code == 1 and "no space left" in result.err and meta["status"] == "failed"


@pytest.mark.parametrize("command", ["attack", "evaluate"])
def test_every_command_that_is_told_to_stop_says_so_in_its_run(
    command, rlx, tiny_runs, monkeypatch
):
    from rlx import evaluation

    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluation, "rollout", stopped)
    result = rlx(
        command,
        tiny_runs / "train/dqn-cartpole",
        "episodes=2",
        *(["scale=std", "attack=fgsm"] if command == "attack" else []),
    )
    (run,) = Path("outputs", command, "dqn-cartpole").iterdir()
    assert result.code == 143
    assert json.loads((run / "meta.json").read_text())["status"] == "interrupted"


def test_an_interrupt_while_seeds_are_added_names_what_adds_them(rlx, monkeypatch):
    run = rlx("train", *PPO, "seeds=1").run
    with monkeypatch.context() as patched:
        stopped_at(patched, 200)
        result = rlx("resume", run, "seeds=2")
    assert result.code == 143 and f"rlx resume {run} seeds=2" in result.err
    assert rlx("resume", run, "seeds=2").code == 0
    assert json.loads((run / "summary.json").read_text())["seeds"] == [0, 1]


def test_a_finished_run_goes_on_as_if_it_had_not_ended(rlx):
    arguments = (
        "train",
        "agent=dqn",
        "env=cartpole",
        *TINY,
        *LEARN,
        "seeds=2",
        "eval_every=200",
        "agent.average_tau=1",
    )
    whole, run = rlx(*arguments, "steps=800").run, rlx(*arguments, "steps=500").run
    assert [row["step"] for row in Run(run).metrics()][-1] == 500, "its own end is evaluated"
    assert rlx("resume", run, "steps=800").code == 0

    def without_time(rows):
        return [
            {key: value for key, value in row.items() if key != "time/steps_per_s"} for row in rows
        ]

    assert without_time(Run(run).metrics()) == without_time(Run(whole).metrics())
    one, two = Run(run), Run(whole)
    assert one.checkpoints.counters("best")["step"] == two.checkpoints.counters("best")["step"]
    assert all(
        torch.equal(one.checkpoints.load("best")[name], tensor)
        for name, tensor in two.checkpoints.load("best").items()
    )


def test_the_newest_weights_of_a_stop_rule_are_those_at_the_stop(rlx):
    rule = stop_rule(window=5, solved=15)
    arguments = (
        "agent=dqn",
        "env=cartpole",
        "seeds=3",
        "num_envs=1",
        "steps=1500",
        "eval_every=100",
        "eval_episodes=2",
    )
    best = rlx("train", *arguments, *LEARN, rule, "keep=best").summary["kept"]
    newest = rlx("train", *arguments, *LEARN, rule, "keep=newest").summary["kept"]
    assert best == newest and None not in newest["value"]


def test_a_run_names_the_commit_that_made_it():
    checkout = Path(experiment.__file__).parents[1]
    if not (checkout / ".git").exists():
        pytest.skip("rlx is not run from a checkout")
    command = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert versions()["commit"].removesuffix("+") == head.stdout.strip()


# C. One line instead of a traceback


def test_one_seed_is_reported(rlx):
    run = rlx("train", *PPO, "seeds=1").run
    assert json.loads((run / "summary.json").read_text())["return"]["ci95"] == [None, None]
    assert rlx("report", run).code == 0
    attacked = rlx("attack", run, "scale=std", "eps=[0,0.1]", "episodes=2", "attack=fgsm").run
    assert rlx("report", attacked, attacked).code == 0


def test_runs_without_a_result_are_named_and_left_out(rlx, monkeypatch):
    good = rlx("train", *PPO, "seeds=1").run
    with monkeypatch.context() as patched:
        stopped_at(patched, 200)
        rlx("train", *PPO, "seeds=1")
    (bad,) = [run for run in Path("outputs/train/ppo-cartpole").iterdir() if run != good]
    result = rlx("report", good, bad)
    assert result.code == 0 and f"left out {bad}: interrupted" in result.out
    alone = rlx("report", bad)
    assert alone.code == 2 and "none of the 1 runs is finished" in alone.err
    assert "is not finished: interrupted" in rlx("evaluate", bad, "episodes=2").out


def test_a_return_that_is_no_number_stops_the_run_and_blames_the_env(rlx, monkeypatch):
    from rlx.envs.cartpole import CartPole

    transition = CartPole.transition

    def broken(self, state, action, draws):
        after, reward, terminated = transition(self, state, action, draws)
        return after, torch.where(state[:, 0].abs() > 0.06, torch.nan, reward), terminated

    monkeypatch.setattr(CartPole, "transition", broken)
    result = rlx("train", *PPO, "seeds=1", "eval_every=600")
    assert result.code == 1 and "env: gave a reward that is not finite" in result.err
    assert "no checkpoint had been saved yet" in result.err and "loss" not in result.err


def test_a_checkpoint_without_seeds_is_explained(rlx):
    rule = stop_rule(window=2, solved=5)
    arguments = (
        "agent=dqn",
        "env=cartpole",
        "seeds=2",
        "num_envs=1",
        "steps=1500",
        "eval_every=100",
        "eval_episodes=2",
    )
    run = rlx("train", *arguments, *LEARN, rule).run
    result = rlx("evaluate", run, "checkpoint=last", "episodes=2")
    assert result.code == 2 and "use checkpoint=best" in result.err


LINES = [
    (["attack", "env=cartpole"], "env: the run's own"),
    (["attack", "agent=dqn"], "agent: the run's own"),
    (["evaluate", "agent.hidden=[3]"], "agent.hidden: the run's own"),
    (["resume", "agent.hidden=[3]"], "agent.hidden: may not change"),
    (["train", "tuned=null"], "tuned=null: a group takes one of its names"),
    (["train", "tuned=dqn-cartpol"], "Did you mean 'dqn-cartpole'?"),
    (["train", "agent.gamma=0.9"], "Did you mean 'agent.discount'?"),
    (["train", "gamma=0.9"], "Did you mean 'agent.discount'?"),
    (["train", "lr=1e-3"], "Did you mean 'agent.learning_rate'?"),
    (["train", "learning_rate=1e-3"], "Did you mean 'agent.learning_rate'?"),
    (["train", "total_timesteps=1e6"], "Did you mean 'steps'?"),
    (["train", "seed=3"], "Did you mean 'seeds'?"),
    (["train", "n_envs=3"], "Did you mean 'num_envs'?"),
    (
        ["train", "agent=ppo", "env=cartpole", "agent.n_steps=4"],
        "Did you mean 'agent.rollout_steps'?",
    ),
    (
        ["train", "agent=ppo", "env=cartpole", "agent.ent_coef=4"],
        "Did you mean 'agent.entropy_coefficient'?",
    ),
    (["train", "env.id=CartPole-v1"], "It is a key of env=gym"),
    (["train", "env=HalfCheetah-v5"], "env=gym env.id=HalfCheetah-v5"),
    (["train", "env=CartPole"], "Did you mean 'cartpole'?"),
    (["train", "agent=DQN"], "Did you mean 'dqn'?"),
    (["train", "--seeds", "3"], "write seeds=3"),
    (["train", "--seeds=3"], "write seeds=3"),
    (["train", "--lr", "3"], "write agent.learning_rate=3"),
    (["train", "-seeds", "3"], "write seeds=3"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), LINES, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_what_was_meant_is_said(arguments, message, rlx, tmp_path):
    result = rlx(*arguments)
    assert result.code == 2 and message in result.err, result.err
    assert "Traceback" not in result.err and list(tmp_path.iterdir()) == []


def test_a_key_of_another_option_is_said_to_be_one(rlx, tiny_runs):
    result = rlx("attack", tiny_runs / "train/hdqn-acrobot", "attack.clip=false")
    assert (
        result.code == 2 and "attack.clip: unknown key. It is a key of attack=noise" in result.err
    )


def test_every_synonym_is_of_a_key_that_exists(composed):
    import yaml
    from conftest import AGENTS

    from rlx.conf import conf_dir, group_files
    from rlx.help import all_keys

    known = {key for agent in AGENTS for key in all_keys("train", [f"agent={agent}", "env=gym"])}
    known |= {
        key for attack in group_files("attack") for key in all_keys("attack", [f"attack={attack}"])
    }
    known |= {"env.stack", "env.repeat_action_probability", "env.kwargs"}
    table = yaml.safe_load(Path(conf_dir(), "help/synonyms.yaml").read_text())
    assert set(table) <= known
    assert closest("lr", ["agent.learning_rate"]) == "agent.learning_rate"
    assert closest("zzz", ["steps"]) is None
    assert closest("cart", ["catch", "cartpole_pixels", "cartpole"]) == "cartpole"
    # What is a part of several names may mean any of them.
    keys = ["seeds", "eval_episodes", "eval_every", "final_episodes", "env.max_episode_steps"]
    assert nearest("episodes", keys) == " Did you mean 'eval_episodes' or 'final_episodes'?"
    assert nearest("final_episode", keys) == " Did you mean 'final_episodes'?"


def test_a_sweeps_config_can_be_looked_at(rlx, tmp_path):
    result = rlx("train", "-m", "env=cartpole", "--cfg", "job")
    assert result.code == 0 and "CartPole" in result.out and list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error():
    line = f"{sys.executable} -m rlx --completion fish | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


def own_conf(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom rlx.agents import dqn\n\n\n"
        "@dataclass(frozen=True)\nclass Config(dqn.Config):\n    beta: float\n\n\n"
        "class Mine(dqn.DQN):\n    config_type = Config\n"
    )
    (folder / "conf/agent").mkdir(parents=True)
    text = "# My own.\ndefaults: [dqn, _self_]\n_target_: mine.Mine\n# How much.\nbeta: 0.5\n"
    (folder / "conf/agent/mine.yaml").write_text(text)


@pytest.mark.parametrize("how", ["conf here", "-cd"])
def test_a_users_conf_counts_everywhere(how, rlx, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    own_conf(tmp_path)
    more: list[object] = []
    if how == "-cd":
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        more = ["-cd", tmp_path / "conf"]
    shown = rlx("train", "agent=mine", "agent.beta=0.7", "--help", *more)
    assert shown.code == 0
    assert "mine" in shown.out
    assert "beta: 0.7" in shown.out
    assert "# How much." in shown.out
    assert "Did you mean 'mine'?" in rlx("train", "agent=mien", *more).err
    assert (
        "Did you mean 'agent.beta'?"
        in rlx("train", "agent=mine", "env=cartpole", "agent.bta=1", *more).err
    )
    run = rlx("train", "agent=mine", "env=cartpole", *TINY, *LEARN, "seeds=1", *more)
    assert run.code == 0 and "nobody tuned for cartpole" in run.out
    assert rlx("evaluate", run.run, "episodes=2", *more).code == 0


# D. What is said


def test_the_header_says_whose_settings_these_are(rlx):
    assert (
        "settings tuned/dqn-cartpole\n"
        in rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARN, "seeds=1").out
    )
    told = rlx("train", "agent=dqn", "env=cartpole", "tuned=none", *TINY, *LEARN, "seeds=1").out
    assert "settings defaults of dqn (tuned=none)\n" in told
    other = rlx("train", "agent=dqn", "env=cartpole", "tuned=ppo-cartpole", "--cfg", "job")
    assert other.code == 0


def test_help_shows_the_values_that_would_be_used(rlx):
    shown = rlx("train", "agent=dqn", "env=cartpole", "agent.hidden=[7]", "--help").out
    assert "\nsteps: 150000\n" in shown
    assert "\n  target_tau: 0.01\n" in shown
    assert "\n  hidden: [7]\n" in shown
    assert rlx("train", "agent=dqm", "--help").code == 2


@pytest.mark.parametrize(
    "name", ["lr=1e-3", "a#b", "50%", "it's", "with space", "$HOME", "a,b", "[x]", "ünï"]
)
def test_any_folder_can_be_named(name, rlx, tmp_path, tiny_runs):
    run = sorted((tiny_runs / "train/dqn-cartpole").iterdir())[0]
    shutil.copytree(run, tmp_path / name)
    for spelled in (name, f"./{name}", tmp_path / name):
        result = rlx("evaluate", spelled, "episodes=2")
        assert result.code == 0, result.err


# Runs that somebody else made


@pytest.fixture
def foreign(tiny_runs, tmp_path):
    """A run whose config can be changed; (folder, change)."""
    run = sorted((tiny_runs / "train/dqn-cartpole").iterdir())[0]
    copy = Path(shutil.copytree(run, tmp_path / "theirs/run"))

    def change(**values: object) -> Path:
        config = OmegaConf.load(copy / "config.yaml")
        for key, value in values.items():
            OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
        (copy / "config.yaml").write_text(OmegaConf.to_yaml(config))
        return copy

    return change


@pytest.mark.parametrize(
    "key", ["agent___target_", "env___target_", "env__id", "stop__x___target_"]
)
def test_nothing_that_a_foreign_run_names_is_imported(key, foreign, rlx, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('ran', 'w').write('x')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    value = "evil:Env-v0" if key == "env__id" else "evil.Agent"
    run = foreign(**{key.replace("___target_", "._target_").replace("__", "."): value})
    for command in (("evaluate",), ("attack",), ("resume",), ("collect", "out=data")):
        result = rlx(*command, run)
        assert result.code == 2 and "names evil" in result.err and "trust=true" in result.err, (
            result.err
        )
    assert not (tmp_path / "ran").exists()
    trusted = rlx("evaluate", run, "trust=true")
    assert "names evil" not in trusted.err


def test_no_resolver_runs_for_a_foreign_run(foreign, rlx, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    run = foreign()
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "note: ${oc.env:SECRET}\n")
    result = rlx("evaluate", run)
    assert result.code == 2
    assert "interpolation" in result.err
    assert "s3cret" not in result.err + result.out


def test_what_the_user_made_here_needs_no_trust(rlx, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    own_conf(tmp_path)
    run = rlx("train", "agent=mine", "env=cartpole", *TINY, *LEARN, "seeds=1").run
    (tmp_path / "conf").rename(tmp_path / "gone")
    assert rlx("evaluate", run, "episodes=2").code == 0
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "# changed\n")
    assert "names mine.Mine" in rlx("evaluate", run, "episodes=2").err


def test_no_path_in_a_run_leads_out_of_it(foreign, rlx, tmp_path):
    run = Run(foreign())
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/000000001").mkdir()
    state = run.path / "checkpoints/000000600/state.json"
    facts = json.loads(state.read_text())
    state.write_text(json.dumps(facts | {"replay": {"../../../precious/x": "0" * 64}}))
    result = rlx("resume", run.path, "steps=900")
    assert "leads out of the run" in result.err + result.out
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "checkpoints").symlink_to(tmp_path / "precious")
    result = rlx("resume", run.path, "steps=900")
    assert result.code == 2 and "leads out of the run" in result.err
    assert (tmp_path / "precious/000000001").is_dir()


def test_a_config_that_asks_for_more_than_its_file_holds_takes_no_memory(foreign, rlx):
    run = foreign(**{"agent.hidden": [10_000_000, 10_000_000]})
    result = rlx("evaluate", run)
    assert result.code == 2 and "but this config makes" in result.err


def test_garbage_in_a_run_is_one_line(foreign, rlx):
    run = foreign()
    for name, text in (
        ("meta.json", "[]"),
        ("meta.json", "{"),
        ("config.yaml", "- 1"),
        ("config.yaml", "a: \xff"),
    ):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(text.encode("latin-1"))
        result = rlx("evaluate", run)
        assert result.code == 2
        assert name.split(".")[0] in result.err + "meta"
        assert "Traceback" not in result.err
        (run / name).write_bytes(whole)
    (run / "metrics.jsonl").write_text("{\n")
    assert "metrics.jsonl: line 1" in rlx("report", run).err
    (run / "metrics.jsonl").unlink()
    (run / "summary.json").write_text("[1]")
    assert rlx("report", run).code == 2


def test_interrupted_is_no_failure():
    error = Interrupted(signal.SIGTERM, "stopped")
    assert isinstance(error, KeyboardInterrupt)
    assert not isinstance(error, Exception)
    assert error.code == 143


@pytest.mark.parametrize(
    "change", [{"seeds": 90_000}, {"num_envs": 10_000_000}, {"agent.hidden": [50_000_000]}]
)
def test_a_foreign_run_that_is_resumed_takes_no_memory_for_what_it_only_claims(
    change, foreign, rlx
):
    result = rlx("resume", foreign(**change), "steps=900")
    assert result.code == 2 and ("checkpoint (" in result.err or "this config makes" in result.err)


@pytest.mark.parametrize("override", ["seeds=10000000000", "seeds=0:10000000000", "seeds=[0,1,1]"])
def test_a_list_of_seeds_has_an_end(override, rlx, tmp_path):
    result = rlx("train", override)
    assert result.code == 2
    assert override.partition("=")[0] in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_run_hides_no_other(rlx, tiny_runs, tmp_path):
    shutil.copytree(tiny_runs / "train/dqn-cartpole", tmp_path / "runs")
    (tmp_path / "runs/99991231-000000-000000").mkdir()
    (tmp_path / "runs/99991231-000000-000000/meta.json").write_text("{")
    assert rlx("evaluate", "runs", "episodes=2").code == 0 and rlx("report", "runs").code == 0


# Links, sizes and shapes that only somebody else's run has


LINKED = [
    "meta.json",
    ".meta.json.partial",
    "returns.npz",
    "learning.png",
    "metrics.jsonl",
    "replay/q",
    "checkpoints/000000300",
]
LINKED += ["checkpoints/best/agent.safetensors", "checkpoints/best/state.json"]


@pytest.mark.parametrize("name", LINKED)
def test_no_link_in_a_run_leads_out_of_it(name, foreign, rlx, tmp_path):
    run = foreign()
    outside = tmp_path / "precious"
    path = run / name
    if path.is_dir():
        shutil.move(path, outside)
    elif name == "replay/q":
        outside.mkdir()
        shutil.copy(run / "checkpoints/best/agent.safetensors", outside / "z.safetensors")
    else:
        outside.write_bytes(path.read_bytes() if path.exists() else b"precious")
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside)
    before = sizes(outside)
    for command in (
        ("evaluate", "episodes=2"),
        ("resume", "steps=900"),
        ("report",),
        ("attack", "attack=fgsm", "scale=std", "episodes=2"),
    ):
        result = rlx(*command, run)
        assert result.code == 2 and "leads out of the run" in result.err, result.err
    assert sizes(outside) == before


def sizes(top: Path) -> list[tuple[str, int]]:
    """Path and size of a folder and all in it."""
    return sorted((str(path), path.stat().st_size) for path in [top, *top.rglob("*")])


CLAIMS = [
    {"env.stack": 10**9},
    {"eval_env": {"stack": 10**9}},
    {"env.observe": [0] * 1000},
    {"device": {"name": "cpu", "threads": 10**9}},
    {"eval_env": "x"},
    {"device": None},
    {"agent": None},
    {"env": [1]},
    {"env._target_": "rlx.__main__:X"},
    {
        "env": {
            "_target_": "rlx.envs.gym.GymEnv",
            "id": "CartPole-v1",
            "max_episode_steps": None,
            "kwargs": {},
        }
    },
]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_foreign_config_is_refused_in_one_line(claim, foreign, rlx):
    run = foreign()
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    for key, value in claim.items():
        group, _, name = key.partition(".")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    result = rlx("resume", run, "steps=900")
    assert result.code == 2 and len(result.err.splitlines()) == 1, result.err


STATES = [
    ("seeds", 5),
    ("seeds", [0, "x"]),
    ("seeds", [0, None]),
    ("seeds", [0, 10**30]),
    ("seeds", [0, -1]),
    ("seeds", None),
    ("sha256", 5),
    ("sha256", []),
    ("replay", 5),
    ("evaluated", None),
    ("wall_s", None),
    ("step", "x"),
]


@pytest.mark.parametrize(("key", "value"), STATES, ids=str)
def test_a_foreign_state_is_refused_in_one_line(key, value, foreign, rlx):
    run = foreign()
    for name, command in (
        ("best", ("evaluate", "episodes=2")),
        ("000000600", ("resume", "steps=900")),
    ):
        file = run / "checkpoints" / name / "state.json"
        whole = json.loads(file.read_text())
        for state in (whole | {key: value}, {k: v for k, v in whole.items() if k != key}):
            file.write_text(json.dumps(state))
            result = rlx(*command, run)
            assert result.code in (0, 2) and "Traceback" not in result.err, result.err
            assert result.code == 2 or key not in whole or key not in state or name == "000000600"
        file.write_text(json.dumps(whole))
    signed = json.loads((run / "meta.json").read_text()) | {"signature": "é"}
    (run / "meta.json").write_text(json.dumps(signed))
    assert rlx("evaluate", run, "episodes=2").code == 0


@pytest.mark.parametrize("key", ["agent", "env", "seeds"])
def test_a_config_that_lacks_a_key_is_named(key, foreign, rlx):
    run = foreign()
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    del config[key]
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    for command in ("evaluate", "attack", "resume"):
        result = rlx(command, run)
        assert result.code == 2 and f"config.yaml: '{key}' is missing" in result.err, result.err


@pytest.mark.parametrize("key", ["seeds", "step", "evaluated", "wall_s"])
def test_a_state_that_lacks_a_key_is_refused_in_one_line(key, foreign, rlx):
    run = foreign()
    for file in run.glob("checkpoints/[0-9]*/state.json"):
        facts = json.loads(file.read_text())
        del facts[key]
        file.write_text(json.dumps(facts))
    result = rlx("resume", run, "steps=900")
    assert result.code == 2 and len(result.err.splitlines()) == 1, result.err


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]\n", b"{}\n", b"null\n"])
def test_metrics_of_another_kind_are_named(content, foreign, rlx):
    run = foreign()
    (run / "metrics.jsonl").write_bytes(content)
    if not content.endswith(b"\n"):
        (run / "metrics.jsonl").write_bytes(content + b"\n")
    result = rlx("report", run)
    assert result.code == 2 and "metrics.jsonl: line 1" in result.err


@pytest.mark.parametrize("given", ["run=[]", "run={a: 1}", "run=5", "run=[null,null]", "run=[[x]]"])
@pytest.mark.parametrize("command", ["report", "evaluate", "attack", "resume", "drift"])
def test_runs_are_named_by_words(command, given, rlx, tmp_path):
    result = rlx(command, given)
    assert result.code == 2 and "Traceback" not in result.err and list(tmp_path.iterdir()) == []


MORE_VALUES = [
    "eval_env=3",
    "stop=5",
    "env=3",
    "env.stack=1e9",
    "eval_episodes=1e10",
    "final_episodes=1e11",
    "device.threads=1e6",
    "steps=1e300",
    "eval_env.observe=[0]",
    "eval_env.stack=2",
    "env.observe=[0,0]",
    "outputs=",
]


@pytest.mark.parametrize("override", MORE_VALUES)
def test_what_cannot_be_is_refused_before_anything_is_written(override, rlx, tmp_path):
    result = rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARN, "seeds=1", override)
    if override.startswith(("eval_episodes", "final_episodes")):
        assert result.code in (1, 2) and "GB of memory" in result.err
    else:
        assert result.code == 2 and list(tmp_path.iterdir()) == [], result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "name", ["back\\slash", "back\\", "a'b\"c", "(p)", "~t", "a,b", "ü[x]{y}", "\\'"]
)
def test_any_folder_can_hold_the_outputs(name, rlx, tmp_path):
    run = rlx(
        "train", "agent=q_table", "env=frozen_lake", *TINY, "seeds=1", f"outputs={tmp_path}/{name}"
    )
    assert run.code == 0, run.err
    (made_there,) = Path(f"{tmp_path}/{name}/train/q_table-frozen_lake").iterdir()
    assert rlx("evaluate", made_there, "episodes=2").code == 0


def test_a_run_that_was_never_saved_is_none_to_go_on_with(rlx, monkeypatch):
    good = rlx("train", *PPO, "seeds=1").run
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_learn", lambda *_: (_ for _ in ()).throw(RunError("crashed")))
        assert rlx("train", *PPO, "seeds=1").code == 1
    assert f"{good}" in rlx("resume", "outputs", "steps=800").out
