"""Data sets of anybody: what is wrong is said in one line, with exit code 2 and the file's name."""

import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, small
from gymnasium import spaces

from rlx.agent import Spec
from rlx.data.collecting import play
from rlx.data.episodes import Episodes
from rlx.data.minari import write as write_minari
from rlx.data.shards import write as write_shards
from rlx.data.writer import Writer, new_folder
from rlx.errors import ConfigError
from rlx.experiment import make_env, open_data

CARTPOLE = {"_target_": "rlx.envs.cartpole.CartPole", "max_episode_steps": 500}
STEPS, OBS = 12, 15
"""Transitions of the set below, and its observations: one more for each of three episodes."""
SPEC = Spec(spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(3), 100)


def fill(folder: Path, lengths=(4, 1, 7), env=CARTPOLE) -> Episodes:
    """A small set; the observations count up."""
    count = 0
    with Writer(str(folder)) as writer:
        for length in lengths:
            obs = np.arange(count, count + 2 * length + 2, dtype=np.float32).reshape(-1, 2)
            count += obs.size
            writer.add(obs, np.arange(length) % 3, np.full(length, 0.1, np.float32), length == 4)
        return writer.close(env, 1, ["hand-made"])


@pytest.fixture
def made(tmp_path) -> Path:
    return fill(tmp_path / "set").folder


def refused(rlx, *arguments: object) -> str:
    """What `rlx` says when it refuses: one line, exit code 2."""
    result = rlx(*arguments)
    assert result.code == 2, result.err
    lines = [line for line in result.err.splitlines() if line]
    assert len(lines) == 1, result.err
    return lines[0]


def npy_bytes(shape, descr="<f4", order=False, rest=b"") -> bytes:
    """A npy file whose header claims `shape`, with `rest` behind it."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + rest


FACTS = {"format": 1, "env": CARTPOLE, "stack": 1, "sources": ["x"]}
CLEAR_SCREEN = json.dumps(FACTS | {"sources": ["\x1b[2J"]}).encode()
OVERFLOWING = np.array([2**62, 2**62, 2**63 + STEPS], np.uint64)
OF_FILES = {
    "more rows than bytes": ("obs.npy", npy_bytes((OBS, 2), rest=b"x" * 8), "claims"),
    "terabytes": ("reward.npy", npy_bytes((10**13,), rest=b"x" * 48), "claims"),
    "more bytes than a machine has": ("obs.npy", npy_bytes((2**62, 2**62)), "claims"),
    "negative": ("obs.npy", npy_bytes((-1, 2)), "shape"),
    "bytes left over": ("reward.npy", npy_bytes((STEPS,), rest=b"x" * 52), "claims"),
    "a number": ("obs.npy", npy_bytes((), rest=b"x" * 4), "at least one row"),
    "none": ("action.npy", npy_bytes((0,), "<i8"), "at least one row"),
    "a long header": ("obs.npy", b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b" " * 100, "npy file"),
    "an odd version": ("obs.npy", b"\x93NUMPY\x09\x00" + b"\xff" * 100, "npy format 9.0"),
    "deep": ("obs.npy", b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 0x2000, "npy file"),
    "no npy": ("obs.npy", b"hello", "npy file"),
    "empty": ("obs.npy", b"", "npy file"),
    "records": ("obs.npy", npy_bytes((1,), [("a", "<f4")], rest=b"x" * 4), "not numbers"),
    "text": ("action.npy", npy_bytes((STEPS,), "<U1", rest=b"x" * 4 * STEPS), "not numbers"),
    "text as facts": ("data.json", b"\xff\xfe", "JSON"),
    "no facts": ("data.json", b"[]", "expected the keys"),
    "deep facts": ("data.json", b"[" * 100_000, "JSON"),
    "format": ("data.json", json.dumps(FACTS | {"format": 2}).encode(), "format 2"),
    "sources": ("data.json", json.dumps(FACTS | {"sources": "x"}).encode(), "sources="),
    "a source": ("data.json", json.dumps(FACTS | {"sources": [1]}).encode(), "sources="),
    "terminal codes": ("data.json", CLEAR_SCREEN, "sources="),
    "env": ("data.json", json.dumps(FACTS | {"env": "cartpole"}).encode(), "env="),
    "env without a class": ("data.json", json.dumps(FACTS | {"env": {"a": 1}}).encode(), "env="),
    "stack": ("data.json", json.dumps(FACTS | {"stack": "4"}).encode(), "stack="),
    "stack 0": ("data.json", json.dumps(FACTS | {"stack": 0}).encode(), "stack=0"),
    "stack true": ("data.json", json.dumps(FACTS | {"stack": True}).encode(), "stack=true"),
    "stack 1.5": ("data.json", json.dumps(FACTS | {"stack": 1.5}).encode(), "stack=1.5"),
    "NaN": ("data.json", json.dumps(FACTS | {"stack": np.nan}).encode(), "NaN"),
    "no stack": ("data.json", b'{"format": 1, "env": {}, "sources": []}', "stack is missing"),
}
OF_ARRAYS = {
    "objects": ("obs.npy", np.array([{}] * OBS, object), "Python objects"),
    "complex": ("obs.npy", np.zeros((OBS, 2), complex), "not numbers"),
    "beyond float32": ("obs.npy", np.full((OBS, 2), 1e300), "row 0 is not finite"),
    "beyond float32 later": ("reward.npy", np.append(np.zeros(STEPS - 1), -1e39), "row 11 is not"),
    "NaN": ("reward.npy", np.full(STEPS, np.nan, np.float16), "row 0 is not finite"),
    "NaN in actions": ("action.npy", np.full((STEPS, 2), np.nan, np.float32), "not finite"),
    "float actions": ("action.npy", np.zeros(STEPS), "expected whole numbers"),
    "negative actions": ("action.npy", np.full(STEPS, -1), "reaches from -1"),
    "an action": ("action.npy", np.arange(STEPS) * 10**17, "expected 0 to 65,535"),
    "an unsigned action": ("action.npy", np.full(STEPS, 2**64 - 1, np.uint64), "expected 0 to"),
    "length of floats": ("length.npy", np.array([4.0, 1.0, 7.0]), "holds float64"),
    "length -1": ("length.npy", np.array([13, -2, 1]), "add up"),
    "length 0": ("length.npy", np.array([12, 0, 0]), "add up"),
    "a sum that overflows": ("length.npy", OVERFLOWING, "add up"),
    "length of two axes": ("length.npy", np.array([[4], [1], [7]]), "holds int64 [3, 1]"),
    "more episodes": ("length.npy", np.ones(13, int), "add up"),
    "terminated 2": ("terminated.npy", np.array([0, 1, 2]), "other numbers than 0 and 1"),
    "terminated NaN": ("terminated.npy", np.array([0, 1, np.nan]), "other numbers than 0 and 1"),
    "terminated long": ("terminated.npy", np.zeros(4, bool), "4 rows where 3"),
    "rewards of two axes": ("reward.npy", np.zeros((STEPS, 1)), "holds float64"),
    "bool obs": ("obs.npy", np.zeros((OBS, 2), bool), "holds bool"),
}


@pytest.mark.parametrize("kind", OF_FILES)
def test_a_file_that_is_not_what_it_should_be(kind, made, rlx):
    name, content, expected = OF_FILES[kind]
    (made / name).write_bytes(content)
    said = refused(rlx, "data", made)
    assert expected in said and str(made / name) in said, said


@pytest.mark.parametrize("kind", OF_ARRAYS)
def test_an_array_that_is_not_what_it_should_be(kind, made, rlx):
    name, array, expected = OF_ARRAYS[kind]
    with (made / name).open("wb") as file:
        np.save(file, array, allow_pickle=True)
    said = refused(rlx, "data", made)
    assert expected in said and name in said and str(made) in said, said


def test_what_is_no_file_is_not_waited_for(made, tmp_path):
    for name in ("obs.npy", "data.json"):
        (made / name).unlink()
        os.mkfifo(made / name)
        with pytest.raises(ConfigError, match=name):
            open_data(str(made))
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="a.npz: unreadable"):
        open_data(str(tmp_path))


def test_continuous_actions_are_not_written_as_shards(tmp_path, rlx):
    with Writer(str(tmp_path / "set")) as writer:
        writer.add(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), np.zeros(2), True)
        writer.close({}, 1, [])
    assert "out=minari:NAME" in refused(rlx, "data", tmp_path / "set", f"out={tmp_path}/shards")
    assert left(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("nowhere", "no such folder"),
        ('a=b c\'s "d"', "no such folder"),
        ("null\0byte", "no such folder"),
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("x" * 300, "cannot be read (File name too long)"),
        ("empty", "neither data.json nor npz"),
    ],
)
def test_places_without_data(where, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    with pytest.raises(ConfigError) as error:
        open_data(where)
    assert expected in str(error.value) and str(error.value).startswith(f"data={where}: ")


@pytest.mark.parametrize("name", ["a=b", "a b", "it's", 'say "no"', "[a]*?", "50%", "#1", "ü"])
def test_any_name_of_a_folder(name, tmp_path):
    fill(tmp_path / name / "set")
    write_shards(open_data(str(tmp_path / name / "set")), tmp_path / name / "shards", 1)
    for kind in ("set", "shards"):
        assert open_data(str(tmp_path / name / kind)).transitions == STEPS


CASTS = ["<f8", ">f8", ">f4", "<f2"]


@pytest.mark.parametrize("dtype", CASTS)
def test_floats_of_all_sizes_are_read(dtype, made, tmp_path):
    own = open_data(str(made))
    write_shards(own, tmp_path / "shards", 1, rows=5)
    for name in ("obs", "reward"):
        np.save(made / f"{name}.npy", np.load(made / f"{name}.npy").astype(dtype))
    for file in (tmp_path / "shards").iterdir():
        arrays = dict(np.load(file))
        for name in ("states", "next_states", "rewards"):
            arrays[name] = arrays[name].astype(dtype)
        arrays["actions"] = arrays["actions"].astype(">i2")
        np.savez(file, **arrays)
    np.save(made / "action.npy", np.load(made / "action.npy").astype(">u2"))
    np.save(made / "length.npy", np.load(made / "length.npy").astype(">i4"))
    np.save(made / "terminated.npy", np.load(made / "terminated.npy").astype(np.uint8))
    draws = torch.rand(1, 50)
    for folder in (made, tmp_path / "shards"):
        data = open_data(str(folder))
        data.adapt_to(SPEC, CARTPOLE)
        batch = data.sample(0, draws, 1, 0.9)
        assert batch["obs"].dtype == batch["reward"].dtype == torch.float32
        assert batch["action"].dtype == torch.int64
        assert torch.equal(batch["obs"][..., 0] + 1, batch["obs"][..., 1])
        assert torch.equal(batch["next_obs"], batch["obs"] + 2)
        reward = float(np.array(0.1, np.float32).astype(dtype))
        assert torch.allclose(batch["reward"], torch.tensor(reward), rtol=1e-6, atol=0)
    assert Episodes(made).terminated.tolist() == own.terminated.tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, ">i4", np.uint16, np.int64])
def test_whole_numbers_become_those_of_the_env(dtype, tmp_path):
    states = np.arange(6 * 256).reshape(6, 1, 16, 16) % 100
    arrays = {"states": states.astype(dtype), "next_states": states.astype(dtype)}
    arrays |= {"actions": np.zeros(6, int), "rewards": np.zeros(6), "dones": np.zeros(6)}
    np.savez(tmp_path / "a.npz", **arrays)
    pixels = Spec(spaces.Box(0, 255, (1, 16, 16), np.uint8), spaces.Discrete(2), 9)
    data = open_data(str(tmp_path))
    data.adapt_to(pixels, {})
    batch = data.sample(0, torch.rand(1, 50), 1, 0.9)
    assert batch["obs"].dtype == torch.uint8
    rows = {row.tobytes() for row in states.astype(np.uint8)}
    assert {row.tobytes() for row in batch["obs"][0].numpy()} == rows
    rows = states[:, 0, 0].astype(dtype)
    flat = {"states": rows, "next_states": rows}
    np.savez(tmp_path / "a.npz", **(arrays | flat))
    data = open_data(str(tmp_path))
    data.adapt_to(Spec(spaces.Box(-1, 1, (16,)), spaces.Discrete(2), 9), {})
    assert data.sample(0, torch.rand(1, 5), 1, 0.9)["obs"].dtype == torch.float32


@pytest.mark.parametrize("low", [-1, 200])
def test_whole_numbers_that_images_cannot_have(low, tmp_path):
    states = (np.arange(256).reshape(1, 1, 16, 16) % 100 + low).astype(np.int16)
    zeros = {name: np.zeros(1, int) for name in ("actions", "rewards", "dones")}
    np.savez(tmp_path / "a.npz", states=states * 0, next_states=states, **zeros)
    pixels = Spec(spaces.Box(0, 255, (1, 16, 16), np.uint8), spaces.Discrete(2), 9)
    with pytest.raises(ConfigError, match="its observations are int16"):
        open_data(str(tmp_path)).adapt_to(pixels, {})


def test_states_of_a_grid_are_read_from_both_formats(tmp_path):
    with Writer(str(tmp_path / "set")) as writer:
        writer.add(np.array([3, 1, 2], np.int32), np.array([0, 1]), np.zeros(2), True)
        data = writer.close({}, 1, [])
    write_shards(data, tmp_path / "shards", 1)
    for name in ("set", "shards"):
        data = open_data(str(tmp_path / name))
        with pytest.raises(ConfigError, match="this env has Discrete"):
            data.adapt_to(Spec(spaces.Discrete(3), spaces.Discrete(2), 9), {})
        data.adapt_to(Spec(spaces.Discrete(4), spaces.Discrete(2), 9), {})
        batch = data.sample(0, torch.rand(1, 30), 1, 0.9)
        assert batch["obs"].dtype == torch.int64
        assert set(batch["obs"].flatten().tolist()) == {1, 3}


OF_SHARDS = {
    "beyond float32": ("states", np.full((STEPS, 2), 1e300), "'states': row 0 is not finite"),
    "next": ("next_states", np.full((STEPS, 2), np.inf), "'next_states': row 0 is not finite"),
    "rewards": ("rewards", np.full(STEPS, 1e39), "'rewards': row 0 is not finite"),
    "objects": ("states", np.array([{}] * STEPS, object), "'states': it holds Python objects"),
    "float actions": ("actions", np.zeros(STEPS), "'actions' is float64; expected whole numbers"),
    "a large action": ("actions", np.full(STEPS, 2**63, np.uint64), "expected 0 to 65,535"),
    "text": ("rewards", np.array(["a"] * STEPS), "not numbers"),
    "a number": ("states", np.float32(1), "at least one row"),
    "no rows": ("states", np.zeros((0, 2), np.float32), "at least one row"),
    "dones NaN": ("dones", np.full(STEPS, np.nan), "other numbers than 0 and 1"),
    "bool states": ("states", np.zeros((STEPS, 2), bool), "'states' is bool"),
}


@pytest.mark.parametrize("kind", OF_SHARDS)
def test_a_shard_that_is_not_what_it_should_be(kind, made, tmp_path, rlx):
    name, array, expected = OF_SHARDS[kind]
    write_shards(open_data(str(made)), tmp_path / "shards", 1)
    file = tmp_path / "shards" / "00000.npz"
    np.savez(file, **(dict(np.load(file)) | {name: array}))
    said = refused(rlx, "data", tmp_path / "shards")
    assert expected in said and str(file) in said, said


def test_memory_that_shards_claim_is_not_taken(made, tmp_path, monkeypatch, rlx):
    write_shards(open_data(str(made)), tmp_path / "shards", 1)
    file = tmp_path / "shards" / "00000.npz"
    arrays = dict(np.load(file))
    lying = {name: npy_bytes((10**12, 2)) for name in ("states", "next_states")}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            own = npy_bytes(array.shape, array.dtype.str, rest=array.tobytes())
            archive.writestr(f"{name}.npy", lying.get(name, own))
    said = refused(rlx, "data", tmp_path / "shards")
    assert "'states': it claims [1000000000000, 2] float32" in said and str(file) in said
    np.savez_compressed(file, **(arrays | {"states": np.zeros((10**6, 2), np.float32)}))
    assert file.stat().st_size < 20_000
    monkeypatch.setattr("rlx.data.npy.free_memory", lambda: 1e7)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    said = refused(rlx, "data", tmp_path / "shards")
    assert "reading it takes 0.0 GB of memory, and 0.0 GB are free" in said and str(file) in said


def test_a_stack_that_no_memory_holds_is_refused_before_it_is_made(made, tmp_path, rlx):
    (made / "data.json").write_text(json.dumps(FACTS | {"stack": 10**12}))
    assert "stacks of 1000000000000" in refused(rlx, "data", made, f"out={tmp_path}/shards")
    assert not (tmp_path / "shards").exists()


def test_an_interpolation_in_the_facts_stays_text(made, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    env = CARTPOLE | {"force": "${oc.env:SECRET}", "gravity": "${nothing}"}
    (made / "data.json").write_text(json.dumps(FACTS | {"env": env}))
    said = open_data(str(made)).adapt_to(SPEC, CARTPOLE | {"force": 10.0})
    assert any("${oc.env:SECRET} in the data" in line for line in said)
    assert "told" not in "".join(said)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, ValueError])
def test_nothing_half_written_is_left(error, tmp_path):
    with pytest.raises(error), Writer(str(tmp_path / "a" / "b" / "set")) as writer:
        writer.add(np.zeros((3, 2), np.float32), np.zeros(2, int), np.zeros(2), True)
        assert list(tmp_path.rglob("obs.npy"))
        raise error
    assert left(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(error), new_folder(tmp_path / "a" / "set", "out=set"):
        raise error
    assert left(tmp_path) == ["a"] and left(tmp_path / "a") == []


def test_a_full_disk_is_said_of_the_key(made, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    data = open_data(str(made))
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ConfigError, match=r"^out=.*shards: cannot be written \(No space left"):
        write_shards(data, tmp_path / "shards", 1)
    assert left(tmp_path) == ["set"]


def test_collecting_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch, rlx):
    tiny = ("steps=40", "eval_every=20", "eval_episodes=1", "final_episodes=1", "num_envs=2")
    assert rlx("train", "agent=dqn", "env=cartpole", *small("dqn"), *tiny).code == 0

    def interrupted(*arguments, **settings):
        play(*arguments, **settings)
        assert list(tmp_path.glob(".set.partial/obs.npy"))
        raise KeyboardInterrupt

    monkeypatch.setattr("rlx.data.collecting.play", interrupted)
    before = left(tmp_path)
    assert rlx("collect", "outputs", "out=set", "steps=10").code == 130
    assert left(tmp_path) == before


def test_what_exists_stays_as_it_is(made, tmp_path, rlx):
    Path(tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    for out in (made, tmp_path / "file", tmp_path / "link"):
        assert "exists already" in refused(rlx, "data", made, f"out={out}")
    assert (tmp_path / "file").read_text() == "mine" and open_data(str(made)).transitions == STEPS


@pytest.mark.parametrize("what", ["obs", "reward"])
def test_an_env_that_gives_no_numbers_is_named_at_once(what, tmp_path):
    obs, reward = np.zeros((3, 2), np.float32), np.zeros(2)
    {"obs": obs, "reward": reward}[what][1] = np.nan
    with Writer(str(tmp_path / "set")) as writer, pytest.raises(ConfigError) as error:
        writer.add(obs, np.zeros(2, int), reward, True)
    assert str(error.value) == f"the env: {what} of episode 0: row 1 is not finite as float32."


CHANGES = {
    "a reward": ("reward.npy", lambda x: np.append(x[:-1], np.nextafter(x[-1], np.float32(1)))),
    "an observation": ("obs.npy", lambda x: np.where(x == 7, np.nextafter(x, np.float32(8)), x)),
    "two actions": ("action.npy", lambda x: np.roll(x, 1)),
    "an end": ("terminated.npy", np.logical_not),
    "their order": ("length.npy", lambda x: x[::-1].copy()),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_is_another_data_set(kind, made):
    name, change = CHANGES[kind]
    before = open_data(str(made)).fingerprint
    assert open_data(str(made)).is_of(before)
    array = np.load(made / name)
    changed = change(array).astype(array.dtype)
    assert (changed != array).any()
    np.save(made / name, changed)
    assert not open_data(str(made)).is_of(before)


def test_a_copy_elsewhere_is_the_same_data_set(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    assert open_data(str(tmp_path / "copy")).fingerprint == open_data(str(made)).fingerprint
    write_shards(open_data(str(made)), tmp_path / "shards", 1, rows=5)
    before = open_data(str(tmp_path / "shards")).fingerprint
    file = tmp_path / "shards" / "00001.npz"
    arrays = dict(np.load(file))
    np.savez_compressed(file, **arrays)
    assert open_data(str(tmp_path / "shards")).is_of(before)
    arrays["rewards"][2] = np.nextafter(arrays["rewards"][2], np.float32(1))
    np.savez_compressed(file, **arrays)
    assert not open_data(str(tmp_path / "shards")).is_of(before)


OFFLINE = ("agent=bc", "env=cartpole", *TINY, "steps=4", "eval_every=4", "seeds=1", *small("bc"))


def test_one_changed_byte_is_noticed_on_resume(tmp_path, rlx):
    rng = np.random.default_rng(0)
    with Writer(str(tmp_path / "set")) as writer:
        for _ in range(4):
            obs = rng.normal(size=(11, 4)).astype(np.float32)
            writer.add(obs, rng.integers(2, size=10), np.ones(10), True)
        writer.close({}, 1, [])
    run = rlx("train", *OFFLINE, f"data={tmp_path}/set").run
    file = tmp_path / "set" / "reward.npy"
    content = bytearray(file.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last reward: 6e-8 of it
    file.write_bytes(content)
    said = refused(rlx, "resume", run, "steps=8")
    assert "is not what the run has learnt from" in said and f"data={tmp_path}/set" in said
    content[-4] ^= 1
    file.write_bytes(content)
    state = sorted(run.glob("checkpoints/*/state.json"))[0]
    saved = json.loads(state.read_text())
    assert saved["data"].startswith("sha256:")
    # A run of rlx 0.1.0 had this of the same card; it goes on, and has the new one from then on.
    data = open_data(str(tmp_path / "set"))
    former = hashlib.sha256(json.dumps(data.card()).encode()).hexdigest()
    state.write_text(json.dumps(saved | {"data": former}))
    assert rlx("resume", run, "steps=8").code == 0
    states = [json.loads(path.read_text()) for path in run.glob("checkpoints/0*/state.json")]
    assert {each["step"]: each["data"] for each in states}[8] == saved["data"]


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


BAD_NAMES = ["badname", "a/badname", "x-v", "x-vone", "../x-v0", "/x-v0", "a b-v0", "", "x-v0/"]
BAD_NAMES += ["data/x-v0", "rlx/data/x-v0", "rlx//data/x-v0", "é v0"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_minari_would_not_read_again(name, made, minari_root):
    import minari

    data = open_data(str(made))
    env = make_env(CARTPOLE, 1, "cpu")
    with pytest.raises(ConfigError, match=r"^out=minari:.*(names are|folder with 'data')"):
        write_minari(data, name, env)
    with pytest.raises(ConfigError, match=r"^data=minari:.*(names are|folder with 'data')"):
        open_data(f"minari:{name}")
    assert left(minari_root) == []
    assert minari.list_local_datasets() == {}


def test_a_forgotten_version_is_pointed_out(made, minari_root, rlx):
    assert "as in minari:rlx/mixed-v0" in refused(rlx, "data", made, "out=minari:rlx/mixed")


def test_what_fails_leaves_minari_as_it_was(made, minari_root, monkeypatch, rlx):
    import minari
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def broken(*arguments):
        raise errors[-1]

    errors = [KeyboardInterrupt(), OSError(28, "No space left on device"), AssertionError()]
    said = []
    with monkeypatch.context() as patched:
        patched.setattr(HDF5Storage, "update_episodes", broken)
        while errors:
            with pytest.raises((KeyboardInterrupt, ConfigError, AssertionError)) as raised:
                write_minari(open_data(str(made)), "rlx/deep/x-v0", make_env(CARTPOLE, 1, "cpu"))
            assert left(minari_root) == []
            said.append(repr(raised.value))
            errors.pop()
    assert "No space left" in said[1]
    assert rlx("data", made, "out=minari:rlx/deep/x-v0").code == 0
    assert list(minari.list_local_datasets()) == ["rlx/deep/x-v0"]
    assert "exists already" in refused(rlx, "data", made, "out=minari:rlx/deep/x-v0")
    assert "folder with 'data'" in refused(rlx, "data", made, "out=minari:rlx/deep/x-v0/y-v0")
    assert minari.namespace.list_local_namespaces() == ["rlx", "rlx/deep"]


def test_a_set_that_is_not_there_and_a_broken_one_beside_it(made, minari_root, rlx):
    assert rlx("data", made, "out=minari:rlx/mixed-v0").code == 0
    said = refused(rlx, "data", "minari:rlx/mixd-v0")
    assert "minari download rlx/mixd-v0" in said and "Did you mean 'rlx/mixed-v0'?" in said
    assert "download=True" not in said
    (minari_root / "badname" / "data").mkdir(parents=True)
    said = refused(rlx, "data", "minari:other-v0")
    assert "minari download other-v0" in said and "rlx/mixed-v0" in said and "badname" in said
    (minari_root / "empty-v0" / "data").mkdir(parents=True)
    said = refused(rlx, "data", "minari:empty-v0")
    assert said.startswith("rlx: data=minari:empty-v0: cannot be loaded")


def recorded(name, observation_space, action_space, obs, actions, rewards=(0.0, 0.0), **flags):
    """A set of one episode of two steps, made with Minari itself."""
    import minari
    from minari.data_collector import EpisodeBuffer

    ends = {"terminations": [False, True], "truncations": [False, False]} | flags
    episode = EpisodeBuffer(id=0, observations=obs, actions=actions, rewards=list(rewards), **ends)
    own = {"observation_space": observation_space, "action_space": action_space}
    with warnings.catch_warnings(action="ignore"):
        minari.create_dataset_from_buffers(name, [episode], **own, jpeg_encoding=False)


BOX, TWO, MANY = spaces.Box(-1, 1, (2,)), spaces.Discrete(2), spaces.MultiDiscrete([2, 3])
OBS_3, ACTIONS = [np.zeros(2, np.float32)] * 3, [0, 1]
OTHER_SPACES = {
    "Dict": (spaces.Dict(a=BOX), TWO, {"a": OBS_3}, ACTIONS, "its observations are Dict"),
    "Tuple": (spaces.Tuple([BOX]), TWO, (OBS_3,), ACTIONS, "its observations are Tuple"),
    "MultiDiscrete": (MANY, TWO, [np.zeros(2, int)] * 3, ACTIONS, "observations are MultiDiscrete"),
    "MultiBinary": (spaces.MultiBinary(2), TWO, [np.zeros(2, np.int8)] * 3, ACTIONS, "MultiBinary"),
    "Text": (spaces.Text(3), TWO, ["a"] * 3, ACTIONS, "its observations are Text"),
    "actions": (BOX, MANY, OBS_3, [np.zeros(2, int)] * 2, "its actions are MultiDiscrete"),
    "Dict actions": (BOX, spaces.Dict(a=TWO), OBS_3, {"a": ACTIONS}, "its actions are Dict"),
}


@pytest.mark.parametrize("kind", OTHER_SPACES)
def test_spaces_that_rlx_does_not_take(kind, minari_root, rlx):
    *arguments, expected = OTHER_SPACES[kind]
    recorded("other-v0", *arguments)
    said = refused(rlx, "data", "minari:other-v0")
    assert expected in said and said.startswith("rlx: data=minari:other-v0: ")
    assert "record it again" in said


OTHER_EPISODES = {
    "rewards": (BOX, TWO, OBS_3, ACTIONS, (0.0, 1e300), "reward of episode 0: row 1 is not finite"),
    "obs": (BOX, TWO, [np.full(2, np.nan)] * 3, ACTIONS, (0.0, 0.0), "obs of episode 0: row 0"),
    "no last obs": (BOX, TWO, OBS_3[:2], ACTIONS, (0.0, 0.0), "[2, 2]; expected [3, 2]"),
    "shape": (spaces.Box(-1, 1, (3,)), TWO, OBS_3, ACTIONS, (0.0, 0.0), "expected [3, 3]"),
    "fewer rewards": (BOX, TWO, OBS_3, ACTIONS, (0.0,), "episode 0 has rewards [1]"),
    "an action": (BOX, TWO, OBS_3, [0, -1], (0.0, 0.0), "reaches from -1 to 0"),
}


@pytest.mark.parametrize("kind", OTHER_EPISODES)
def test_episodes_that_are_not_what_they_should_be(kind, minari_root, rlx):
    *arguments, expected = OTHER_EPISODES[kind]
    recorded("odd-v0", *arguments)
    said = refused(rlx, "data", "minari:odd-v0")
    assert expected in said and "minari:odd-v0" in said and "rlx-" not in said, said


def test_spaces_that_begin_elsewhere_begin_at_0(minari_root):
    obs_space, action_space = spaces.Discrete(3, start=5), spaces.Discrete(2, start=-1)
    recorded("start-v0", obs_space, action_space, [5, 7, 6], [-1, 0])
    data = open_data("minari:start-v0")
    assert data.obs.tolist() == [0, 2, 1] and data.action.tolist() == [0, 1]
    data.adapt_to(Spec(spaces.Discrete(3), TWO, 9), {})


@pytest.mark.parametrize("shape", [(20, 24, 3), (20, 24, 1), (20, 24), (2, 20, 24, 3)])
def test_images_come_channels_first(shape, minari_root):
    from rlx.envs.spaces import agent_observations

    space = spaces.Box(0, 255, shape, np.uint8)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    recorded("images-v0", space, TWO, list(pixels), ACTIONS)
    data = open_data("minari:images-v0")
    shown_space, convert = agent_observations(space)
    data.adapt_to(Spec(shown_space, TWO, 9), {})
    assert data.obs.shape[-2:] == (20, 24) and data.obs.dtype == np.uint8
    assert np.array_equal(data.obs, convert(pixels))


def test_no_code_that_a_set_names_is_run(minari_root, tmp_path, rlx):
    recorded("code-v0", BOX, TWO, OBS_3, ACTIONS)
    file = minari_root / "code-v0" / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["observation_space"]
    spec = {"id": "x-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(tmp_path / "run")}}
    metadata["env_spec"] = json.dumps(spec | {"additional_wrappers": []})
    file.write_text(json.dumps(metadata))
    assert "has no observation_space" in refused(rlx, "data", "minari:code-v0")
    assert not (tmp_path / "run").exists()


class Pictures(gymnasium.Env):
    """Its observations are channels last, its numbers of other sizes than rlx's."""

    observation_space = spaces.Box(0, 255, (20, 24, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, level: int = 0):
        self.level = level

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(self.level, 256, (20, 24, 3)).astype(np.uint8), {}


gymnasium.register("rlx-test/Pictures-v0", f"{__name__}:Pictures", max_episode_steps=7)
GYM = {"_target_": "rlx.envs.gym.GymEnv", "workers": 1}
CARTPOLE_GYM = GYM | {"id": "CartPole-v1", "max_episode_steps": 33}
CARTPOLE_GYM |= {"kwargs": {"sutton_barto_reward": True}}
PICTURES = GYM | {"id": "rlx-test/Pictures-v0", "max_episode_steps": None, "kwargs": {"level": 9}}


FORCE = CARTPOLE | {"force": 9.0, "max_episode_steps": 44}


@pytest.mark.parametrize(("env", "limit"), [(CARTPOLE_GYM, 33), (PICTURES, 7), (FORCE, 44)])
def test_the_env_of_a_set_is_recovered(env, limit, minari_root, tmp_path):
    import minari

    from rlx.envs.spaces import agent_observations

    if env is FORCE and gymnasium.spec("rlx/CartPole-v1").entry_point is None:
        pytest.skip("gymnasium.make does not know rlx's envs")
    own = make_env(env, 1, "cpu")
    first = np.asarray(own.reset(seed=3)[0])
    with Writer(str(tmp_path / "set")) as writer:
        writer.add(np.concatenate([first] * 3), np.array([0, 1]), np.ones(2), True)
        data = writer.close(env, 1, [])
    assert write_minari(data, "rlx/own-v0", own)
    loaded = minari.load_dataset("rlx/own-v0")
    made, kwargs = loaded.recover_environment(), env.get("kwargs", {"force": 9.0})
    assert made.spec.max_episode_steps == limit and made.spec.kwargs.items() >= kwargs.items()
    assert made.observation_space == loaded.observation_space
    assert made.action_space == loaded.action_space
    assert np.array_equal(made.reset(seed=3)[0], loaded[0].observations[0])
    again = open_data("minari:rlx/own-v0")
    assert again.is_of(open_data("minari:rlx/own-v0").fingerprint)
    _, convert = agent_observations(made.observation_space)
    assert np.array_equal(again.obs, convert(loaded[0].observations))


WEAKER = {"parameter": "force", "to": 1.0, "begin": 1, "end": 2}


@pytest.mark.parametrize("change", [{"observe": [0, 2]}, {"drift": WEAKER}])
def test_an_env_that_no_name_tells_is_not_named(change, minari_root, tmp_path, rlx):
    import minari

    env = CARTPOLE | change
    shape = make_env(env, 1, "cpu").single_observation_space.shape
    with Writer(str(tmp_path / "set")) as writer:
        writer.add(np.zeros((3, *shape), np.float32), np.array([0, 1]), np.ones(2), True)
        writer.close(env, 1, [])
    result = rlx("data", tmp_path / "set", "out=minari:rlx/own-v0")
    assert result.code == 0 and "recover_environment() of this set will not work" in result.out
    assert minari.load_dataset("rlx/own-v0").env_spec is None
