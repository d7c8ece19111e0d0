"""A vector sweep: jobs trained as one batch, each of which ends as if it had been trained alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import AGENTS, ENVS, small
from safetensors.torch import load_file
from test_agents import calm
from test_per_seed_numbers import OFFLINE, SOON, config_type, env_of, values

from rlx.config import varying
from rlx.data.writer import Writer
from rlx.sweeps.sweep import Job, Sweep

VECTOR = "hydra/launcher=vector"
SIZES = (
    "steps=320",
    "eval_every=160",
    "checkpoint_every=160",
    "eval_episodes=2",
    "final_episodes=3",
    "num_envs=4",
    "seeds=2",
    "tuned=none",
)


def jobs(outputs: str = "outputs") -> list[Job]:
    """The jobs of the only sweep below a folder."""
    (sweep,) = Path(outputs, "sweeps").iterdir()
    return Sweep(sweep).jobs()


def rows(run: Path) -> list[dict]:
    """The rows of metrics.jsonl, without the wall clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not key.startswith("time/")} for row in lines]


def close(one: object, other: object) -> bool:
    """Whether two numbers, or lists of them, are equal up to rounding; None is NaN."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    pair = [np.asarray(value, dtype=float) for value in (one, other)]
    return np.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True)


def assert_same(one: Path, other: Path) -> None:
    """Both runs say the same, but for rounding and the folder that they are in."""
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (one, other)]
    assert configs[0] | {"outputs": ""} == configs[1] | {"outputs": ""}
    assert len(rows(one)) == len(rows(other)) > 0
    for row, twin in zip(rows(one), rows(other), strict=True):
        assert row.keys() == twin.keys()
        for key in row:
            assert close(row[key], twin[key]), (key, row, twin)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for key in ("seeds", "steps"):
        assert summaries[0][key] == summaries[1][key]
    assert close(*[summary["return"]["per_seed"] for summary in summaries])
    for key in ("step", "value", "solved"):
        assert close(*[summary["kept"][key] for summary in summaries]), key
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
    for name in names:
        files = [run / "checkpoints" / name / "agent.safetensors" for run in (one, other)]
        policies = [load_file(file) for file in files]
        assert policies[0].keys() == policies[1].keys()
        for key in policies[0]:
            assert close(policies[0][key], policies[1][key]), (name, key)


def assert_same_sweeps(one: str, other: str) -> None:
    """The finished jobs of two sweeps, of the same identities, are the same."""
    runs = {job.id: job.run for job in jobs(one)}
    twins = {job.id: job.run for job in jobs(other)}
    assert runs.keys() == twins.keys()
    for job_id, run in runs.items():
        assert run is not None and twins[job_id] is not None
        assert_same(run.path, twins[job_id].path)


def swept(agent: str) -> list[str]:
    """Two values of up to two numbers of an agent, as one types them in a sweep."""
    fields = [name for name in ("learning_rate", "discount") if name in varying(config_type(agent))]
    fields = fields or sorted(varying(config_type(agent)))[:2]
    return ["agent.{}={},{}".format(name, *values(agent, name)) for name in fields]


def walks(folder: Path) -> Path:
    """A data set of random walks in CartPole's spaces."""
    rng = np.random.default_rng(0)
    writer = Writer(str(folder / "walks"))
    for number in range(20):
        obs = (rng.uniform(-1, 1, (12, 4)) * [4, 4, 0.4, 4]).astype(np.float32)
        action = rng.choice(2, 11, p=[0.7, 0.3])
        writer.add(obs, action, (action == 1).astype(np.float32), number % 2 == 0)
    writer.close({}, 1, [])
    return folder / "walks"


@pytest.mark.rounding
@pytest.mark.parametrize("agent", AGENTS)
def test_a_vector_sweep_is_the_sweep_of_one_job_after_the_other(agent, rlx, tmp_path):
    env = env_of(agent, "discount")
    words = [f"agent={agent}", f"env={env}", *ENVS.get(env, ()), *SIZES]
    if agent in OFFLINE:
        words += [f"data={walks(tmp_path)}", "steps=40", "eval_every=20", "checkpoint_every=20"]
    words += small(agent, **SOON | calm(agent)) + swept(agent)
    alone = rlx("train", "-m", *words, "outputs=alone")
    assert alone.code == 0, alone.err
    batch = rlx("train", "-m", *words, VECTOR, "outputs=batch")
    assert batch.code == 0, batch.err
    number = 2 ** len(swept(agent))
    assert f"{number} jobs in one batch" in batch.out
    assert_same_sweeps("alone", "batch")
    assert not list(Path("batch/sweeps").glob("*/batches"))
