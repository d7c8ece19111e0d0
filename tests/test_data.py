"""Data sets: what is written is what minibatches show, whichever the format.

What is broken is named.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, small
from gymnasium import spaces

from rlx.agent import Spec
from rlx.data.episodes import Episodes
from rlx.data.shards import write
from rlx.data.writer import Writer
from rlx.errors import ConfigError
from rlx.experiment import open_data

CARTPOLE = {"_target_": "rlx.envs.cartpole.CartPole", "max_episode_steps": 500}


def spec(stack=1):
    return Spec(spaces.Box(-np.inf, np.inf, (2 * stack,)), spaces.Discrete(3), 100)


def env(stack=1):
    return CARTPOLE | {"stack": stack}


def episodes(lengths=(4, 1, 7), terminated=(True, False, False)):
    """Episodes whose observations say where they are: (episode, step)."""
    for number, (length, ended) in enumerate(zip(lengths, terminated, strict=True)):
        steps = np.arange(length + 1)
        obs = np.stack([np.full(length + 1, number), steps], 1).astype(np.float32)
        yield obs, steps[:-1] % 3, (10.0 * number + steps[:-1]).astype(np.float32), ended


@pytest.fixture
def made(tmp_path) -> Episodes:
    writer = Writer(str(tmp_path / "set"))
    for episode in episodes():
        writer.add(*episode)
    return writer.close(CARTPOLE, 2, ["hand-made"])


def everything(data, count=4000, **options):
    draws = torch.rand(1, count)
    batch = data.sample(0, draws, **({"n_steps": 1, "discount": 0.9} | options))
    return {name: value[0] for name, value in batch.items()}


def test_every_transition_is_drawn_about_equally_often(made):
    made.adapt_to(spec(), env())
    batch = everything(made)
    distinct, counts = np.unique(batch["obs"].numpy(), axis=0, return_counts=True)
    assert len(distinct) == 12 == made.transitions
    assert counts.min() > 0.7 * 4000 / 12
    # No transition leads into another episode.
    assert torch.equal(batch["next_obs"][:, 0], batch["obs"][:, 0])
    assert torch.equal(batch["next_obs"][:, 1], batch["obs"][:, 1] + 1)
    assert torch.equal(batch["reward"], 10 * batch["obs"][:, 0] + batch["obs"][:, 1])
    assert torch.equal(batch["action"], batch["obs"][:, 1].long() % 3)


def test_only_termination_ends_bootstrapping(made):
    """Traps 1 and 6 of discrete BCQ: `done` stored inverted, time limits stored as terminal."""
    made.adapt_to(spec(), env())
    batch = everything(made)
    terminal = (batch["next_obs"] == torch.tensor([0.0, 4.0])).all(1)
    assert terminal.any() and (batch["discount"][terminal] == 0).all()
    assert (batch["discount"][~terminal] == 0.9).all()
    truncated = (batch["next_obs"] == torch.tensor([2.0, 7.0])).all(1)
    assert truncated.any(), "the end of a cut episode was drawn too"


def test_returns_of_several_steps(made):
    made.adapt_to(spec(), env())
    batch = everything(made, n_steps=3, discount=0.5)
    lengths, ends = (4, 1, 7), (True, False, False)
    for (number, step), reward, discount, after in zip(
        batch["obs"].tolist(),
        batch["reward"].tolist(),
        batch["discount"].tolist(),
        batch["next_obs"].tolist(),
        strict=True,
    ):
        taken = range(int(step), min(int(step) + 3, lengths[int(number)]))
        assert reward == pytest.approx(sum(0.5**i * (10 * number + s) for i, s in enumerate(taken)))
        stop = ends[int(number)] and taken[-1] + 1 == lengths[int(number)]
        assert discount == (0 if stop else 0.5 ** len(taken))
        assert after == [number, taken[-1] + 1]


def test_stacks_begin_with_the_first_observation_repeated(made):
    made.adapt_to(spec(stack=3), env(3))
    batch = everything(made)
    for obs, after in zip(batch["obs"].tolist(), batch["next_obs"].tolist(), strict=True):
        number, step = obs[-2:]
        assert obs == [x for back in (2, 1, 0) for x in (number, max(0, step - back))]
        assert after == [x for back in (1, 0, -1) for x in (number, max(0, step - back))]


def test_shards_hold_the_same(made, tmp_path):
    write(made, tmp_path / "shards", 2, rows=5)
    shards = open_data(str(tmp_path / "shards"))
    for data in (made, shards):
        data.adapt_to(spec(stack=2), env(2))

    def drawn(data):
        rows = set()
        for number in range(200):
            batch = data.sample(number, torch.rand(1, 3), 1, 0.9)
            columns = [value.reshape(3, -1).double() for value in batch.values()]
            rows |= {tuple(row) for row in torch.cat(columns, 1).tolist()}
        return rows

    assert drawn(shards) == drawn(made)
    assert len(drawn(made)) == 12
    with pytest.raises(ConfigError, match=r"agent.n_steps=3.*no episodes"):
        shards.sample(0, torch.rand(1, 3), 3, 0.9)


def test_an_epoch_visits_every_shard_as_often_as_it_has_rows(made, tmp_path):
    write(made, tmp_path / "shards", 1, rows=5)  # 5, 5 and 2 rows: 3, 3 and 1 minibatches of 2
    shards = open_data(str(tmp_path / "shards"))
    shards.adapt_to(spec(), env())
    orders = []
    for epoch in range(20):
        opened = []
        for number in range(7 * epoch, 7 * epoch + 7):
            shards.sample(number, torch.rand(1, 2), 1, 0.9)
            opened.append(shards.opened.file.name)
        assert sorted(opened) == sorted(["00000.npz"] * 3 + ["00001.npz"] * 3 + ["00002.npz"])
        orders.append(tuple(dict.fromkeys(opened)))
        assert sum(a != b for a, b in itertools.pairwise(opened)) == 2, "a shard is opened once"
    assert len(set(orders)) > 3


def test_the_sources_scaled_images_come_back_as_they_were(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 16)).astype(np.uint8)
    arrays = {
        "states": pixels / np.float32(128) - 1,
        "next_states": pixels / np.float32(128) - 1,
        "actions": np.zeros(6, int),
    }
    np.savez(tmp_path / "a.npz", rewards=np.zeros(6), dones=np.zeros(6), **arrays)
    shards = open_data(str(tmp_path))
    shards.adapt_to(Spec(spaces.Box(0, 255, (1, 16, 16), np.uint8), spaces.Discrete(2), 9), {})
    obs = everything(shards)["obs"].numpy()
    assert {row.tobytes() for row in obs} == {row.tobytes() for row in pixels}


def test_images_of_another_scale_and_inverted_dones_are_refused(tmp_path):
    """Trap 1 again: `done` stored as its opposite."""
    pixels = np.random.default_rng(0).random((6, 1, 16, 16)).astype(np.float32)
    arrays = {
        "states": pixels,
        "next_states": pixels,
        "actions": np.zeros(6, int),
        "rewards": np.zeros(6),
    }
    np.savez(tmp_path / "a.npz", dones=np.arange(6) == 0, **arrays)
    images = Spec(spaces.Box(0, 255, (1, 16, 16), np.uint8), spaces.Discrete(2), 9)
    with pytest.raises(ConfigError, match="v / 128"):
        open_data(str(tmp_path)).adapt_to(images, {})
    np.savez(tmp_path / "a.npz", dones=np.arange(6) != 0, **arrays)
    with pytest.raises(ConfigError, match="5 of 6 rows; does it say who is not done"):
        open_data(str(tmp_path))


BREAKS = {
    "missing": (lambda a: a.pop("dones"), "'dones' is missing"),
    "dtype": (lambda a: a.update(actions=a["actions"] + 0.5), "'actions' is float64"),
    "dones": (lambda a: a.update(dones=a["dones"] + 2), "'dones' has other numbers"),
    "length": (lambda a: a.update(rewards=a["rewards"][:-1]), r"'rewards' is \[4\]"),
    "shape": (
        lambda a: a.update(states=a["states"][:, :1], next_states=a["next_states"][:, :1]),
        r"'states' is float32 \[1\], in others",
    ),
    "nan": (
        lambda a: a.update(states=np.where(a["states"] == 1, np.nan, a["states"])),
        "'states': row 1 is",
    ),
    "negative": (lambda a: a.update(actions=a["actions"] - 1), "'actions' reaches from -1 to 1"),
}


@pytest.mark.parametrize("kind", [*BREAKS, "cut", "no zip"])
def test_bad_shards_are_named_before_training(kind, made, tmp_path, rlx):
    write(made, tmp_path / "shards", 1, rows=5)
    bad = tmp_path / "shards" / "00001.npz"
    if kind == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
        expected = "perhaps truncated"
    elif kind == "no zip":
        bad.write_text("hello")
        expected = "unreadable"
    else:
        change, expected = BREAKS[kind]
        arrays = dict(np.load(bad))
        change(arrays)
        np.savez(bad, **arrays)
    result = rlx("train", "agent=bc", "env=cartpole", f"data={tmp_path}/shards", *TINY)
    assert result.code == 2 and "00001.npz" in result.err and "skip_bad=true" in result.err
    with pytest.raises(ConfigError, match=expected):
        open_data(str(tmp_path / "shards"))
    assert open_data(str(tmp_path / "shards"), skip_bad=True).transitions == 7
    assert not Path("outputs").exists(), "nothing was written"


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("reward.npy", lambda x: x[:-1], "11 rows where 12"),
        ("obs.npy", lambda x: np.where(x == 7, np.nan, x), "row 14 is not finite"),
        ("length.npy", lambda x: x + 1, "does not add up"),
        ("action.npy", None, "missing, cut"),
        ("data.json", None, "not valid JSON"),
    ],
)
def test_a_damaged_set_is_named(file, change, expected, made):
    path = made.folder / file
    if change is None:
        path.write_bytes(path.read_bytes()[:-20])
    else:
        np.save(path, change(np.load(path)))
    with pytest.raises(ConfigError, match=rf"{file}.*{expected}"):
        open_data(str(made.folder))


def test_sets_that_do_not_fit_are_refused(made, mixed, rlx):
    for other in (
        Spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(3), 9),
        Spec(spaces.Discrete(5), spaces.Discrete(3), 9),
    ):
        with pytest.raises(ConfigError, match="its observations are float32"):
            made.adapt_to(other, env())
    with pytest.raises(ConfigError, match="its actions are int64"):
        made.adapt_to(Spec(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), 9), env())
    for arguments, message in (
        (("agent=bcq", "env=cartpole"), "learns from a data set"),
        (("agent=dqn", "env=cartpole", f"data={mixed}/data"), "learns by acting"),
        (
            ("agent=bcq", "env=cartpole", "+env.observe=[0,1]", f"data={made.folder}"),
            "collected with env.observe=None",
        ),
        (("agent=bcq", "env=lunar_lander", f"data={mixed}/data"), "collected with env._target_"),
        (
            ("agent=bcq", "env=gym", "env.id=Acrobot-v1", f"data={mixed}/data"),
            "collected with env._target_",
        ),
        (("agent=bcq", "env=cartpole_drift", f"data={mixed}/data"), "does not grow older"),
        (("agent=bcq", "env=cartpole", "data=conf.py"), "no such folder"),
        (("agent=bcq", "env=cartpole", "data=nowhere"), "no such folder"),
        (("agent=bcq", "env=pendulum", f"data={made.folder}"), "collected with env._target_"),
        (("agent=bcq", "env=cartpole", "data=minari:rlx/none-v0"), "minari download rlx/none-v0"),
    ):
        result = rlx("train", *arguments, *TINY)
        assert result.code == 2 and message in result.err, result.err


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A DQN run on CartPole with its early and late checkpoints, and 1 000 transitions of them."""
    from rlx import cli

    root = tmp_path_factory.mktemp("mixed")
    run = ("agent=dqn", "env=cartpole", "seeds=2", *small("dqn"), *TINY, f"outputs={root}")
    assert cli.run(["train", *run]) == 0
    assert cli.run(["collect", str(root), f"out={root}/data", "steps=1k", "mix=[0,1]"]) == 0
    return root


def test_collected_episodes_are_whole_and_real(mixed):
    data = Episodes(mixed / "data")
    assert 1000 <= data.transitions < 3000
    early, late = data.facts["sources"]
    assert "step 300" in early and "step 600" in late
    from gymnasium.envs.classic_control import CartPoleEnv

    env = CartPoleEnv()
    for number in range(data.episodes):
        obs, action, reward, terminated = data.episode(number)
        assert terminated and (reward == 1).all()
        for before, chosen, after in zip(obs[:-1], action, obs[1:], strict=True):
            env.reset()
            env.state = before.astype(np.float64)
            assert np.allclose(env.step(int(chosen))[0], after, atol=1e-5)
    actions = [data.episode(number)[1] for number in range(data.episodes)]
    assert np.mean([action.std() > 0 for action in actions]) > 0.02


def test_exploration_and_seed_count(mixed, rlx, tmp_path):
    options = {
        "a": (),
        "same": (),
        "other": ("seed=1",),
        "greedy": ("epsilon=0",),
        "random": ("epsilon=1",),
    }
    sets = {}
    for name, changes in options.items():
        out = f"out={tmp_path}/{name}"
        assert rlx("collect", mixed, out, "steps=500", "mix=1", *changes).code == 0
        sets[name] = Episodes(tmp_path / name)
    assert np.array_equal(sets["a"].obs, sets["same"].obs)
    assert not np.array_equal(sets["a"].obs[:20], sets["other"].obs[:20])
    assert abs(sets["random"].action.mean() - 0.5) < 0.1
    for arguments, message in (
        ((f"out={tmp_path}/a",), "exists already"),
        (("out=.",), "exists already"),
        (("out=minari:rlx/x-v0",), "collect into a folder"),
        (("out=b", "mix=2"), "from 0 (a run's first"),
        (("out=b", "mix=abc"), "from 0 (a run's first"),
        (("out=b", "epsilon=2"), "from 0 to 1"),
        (("out=b", "steps=abc"), "steps=abc: expected a whole number"),
    ):
        result = rlx("collect", mixed, *arguments)
        assert result.code == 2 and message in result.err, result.err
    assert not list(Path().glob(".*")), "nothing is left behind"


def test_minari_gives_back_every_bit(mixed, rlx, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    result = rlx("data", mixed / "data", "out=minari:rlx/mixed-v0")
    assert result.code == 0, result.err
    own, other = Episodes(mixed / "data"), open_data("minari:rlx/mixed-v0")
    for name in ("obs", "action", "reward", "length", "terminated"):
        assert np.array_equal(getattr(own, name), getattr(other, name)), name
        assert getattr(own, name).dtype == getattr(other, name).dtype
    result = rlx(
        "train",
        "agent=bc",
        "env=cartpole",
        "data=minari:rlx/mixed-v0",
        "steps=4",
        "eval_every=4",
        *TINY[2:],
        "seeds=1",
    )
    assert result.code == 0, result.err
    assert "names are letters" in rlx("data", mixed / "data", "out=minari:no name").err
    copied = rlx("data", "minari:rlx/mixed-v0", "out=minari:rlx/other-v0")
    assert "unknown in which env" in copied.err
    assert "name the data set" in rlx("data").err


def test_the_card_tells_what_is_in_it(mixed, rlx):
    out = rlx("data", mixed / "data").out
    data = Episodes(mixed / "data")
    for part in (
        f"{data.transitions:,}",
        f"{data.episodes:,}",
        "100% terminated",
        f"mean {data.returns().mean():.1f}",
        "0: ",
        "1: ",
    ):
        assert part in out, part


def test_a_run_goes_on_with_its_own_data_only(mixed, rlx, tmp_path):
    import shutil

    shutil.copytree(mixed / "data", "own")
    run = rlx(
        "train",
        "agent=bc",
        "env=cartpole",
        "data=own",
        "steps=4",
        "eval_every=4",
        *TINY[2:],
        "seeds=1",
    ).run.absolute()
    assert Path((run / "config.yaml").read_text().split("\ndata: ")[1].split("\n")[0]).is_absolute()
    shutil.rmtree("own")
    assert rlx("collect", mixed, "out=own", "steps=500", "mix=1").code == 0
    result = rlx("resume", run, "steps=8")
    assert result.code == 2 and "is not what the run has learnt from" in result.err


def test_a_set_four_times_the_memory_allowed(tmp_path):
    """Private memory is limited to 1.5 GB; the set (sparse on disk) has 6 GB."""
    rows = 650_000
    (tmp_path / "big").mkdir()
    np.lib.format.open_memmap(
        tmp_path / "big/obs.npy", "w+", np.uint8, (rows + 1, 1, 96, 96)
    ).flush()
    np.save(tmp_path / "big/action.npy", np.arange(rows) % 25)
    np.save(tmp_path / "big/reward.npy", np.zeros(rows, np.float32))
    np.save(tmp_path / "big/length.npy", np.array([rows]))
    np.save(tmp_path / "big/terminated.npy", np.array([False]))
    facts = {"format": 1, "env": {}, "stack": 4, "sources": []}
    (tmp_path / "big/data.json").write_text(json.dumps(facts))
    size = (tmp_path / "big/obs.npy").stat().st_size
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_DATA, ({size // 4}, {size // 4}))
import numpy as np, torch
from gymnasium import spaces
from rlx.agent import Spec
from rlx.experiment import open_data
data = open_data("{tmp_path}/big")
images = spaces.Box(0, 255, (4, 96, 96), np.uint8)
data.adapt_to(Spec(images, spaces.Discrete(25), 9), {{"stack": 4}})
for number in range(3):
    assert data.sample(number, torch.rand(5, 64), 1, 0.9)["obs"].shape == (5, 64, 4, 96, 96)
try:
    np.array(data.obs)
except MemoryError:
    print("too large to be read")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "too large to be read\n", done.stderr
