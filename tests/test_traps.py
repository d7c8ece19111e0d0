"""Agents whose steps are no graph: where compiling is tried, they do what is written."""

import json
import random
import subprocess
from collections import deque
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_compiled import COMPILED, SHORT, assert_equal, training
from torch import Tensor

from rlx.agent import Carry, Part, Transition
from rlx.agents.dqn import DQN
from rlx.errors import ConfigError, RunError
from rlx.training import compiled
from rlx.training.compiled import CompiledSteps, interpreted
from rlx.training.loop import Training


def interpreted_steps(training: Training, *, strict: bool) -> CompiledSteps:
    """As `compile_steps`, without a compiler: bit for bit what is written."""
    return CompiledSteps(training, interpreted, strict=strict)


class Updating(DQN):
    """Extends `update`, which learns what is due."""

    def update(self, transition: Transition) -> dict[str, Tensor]:
        return {f"more/{name}": value for name, value in super().update(transition).items()}


class Waiting(DQN):
    """Keeps transitions for three steps in a queue."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.waiting = deque()

    def store(self, transition: Transition) -> None:
        self.waiting.append(transition)
        if len(self.waiting) > 3:
            super().store(self.waiting.popleft())


class Nesting(DQN):
    """Counts within a list within a dictionary."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rows = {"stored": [0]}

    def store(self, transition: Transition) -> None:
        self.rows["stored"][0] += 1
        if self.rows["stored"][0] > 3:
            super().store(transition)


class Holding(DQN):
    """Counts in an object that is no module."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.counts = SimpleNamespace(stored=0)

    def store(self, transition: Transition) -> None:
        self.counts.stored += 1
        if self.counts.stored > 3:
            super().store(transition)


class Closing(DQN):
    """Counts in a variable of a function."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        stored = 0

        def count() -> int:
            nonlocal stored
            stored += 1
            return stored

        self.count = count

    def store(self, transition: Transition) -> None:
        if self.count() > 3:
            super().store(transition)


class Tossing(DQN):
    """Draws from Python's random stream."""

    def store(self, transition: Transition) -> None:
        if random.random() < 0.5:
            super().store(transition)


class Late(DQN):
    """Has a buffer that is None at first."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("former", None)

    def store(self, transition: Transition) -> None:
        if self.former is not None:
            super().store(transition)
        self.former = transition.reward


class Carrying(DQN):
    """Returns a carry of another name."""

    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        action, carry = super().act(obs, first, carry)
        return action, {**carry, "seen": obs}


class Viewing(DQN):
    """Writes to a part of a tensor that is no buffer."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sums = torch.zeros(2, 4)

    def store(self, transition: Transition) -> None:
        super().store(transition)
        self.sums[:, 1:] += transition.reward[:, 1:]


class Listing(Viewing):
    """Writes to a list of tensors that are no buffers."""

    def store(self, transition: Transition) -> None:
        DQN.store(self, transition)
        torch._foreach_add_([self.sums], [transition.reward])


class Sharing(DQN):
    """Has a buffer that is a view of another."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("whole", torch.zeros(2, 4))
        self.register_buffer("part", self.whole[:, 1:])

    def store(self, transition: Transition) -> None:
        super().store(transition)
        self.whole += transition.reward


class Tying(DQN):
    """Has a parameter twice."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.again = next(self.policy.parameters())


class Annealing(DQN):
    """Has a clock in `due` that sets a number which `store` reads."""

    share = 1.0

    def due(self) -> list[Part]:
        self.share = self.share * 0.9
        return super().due()

    def store(self, transition: Transition) -> None:
        super().store(replace(transition, reward=transition.reward * self.share))


class Weighing(DQN):
    """Has a clock in `due` that sets a tensor which is no buffer, and which `store` reads."""

    weights = torch.ones(2, 1)

    def due(self) -> list[Part]:
        self.weights = self.weights * 0.9
        return super().due()

    def store(self, transition: Transition) -> None:
        super().store(replace(transition, reward=transition.reward * self.weights))


REFUSED = [
    (Updating, "step cannot be compiled"),
    (Waiting, "Waiting.waiting changes with a step"),
    (Nesting, "Nesting.rows.stored changes with a step"),
    (Holding, "SimpleNamespace.stored changes with a step"),
    (Closing, "Closing.count changes with a step"),
    (Tossing, "Python's random stream changes with a step"),
    (Late, "Late._buffers changes with a step"),
    (Carrying, "carry.seen changes with a step"),
    (Viewing, "writes to a tensor that is no buffer"),
    (Listing, "writes to a tensor that is no buffer"),
    (Sharing, "share their memory"),
    (Tying, "share their memory"),
    (Annealing, "Annealing.share changes between steps"),
    (Weighing, "Weighing.weights changes between steps"),
]


@pytest.mark.parametrize(("kind", "words"), REFUSED)
def test_what_no_graph_does_runs_as_it_is_written(kind, words, capsys, monkeypatch):
    """A graph would do once, when it is traced, what Python does at every step."""
    monkeypatch.setattr(compiled, "compile_steps", interpreted_steps)
    keys = ("dqn", "cartpole", f"agent._target_=test_traps.{kind.__name__}")
    written = training(*keys)
    lenient = training(*keys)
    for one in (written, lenient):
        random.seed(0)
        one.compiles = one is lenient
        for _ in range(50):
            one._vector_step()
    assert words in capsys.readouterr().out
    assert_equal(written, lenient)
    assert str(getattr(lenient.agent, "sums", None)) == str(getattr(written.agent, "sums", None))
    strict = training(*keys, "device.compile=true")
    with pytest.raises(ConfigError, match=words):
        for _ in range(50):
            strict._vector_step()


class Counting(DQN):
    """Has parts that differ in what they are given only."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("sum", torch.zeros(2))

    def due(self) -> list[Part]:
        return [*super().due(), *self.more()]

    def more(self) -> list[Part]:
        return [partial(self.add, amount=1.0), partial(self.add, amount=2.0)]

    def add(self, amount) -> dict[str, Tensor]:
        self.sum += amount
        return {}


class Typing(Counting):
    """1 and True are equal."""

    def more(self) -> list[Part]:
        return [partial(self.add, 1), partial(self.add, True)]

    def add(self, amount) -> dict[str, Tensor]:
        return super().add(1.0 if isinstance(amount, bool) else 5.0)


class Unhashable(Counting):
    """A list is no key."""

    def more(self) -> list[Part]:
        return [partial(self.add, [1.0]), partial(self.add, [2.0])]

    def add(self, amount) -> dict[str, Tensor]:
        return super().add(amount[0])


class Overriding(Counting):
    """Two methods have one name."""

    def more(self) -> list[Part]:
        return [partial(super().add, 1.0), partial(self.add, 1.0)]

    def add(self, amount) -> dict[str, Tensor]:
        return super().add(10 * amount)


class Temporary(Counting):
    """A part's owner is gone after it, and the next may have its place."""

    class Adding:
        def __init__(self, agent: Counting, amount: float):
            self.agent = agent
            self.amount = amount

        def add(self) -> dict[str, Tensor]:
            return self.agent.add(self.amount)

    def more(self) -> list[Part]:
        self.times = getattr(self, "times", 0) + 1
        return [self.Adding(self, float(self.times)).add]


class Rebinding(Counting):
    """Binds buffers anew in `due`."""

    def more(self) -> list[Part]:
        self.sum = self.sum + 1
        self.learner.optimizer.learning_rate = 1e-3 / float(self.sum[0])
        return [partial(self.add, 1.0)]


@pytest.mark.parametrize("kind", [Counting, Typing, Unhashable, Overriding, Temporary, Rebinding])
def test_parts_are_told_from_each_other(kind):
    keys = ("dqn", "cartpole", f"agent._target_=test_traps.{kind.__name__}")
    written = training(*keys)
    traced = training(*keys)
    traced.compiles = True
    traced.compiled = CompiledSteps(traced, interpreted, strict=True)
    for _ in range(50):
        written._vector_step()
        traced._vector_step()
    assert_equal(written, traced)


class Averaging(DQN):
    """Returns one number for all seeds."""

    def learn(self) -> dict[str, Tensor]:
        return {"loss/q": super().learn()["loss/q"].mean()}


def test_metrics_of_a_wrong_shape_are_the_same_error():
    done = training("dqn", "cartpole", "agent._target_=test_traps.Averaging")
    done.compiles = True
    done.compiled = CompiledSteps(done, interpreted)
    with pytest.raises(RunError, match=r"metric 'loss/q' is float32 \[\]; expected a tensor \[2\]"):
        for _ in range(50):
            done._vector_step()


def test_an_interrupt_does_not_reach_the_compiler(rlx):
    """Ctrl-C goes to all processes of a terminal; the run is to end between two steps."""
    codes = []

    def build(graph, inputs):
        child = subprocess.run(["sh", "-c", "kill -INT $$; exit 0"])
        codes.append(child.returncode)
        return graph

    done = training("dqn", "cartpole")
    done.compiles = True
    done.compiled = CompiledSteps(done, build, strict=True)
    done._vector_step()
    assert codes == [0]


def test_a_compiled_run_goes_on_where_there_is_no_compiler_and_when_it_grows(rlx, monkeypatch):
    monkeypatch.setattr(compiled, "compile_steps", interpreted_steps)
    monkeypatch.setattr("rlx.training.compiling.LEAST_STEPS", 10)
    run = rlx("train", *COMPILED, *SHORT, "steps=800", "checkpoint_every=400").run
    grown = rlx("resume", run, "seeds=3")
    assert grown.code == 0
    newest = max((run / "checkpoints").glob("0*"))
    assert json.loads((newest / "state.json").read_text())["compiled"] is True
    monkeypatch.setenv("CXX", "no-such-compiler")
    resumed = rlx("resume", run, "steps=1200")
    assert resumed.code == 0 and "compiled no" in resumed.out
    assert "goes on as it is written: there is no C++ compiler no-such-compiler" in resumed.out
    again = rlx("resume", run, "steps=1600", "device.compile=false")
    assert again.code == 0, "a key of `device` may be given alone"


@pytest.mark.parametrize("folder", ["with a space", "a_file"])
def test_a_cache_folder_that_cannot_be_is_not_taken(folder, tmp_path, monkeypatch):
    """Inductor's commands break at a space."""
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(compiled.products, "decompositions", dict)
    monkeypatch.delenv(compiled.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
    compiled.compile_steps(training("dqn", "cartpole"), strict=True)
    assert compiled.CACHE not in compiled.os.environ
