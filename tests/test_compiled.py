"""Compiled steps: the graph of a step is the step, and a compiled run is a run like any other."""

import json
import os
import shlex
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ENVS, PAIRS, compose, small
from test_resume import fingerprint

from rlx import experiment
from rlx.agent import Part, Transition
from rlx.agents.dqn import DQN
from rlx.config import build
from rlx.errors import ConfigError
from rlx.machine import compiler
from rlx.training import compiled, evaluating, state
from rlx.training.compiled import CompiledSteps, interpreted
from rlx.training.config import Config, validated
from rlx.training.loop import Training
from rlx.vector_step import play

TRACED = [(agent, env) for agent, env in PAIRS if agent != "efficientzero" and env != "gym"]
VARIANTS = [
    ("ppo", "cartpole_masked", "agent.recurrent=8"),
    ("ppo", "mountain_car", "agent.normalise_obs=true", "agent.normalise_reward=true"),
    ("a2c", "cartpole"),
    ("dqn", "cartpole", "+env.stack=3", "agent.n_steps=3", "agent.optimizer=rmsprop"),
    ("dqn", "taxi"),
    ("dqn", "cartpole_drift"),
    ("dqn", "cartpole", "agent.max_grad_norm=1", "agent.dueling=true", "agent.target_every=7"),
    ("hdqn", "maze"),
    ("q_table", "frozen_lake", "agent.target=sarsa"),
    ("self_play", "connect_four"),
    ("dqn", "catch"),
    ("dqn", "mini_breakout"),
    *[
        (agent, "cartpole", f"defence={defence}", "agent.defence.scale=[1,1,1,1]")
        for agent, defence in (
            ("dqn", "sa"),
            ("dqn", "wocar"),
            ("hdqn", "radial"),
            ("hdqn", "adversarial"),
        )
    ],
    *[
        ("ppo", "pendulum", f"defence={defence}", "agent.defence.scale=[1,1,1]")
        for defence in ("sa", "radial", "adversarial", "atla")
    ],
]
"""(agent, env, further keys): each takes other lines of an agent or an env."""

NEEDS_COMPILER = pytest.mark.skipif(shutil.which(compiler()[0]) is None, reason="no C++ compiler")


def training(agent: str, env: str, *keys: str) -> Training:
    """A short training of two seeds, which is not compiled."""
    given = {key.partition("=")[0] for key in keys}
    overrides = [*ENVS.get(env, ()), "seeds=[3,5]", "num_envs=4", "tuned=none", *small(agent)]
    kept = [key for key in overrides if key.partition("=")[0] not in given]
    config = compose("train", f"agent={agent}", f"env={env}", *kept, "steps=1000", *keys)
    return Training(build(Config, validated(config), ""), f"{agent}-{env}")


def everything(training: Training) -> dict[str, torch.Tensor]:
    """All tensors of a training, replays and all; NaN as a number, to be comparable."""
    tensors = state.tensors(training) | training.agent.state_dict()
    return {
        name: tensor.nan_to_num(7.0) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def assert_equal(one: Training, other: Training) -> None:
    first = everything(one)
    second = everything(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


SEARCHING = [
    ("efficientzero", "catch", "agent.cache=true", "agent.reanalyse=0.5"),
    ("efficientzero", "mini_breakout", "agent.augment=true"),
]


@pytest.mark.parametrize("case", [*TRACED, *VARIANTS, *SEARCHING], ids="-".join)
def test_the_graph_of_a_step_is_the_step(case):
    """Operation by operation, bit for bit: all that a step changes is in the graph."""
    written = training(*case)
    traced = training(*case)
    traced.compiles = True
    traced.compiled = CompiledSteps(traced, interpreted, strict=True)
    for _ in range(40):
        written._vector_step()
        traced._vector_step()
    assert written.log.metrics, "nothing was learnt: the case says nothing"
    assert_equal(written, traced)


EVALUATED = [*VARIANTS[:7], ("hdqn", "acrobot"), *VARIANTS[8:11]]


# Not with another machine's rounding: what --rounding puts in the way cannot be traced.
@pytest.mark.parametrize("case", EVALUATED, ids="-".join)
def test_the_graph_of_an_evaluation_plays_the_same_episodes(case, monkeypatch):
    """Lanes that are fewer than the episodes; their number decides how products are rounded."""
    monkeypatch.setattr(evaluating, "LANES", 3)
    monkeypatch.setattr(evaluating, "STEPS", 5)
    keys = ("eval_episodes=8", "++env.max_episode_steps=50")
    written = training(*case, *keys)
    traced = training(*case, *keys)
    traced.compiles = True
    traced.compiled = CompiledSteps(traced, interpreted, strict=True)
    for _ in range(2):
        expected = written._play()
        played = traced._play()
        same = (played.lengths == expected.lengths) & (played.returns == expected.returns)
        same &= played.truncated == expected.truncated
        assert same.sum() >= 14, "of 16; a tie of two values may be broken by rounding"
        # The weights are read anew.
        for side in (written, traced):
            for weights in side.agent.policy.parameters():
                weights.data.neg_()


@pytest.mark.parametrize("case", [("ppo", "cartpole"), ("dqn", "cartpole")], ids="-".join)
def test_a_scale_that_is_kept_changes_nothing(case):
    def kept(graph, inputs):
        compiled._keep_scales(graph)
        names = [node.target for node in graph.graph.nodes]
        graphs.append(names.count(torch.ops.aten.as_strided.default))
        return graph

    graphs: list[int] = []
    written = training(*case)
    traced = training(*case)
    traced.compiles = True
    traced.compiled = CompiledSteps(traced, kept, strict=True)
    for _ in range(70):
        written._vector_step()
        traced._vector_step()
    assert max(graphs) >= 2, "Adam's two scales"
    assert_equal(written, traced)


@pytest.mark.parametrize("case", [*TRACED, *VARIANTS], ids="-".join)
def test_no_step_asks_the_device_anything(case):
    """On a device whose tensors have no values, whoever looks at one is found out."""
    agent, env, *keys = case
    given = {key.partition("=")[0] for key in keys}
    soon = small(agent, learning_starts=16, rollout_steps=8)
    overrides = [*ENVS.get(env, ()), "num_envs=4", "tuned=none", *soon]
    kept = [key for key in overrides if key.partition("=")[0] not in given]
    config = compose("train", f"agent={agent}", f"env={env}", *kept, *keys)
    shape = (2, 4)
    seeds = torch.tensor([3, 5], device="meta")
    learner = experiment.make_agent(config.agent, experiment.env_spec(config.env), seeds, 4)
    envs = experiment.make_env(config.env, 8, "meta")
    obs = envs.reset(seed=0)[0].unflatten(0, shape)
    first = torch.ones(shape, dtype=torch.bool, device="meta")
    carry = learner.policy.initial_carry(4)
    metrics = {}
    for _ in range(16):
        played = play(learner, envs, obs, first, carry)
        metrics |= learner.update(played.transition)
        obs, first, carry = played.obs, played.first, played.transition.carry
    assert metrics, "nothing was learnt: the case says nothing"


def test_seeds_can_be_taken_out_of_a_compiled_run():
    """As a stop rule does: the rest goes on as if it had been alone."""
    both = training("dqn", "cartpole")
    both.compiles = True
    alone = training("dqn", "cartpole", "seeds=[5]")
    both.compiled = CompiledSteps(both, interpreted)
    for _ in range(40):
        both._vector_step()
        alone._vector_step()
    both.take(torch.tensor([1]))
    both.compiled = CompiledSteps(both, interpreted)
    for _ in range(30):
        both._vector_step()
        alone._vector_step()
    first = everything(both)
    second = everything(alone)
    for name in ("loop.obs", "env.state", "env._steps", "learner.replay.written"):
        torch.testing.assert_close(first[name], second[name])


class Counting(DQN):
    """Counts its steps in an attribute that is no buffer."""

    counted = 0

    def store(self, transition: Transition) -> None:
        super().store(transition)
        self.counted = self.counted + 1


class Remembering(DQN):
    """Keeps a tensor in an attribute that is no buffer."""

    kept = torch.zeros(2, 4)

    def store(self, transition: Transition) -> None:
        super().store(transition)
        self.kept = transition.reward


class Writing(DQN):
    """Writes to a tensor that is no buffer."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sums = torch.zeros(2, 4, device=next(self.parameters()).device)

    def store(self, transition: Transition) -> None:
        super().store(transition)
        self.sums += transition.reward


class Asking(DQN):
    """Asks the device for a number."""

    def learn(self) -> dict[str, torch.Tensor]:
        metrics = super().learn()
        return metrics if metrics["loss/q"].sum() > 0 else {}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Counting, "Counting.counted changes with a step"),
        (Remembering, "Remembering.kept changes with a step"),
        (Writing, "writes to a tensor that is no buffer"),
        (Asking, "learn cannot be compiled"),
    ],
)
def test_what_is_no_graph_is_refused_and_never_run_wrongly(kind, words, capsys):
    """A graph would do it once, when it is traced, and never again."""
    keys = ("agent._target_=test_compiled." + kind.__name__,)
    strict = training("dqn", "cartpole", *keys)
    strict.compiles = True
    strict.compiled = CompiledSteps(strict, interpreted, strict=True)
    with pytest.raises(ConfigError, match=words):
        for _ in range(70):
            strict._vector_step()
    written = training("dqn", "cartpole", *keys)
    lenient = training("dqn", "cartpole", *keys)
    lenient.compiles = True
    lenient.compiled = CompiledSteps(lenient, interpreted)
    for _ in range(70):
        written._vector_step()
        lenient._vector_step()
    assert_equal(written, lenient)
    for name in ("counted", "kept", "sums"):
        assert str(getattr(lenient.agent, name, None)) == str(getattr(written.agent, name, None))
    assert words in capsys.readouterr().out


class Extra(DQN):
    """Counts, on the host, how often it has learnt."""

    learnt = 0

    def due(self) -> list[Part]:
        parts = super().due()
        return [*parts, lambda: self._count()] if parts else parts

    def _count(self) -> dict[str, torch.Tensor]:
        self.learnt += 1
        return {"extra": torch.full((2,), float(self.learnt))}


def test_parts_of_learning_may_be_anything_callable():
    """Functions that are no methods run as they are written, between compiled ones."""
    done = training("dqn", "cartpole", "agent._target_=test_compiled.Extra")
    done.compiles = True
    done.compiled = CompiledSteps(done, interpreted, strict=True)
    for _ in range(40):
        done._vector_step()
    assert done.agent.learnt > 1
    assert done.log.metrics["extra"].tolist() == [done.agent.learnt] * 2


COMPILED = ("agent=dqn", "env=cartpole", "agent.hidden=[16]", "agent.learning_starts=64", "seeds=2")
SHORT = ("num_envs=4", "eval_every=400", "eval_episodes=2", "final_episodes=5", "tuned=none")


@NEEDS_COMPILER
def test_a_compiled_run_resumes_bit_for_bit_and_learns_what_another_learns(rlx):
    """The same C++ for the first and the second process, from the cache or not."""
    run = partial(rlx, "train", *COMPILED, *SHORT, "checkpoint_every=400")
    whole = run("steps=1200", "device.compile=true")
    assert whole.code == 0 and "compiled step" in whole.out
    part = run("steps=800", "device.compile=true")
    resumed = rlx("resume", part.run, "steps=1200")
    assert resumed.code == 0 and "compiled step" in resumed.out
    assert fingerprint(part.run) == fingerprint(whole.run)
    written = run("steps=1200", "device.compile=false")
    assert "compiled step" not in written.out
    first = [json.loads(line) for line in (whole.run / "metrics.jsonl").read_text().splitlines()]
    second = [json.loads(line) for line in (written.run / "metrics.jsonl").read_text().splitlines()]
    assert first[0]["loss/q"] == pytest.approx(second[0]["loss/q"], rel=1e-2)
    meta = json.loads((whole.run / "meta.json").read_text())
    assert meta["compiled"].startswith("inductor")
    assert json.loads((written.run / "meta.json").read_text())["compiled"] is None


def test_a_run_stays_as_it_began(rlx, monkeypatch):
    """`auto` would compile a longer run: one that goes on does not begin to."""
    short = rlx("train", *COMPILED, *SHORT, "steps=800", "checkpoint_every=400")
    assert short.code == 0 and "compiled no" in short.out
    monkeypatch.setattr("rlx.training.compiling.LEAST_STEPS", 10)
    resumed = rlx("resume", short.run, "steps=1200")
    assert resumed.code == 0 and "compiled no" in resumed.out


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("env=gym", "env.id=CartPole-v1"), "GymEnv does not step in torch"),
        (("agent._target_=test_compiled.Whole",), "step cannot be compiled: "),
    ],
)
def test_what_cannot_be_compiled_is_one_line(rlx, keys, words):
    result = rlx("train", "agent=dqn", "env=cartpole", *SHORT, *keys, "device.compile=true")
    assert result.code == 2
    assert words in result.err and len(result.err.strip().splitlines()) == 1


class Whole(DQN):
    """Has a clock in its `update`."""

    def update(self, transition: Transition) -> dict[str, torch.Tensor]:
        return super().update(transition)


def test_without_a_compiler(rlx, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    on_cpu = (*COMPILED, *SHORT, "steps=800", "device=cpu")
    result = rlx("train", *on_cpu, "device.compile=true")
    assert result.code == 2 and "there is no C++ compiler no-such-compiler here" in result.err
    monkeypatch.setattr("rlx.training.compiling.LEAST_STEPS", 10)
    result = rlx("train", *on_cpu)
    assert result.code == 0 and "compiled no" in result.out


@NEEDS_COMPILER
def test_a_compiler_may_have_options(rlx, monkeypatch, tmp_path):
    """They hold for the training that is given them; the next one has a compiler of its own."""
    programs = []

    def asked(graph, inputs):
        programs.append(torch._inductor.config.cpp.cxx[1])
        subprocess.run([programs[-1], "--version"], check=True, stdout=subprocess.DEVNULL)
        return interpreted(graph, inputs)

    monkeypatch.setattr(compiled, "inductor", asked)
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path)
    for options in (["-m64"], []):
        monkeypatch.setenv("CXX", shlex.join([*compiler()[:1], *options]))
        result = rlx("train", *COMPILED, *SHORT, "steps=800", "device.compile=true")
        assert result.code == 0 and "compiled step" in result.out, result
        cxx = programs[-1]
        assert cxx.startswith(str(tmp_path)) if options else cxx == compiler()[0]


@NEEDS_COMPILER
def test_a_compiler_that_fails_leaves_the_steps_as_they_are_written(rlx, monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("the compiler crashed")

    monkeypatch.setattr(compiled, "inductor", failing)
    monkeypatch.setattr("rlx.training.compiling.LEAST_STEPS", 10)
    result = rlx("train", *COMPILED, *SHORT, "steps=800")
    assert result.code == 0
    assert "step cannot be compiled: the compiler crashed; it runs as it is written" in result.out
    whole = rlx("train", *COMPILED, *SHORT, "steps=800", "device.compile=false")
    prints = [fingerprint(done.run) for done in (result, whole)]
    assert prints[0] == prints[1]


def told_to_stop(monkeypatch, number):
    """Ctrl-C while the function of this `number` is compiled, or what stands for compiling."""
    built = []

    def build(graph, inputs):
        built.append(graph)
        if len(built) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return compiled.interpreted(graph, inputs)

    monkeypatch.setattr(compiled, "inductor", build)
    monkeypatch.setattr("rlx.training.compiling.LEAST_STEPS", 10)


@NEEDS_COMPILER
def test_ctrl_c_ends_what_is_compiled_first_at_once(rlx, monkeypatch):
    told_to_stop(monkeypatch, 1)
    result = rlx("train", *COMPILED, *SHORT, "steps=400")
    assert result.code == 130
    assert result.err == "rlx: interrupted before the first checkpoint; it is to begin again\n"


@NEEDS_COMPILER
@pytest.mark.parametrize(("cheap", "step"), [(60.0, 40), (0.0, 64)])
def test_ctrl_c_while_learning_is_compiled_loses_no_more_than_is_cheap(
    rlx, monkeypatch, cheap, step
):
    """At once, back to the checkpoint of step 40; or behind the vector step, with another one."""
    run = partial(rlx, "train", *COMPILED, *SHORT, "steps=400", "checkpoint_every=40")
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "CHEAP", cheap)
        told_to_stop(patch, 2)
        result = run()
    assert result.code == 130
    assert f"interrupted at step {step}; go on with: rlx resume" in result.err
    (stopped,) = Path("outputs/train").glob("*/*")
    told_to_stop(monkeypatch, 0)
    assert rlx("resume", stopped).code == 0
    assert fingerprint(stopped) == fingerprint(run().run)


@pytest.mark.parametrize("value", ["yes", "1", "inductor"])
def test_device_compile_takes_three_words(rlx, value):
    result = rlx("train", *COMPILED, *SHORT, f"device.compile={value}")
    assert result.code == 2 and "device.compile" in result.err
