"""Sweepers of Hydra's: what they think of becomes jobs of the sweep, with every launcher."""

import shutil
import sys
import types
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from test_sweeps import SMALL, runs, table, the_sweep


class Halving(Sweeper):
    """Tries a learning rate, and then the better of its half and its double."""

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        rates = [0.01]
        for _ in range(2):
            tries = [rates[-1] / 2, rates[-1] * 2]
            jobs = [[*arguments, f"agent.learning_rate={rate}"] for rate in tries]
            done = self.launcher.launch(jobs, initial_job_idx=0)
            returns = [job.return_value for job in done]
            assert None not in returns
            rates.append(tries[returns.index(max(returns))])


Halving.__module__ = "hydra_plugins.halving"  # Hydra takes no other


@pytest.fixture
def halving(rlx, monkeypatch):
    """The command line with the sweeper."""
    for name in ("hydra_plugins", "hydra_plugins.halving"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["hydra_plugins"].halving = sys.modules["hydra_plugins.halving"]
    sys.modules["hydra_plugins.halving"].Halving = Halving
    Plugins.instance().register(Halving)
    folder = Path("conf/hydra/sweeper")
    folder.mkdir(parents=True)
    (folder / "halving.yaml").write_text("_target_: hydra_plugins.halving.Halving\n")
    return rlx


def test_a_sweeper_goes_on_where_it_was(halving):
    line = ("train", "-m", *SMALL, "hydra/sweeper=halving")
    result = halving(*line)
    assert result.code == 0, result.err
    rows, trained = table(the_sweep()), runs()
    assert len(trained) == len(rows) in (3, 4)  # 0.005 and 0.02, and then two, one perhaps 0.01
    shutil.rmtree(trained[0])
    for again in (line, ("resume", the_sweep())):
        result = halving(*again)
        assert result.code == 0, result.err
        assert table(the_sweep()) == rows and len(runs()) == len(trained)
    result = halving("resume", the_sweep(), "hydra/launcher=vector")
    assert result.code == 2 and "not with a sweeper of Hydra's" in result.err


def test_a_sweeper_makes_no_batches(halving):
    line = ("train", "-m", *SMALL, "hydra/sweeper=halving", "hydra/launcher=vector")
    result = halving(*line)
    assert result.code == 2 and "not with a sweeper of Hydra's" in result.err
    assert not Path("outputs").exists()


def test_an_experiment_may_name_a_sweeper_and_the_folder(halving):
    folder = Path("conf/experiment")
    folder.mkdir()
    (folder / "halved.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/sweeper: halving]\noutputs: there\n"
    )
    assert halving("train", "-m", *SMALL, "experiment=halved").code == 0
    assert list(Path("there/sweeps").iterdir()) and not Path("outputs").exists()


@pytest.mark.parametrize(
    "word, expected",
    [
        ("hydra.sweeper.params=", "hydra.sweeper.params=: a sweep's values are words"),
        ("hydra.sweeper.params=3", "hydra.sweeper.params=3: a sweep's values are words"),
        ("hydra.sweeper.params={agent.discount: 2}", "a sweep's values are words of the line"),
        ("hydra.sweeper.max_batch_size=x", "hydra.sweeper.max_batch_size=x"),
    ],
)
def test_what_a_sweeper_cannot_take_is_one_line(word, expected, rlx, tmp_path):
    result = rlx("train", "-m", *SMALL, "agent.learning_rate=1e-2,1e-3", word)
    assert result.code == 2 and expected in result.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["list", "show", "compare", "clean", "report", "data", "bench"])
def test_a_command_that_makes_no_runs_has_no_sweeps(command, rlx, tmp_path):
    result = rlx(command, "-m", "outputs=a,b")
    assert result.code == 2 and result.err.strip() == f"rlx: -m: rlx {command} has no sweeps."
    assert not list(tmp_path.iterdir())
