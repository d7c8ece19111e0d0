"""rlx doctor: what it says of the machine, and its exit code where a training lacks something."""

import importlib.metadata

import pytest
import torch

from rlx.commands import doctor
from rlx.machine import compiler


@pytest.fixture
def quick(monkeypatch):
    """Nothing is tried that takes time."""
    monkeypatch.setattr(doctor, "PROBES", {})


def test_it_says_what_there_is(rlx, tmp_path):
    result = rlx("doctor", "agent=dqn", "env=cartpole")
    assert result.code == 0, result.err
    facts = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert facts["torch"].startswith(torch.__version__)
    assert torch.backends.cpu.get_cpu_capability() in facts["cpu"]
    assert facts["outputs"].startswith("outputs can be written")
    assert facts["ready"] == "rlx train agent=dqn env=cartpole"
    assert {"rlx", "python", "cuda", "memory", "compiler", *doctor.PROBES} - {
        "mujoco drawing"
    } <= set(facts)
    assert list(tmp_path.iterdir()) == []


LACKING = {
    "agent=dqn env=pendulum": "agent: DQN needs Discrete actions",
    "agent=bcq env=cartpole": "data: this agent learns from a data set",
    "agent=dqn env=gym env.id=Nothing-v0": "Nothing",
    "outputs=/proc/x": "outputs=/proc/x: cannot be written",
    "device.compile=true": "there is no C++ compiler none-such here",
    "device=cuda": "torch sees no CUDA device here",
}


@pytest.mark.parametrize("words", LACKING)
def test_what_a_training_lacks_is_exit_code_1(words, quick, rlx, tmp_path, monkeypatch):
    if words == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.setenv("CXX", "none-such")
    result = rlx("doctor", *words.split())
    assert result.code == 1 and LACKING[words] in result.err, result.err
    assert result.err.startswith(f"rlx: rlx train {words}: cannot be done here.")
    assert "no none-such: trainings run as written" in result.out
    assert list(tmp_path.iterdir()) == []


def test_a_word_that_is_none_is_exit_code_2(quick, rlx):
    for words, message in (("agent=dqm", "Did you mean 'dqn'?"), ("sedes=3", "Did you mean")):
        result = rlx("doctor", words)
        assert result.code == 2 and message in result.err


def test_what_cannot_be_imported_is_told_with_what_installs_it(rlx, monkeypatch):
    probes = {
        "absent": ("import none_such_module", "pip install none"),
        "loud": ("import os; os.abort()", "ask"),
    }
    monkeypatch.setattr(doctor, "PROBES", probes)
    out = rlx("doctor").out
    assert "absent   no (ModuleNotFoundError: No module named 'none_such_module')" in out
    assert "; pip install none\n" in out and "loud     no (" in out


def test_extras_are_those_of_the_installed_rlx(quick, rlx, monkeypatch):
    try:
        extras = importlib.metadata.metadata("rlx").get_all("Provides-Extra")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("rlx is not installed")
    version = importlib.metadata.version

    def lacking(name: str) -> str:
        if name == "ale-py":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "onnx" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", lacking)
    out = rlx("doctor").out
    assert all(f"[{extra}]" in out for extra in extras)
    assert '[atari]  lacks ale-py; pip install "rlx[atari]"' in out
    (line,) = [line for line in out.splitlines() if line.startswith("[onnx]")]
    assert "lacks onnx" in line, "a version that is too old"


def test_the_compiler_is_that_of_trainings(quick, rlx, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    out = rlx("doctor").out
    assert f"no {compiler()[0]}: " in out or compiler()[0].rpartition("/")[2] in out
