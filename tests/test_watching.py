"""What a person sees while a command runs: on terminals of several widths, in a pipe, in none."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from rlx import __main__, cli
from rlx.show import console

ROOT = Path(__file__).parents[1]
TRAIN = [
    "train",
    "agent=dqn",
    "env=cartpole",
    *TINY,
    "seeds=2",
    "agent.learning_starts=64",
    "agent.hidden=[16]",
    "device.compile=false",
    "device=cpu",
]
CONTROL = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlx", *arguments]


def environment() -> dict[str, str]:
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    named = {"PYTHONPATH": places, "TERM": "xterm-256color"}
    return {**os.environ, **named} | {"COLUMNS": "", "LINES": ""}


def on_terminal(arguments: list[str], columns: int, folder: Path) -> str:
    """What a command writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # Linux says so that nobody has the terminal open
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_training_fits_the_terminal(columns, tmp_path):
    written = on_terminal(TRAIN, columns, tmp_path)
    lines = [CONTROL.sub("", line) for line in re.split(r"\r?\n|\r|\x1b\[2K", written)]
    assert lines[0] == "starting" and lines[1] == "train    dqn-cartpole"
    # A path is not broken: it is to be copied.
    assert [line for line in lines if len(line) > columns and "outputs/" not in line] == []
    assert not any("…" in line for line in lines)
    bars = [line for line in lines if "━ " in line and "steps" in line]
    assert bars and all(len(line) == columns for line in bars)
    assert re.search(r"600 steps ━+ 100 %  0:00:00 left  [\d,]+/s  \d+\.\d GB", bars[-1])
    assert ("acting" in bars[-1]) == (columns == 200)
    evaluations = [line for line in lines if re.match(r" +(300|600)  return ", line)]
    assert len(evaluations) == 2 and all(line.endswith("0/2 solved") for line in evaluations) == (
        columns == 60
    )
    assert any(re.match(r"spent    acting \d+%, env \d+%, learning \d+%", line) for line in lines)


def test_what_goes_to_a_pipe_is_plain_and_whole(tmp_path):
    done = subprocess.run(
        command(*TRAIN), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stdout)
    lines = done.stdout.splitlines()
    assert lines[0] == "train    dqn-cartpole"
    assert re.fullmatch(r" +300  return .* solved  [\d,]+ steps/s each  .* left", lines[9])
    assert (tmp_path / lines[-1] / "summary.json").exists()


def test_a_reader_that_goes_away_ends_the_command_as_a_shell_expects(tmp_path):
    process = subprocess.Popen(
        command(*TRAIN), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"train    dqn-cartpole\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/full", ">&- 2>&-"])
def test_an_output_that_cannot_be_written(closed, tmp_path):
    line = f"{sys.executable} -m rlx --help {closed}"
    done = subprocess.run(line, shell=True, env=environment(), capture_output=True)
    assert done.returncode == (1 if "full" in closed else 0)


def test_a_command_is_shown_to_have_begun_before_torch_is_imported(tmp_path):
    code = """
import sys
from rlx import cli
cli._show_start = lambda: print("hydra" in sys.modules, "torch" in sys.modules)
print(cli.run(["attack", "run=nowhere"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True
    )
    assert done.stdout == b"False False\n2\n"


class Interrupting:
    """An import hook: Ctrl-C comes when a module of this name is imported."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise KeyboardInterrupt


@pytest.mark.parametrize("module", ["rlx.cli", "hydra.errors"])
def test_an_interrupt_while_python_imports_is_one_line(module, monkeypatch, capsys):
    monkeypatch.setattr(cli, "main", lambda: sys.exit(cli.run(["list"])))
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(module), *sys.meta_path])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 130
    assert capsys.readouterr() == ("", "rlx: interrupted\n")


@pytest.fixture
def screen(monkeypatch):
    """screen(columns) is a terminal's output so far, which is written to from then on."""

    def make(columns: int) -> StringIO:
        file = StringIO()
        terminal = console._Terminal(
            file=file, force_terminal=True, width=columns, soft_wrap=True, highlight=False
        )
        monkeypatch.setattr(console, "terminal", terminal)
        return file

    return make


def test_a_table_goes_on_below_where_a_terminal_is_narrow(screen):
    rows = [["0.01", *["-80.0 [-82.5, -78.3]"] * 3], ["0.02", *["-474 [-493, -455]"] * 3]]
    file = screen(60)
    console.table("Return", ["eps", "both", "goal", "action"], rows)
    lines = CONTROL.sub("", file.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if "eps" in line] == [
        "┃  eps ┃                 both ┃                 goal ┃",
        "┃  eps ┃               action ┃",
    ]
    assert sum("-474 [-493, -455]" in line for line in lines) == 2
    file = screen(100)
    console.table("Return", ["eps", "both", "goal", "action"], rows)
    assert CONTROL.sub("", file.getvalue()).count("eps") == 1


def test_sentences_in_a_table_are_broken_between_words(screen):
    file = screen(60)
    text = "the highest return is 6 above that of clean play"
    console.table("Audit", ["", "check", "measured"], [["pass", "no seed gains from it", text]])
    lines = CONTROL.sub("", file.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    cells = [line.split("│")[3].strip() for line in lines if line.startswith("│")]
    assert " ".join(filter(None, cells)) == text


def test_an_evaluation_leaves_out_what_has_no_room(screen):
    returns = torch.full((200,), -123.4)
    for columns, left_out in ((60, "steps/s"), (90, None)):
        file = screen(columns)
        with console.Progress(10_000_000, threshold=-100.0) as progress:
            progress.evaluated(1_000_000, returns, returns)
        (line,) = [
            line
            for line in CONTROL.sub("", file.getvalue()).splitlines()
            if line.startswith("1,000,000  return")
        ]
        assert len(line) <= columns
        assert left_out is None or left_out not in line
        assert ("each" in line) == (left_out is None)


def test_what_is_no_number_has_one_sign():
    assert console.number(np.nan) == console.cell(np.nan) == "–"
    assert console.interval_text(np.nan, (0.1, 0.2)) == "–", "an interval of nothing says nothing"
    assert console.interval_text(5.0, (np.nan, np.nan)) == "5"
    assert console.interval_text(0.0131, (0.011, ">0.03")) == "0.0131 [0.011, >0.03]"
    assert console.interval_text(">0.03", (0.02, ">0.03")) == ">0.03 [0.02, >0.03]"


def test_what_was_spent_on_compiling_does_not_count_as_slow_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Progress(200, begin=100, paused=lambda: 90.0) as progress:
        now[0] += 100.0
        assert progress.steps_per_s(150) == 5.0
        assert progress.seconds_left(150) == 10.0
