"""What enters rlx from somebody's Gymnasium env: shown, refused with a way out, or blamed on it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, compose, small
from gymnasium import spaces
from safetensors.torch import load_file
from test_resume import fingerprint

from rlx.envs.gym import GymEnv
from rlx.envs.spaces import agent_actions, agent_observations
from rlx.envs.view import View
from rlx.envs.workers import Workers
from rlx.errors import ConfigError, RunError
from rlx.experiment import env_spec, make_env


class Base(gymnasium.Env):
    """Ten steps of random observations of any space; keeps what it was given."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)
    length = 10

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.given, self.options = 0, [], options
        return self.obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        self.given.append(np.copy(action))
        return self.obs(), 1.0, self.t >= self.length, False, {}

    def obs(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()


REWARDS = {"none": None, "nan": np.nan, "inf": np.inf, "huge": 1e39, "two": [1, 2], "text": "one"}
FLAGS = {"none": None, "text": "no", "two": [True, False], "half": 0.5}
OBSERVATIONS = {
    "none": lambda obs: None,
    "shape": lambda obs: obs[:2],
    "nan": lambda obs: obs * [1, np.nan, 1],
    "inf": lambda obs: obs / 0,
    "text": lambda obs: "left",
    "dict": lambda obs: {"x": obs},
}


class Faulty(Base):
    """Does something wrong in the third step of an episode, or in `reset`."""

    def __init__(self, what=None, at="step", render_mode=None):
        self.what, self.at, self.render_mode = what, at, render_mode

    def reset(self, **how):
        obs, info = super().reset(**how)
        if self.at != "reset":
            return obs, info
        if self.what == "raise":
            raise OSError("no\nlicence")
        wrong = {"none": None, "three": (obs, info, 0), "shape": (obs[:2], info)}
        return wrong.get(self.what, (obs * np.nan, info))

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.t != 3 or self.at != "step":
            return obs, reward, terminated, truncated, info
        if self.what == "raise":
            raise RuntimeError("simulator lost\nits connection")
        if self.what == "none":
            return None
        if self.what == "four":
            return obs, reward, terminated, info
        part, _, kind = self.what.partition(" ")
        if part == "reward":
            reward = REWARDS[kind]
        if part == "flag":
            terminated = FLAGS[kind]
        if part == "obs":
            obs = OBSERVATIONS[kind](obs)
        return obs, reward, terminated, truncated, info

    def render(self):
        if self.what == "render raises":
            raise RuntimeError("no screen")
        return None


class Interrupting(Base):
    """Raises what is no fault of the env."""

    def __init__(self, kind):
        self.kind = kind

    def step(self, action):
        raise self.kind("told")


class Spaces(Base):
    """Of any spaces."""

    def __init__(self, obs=None, action=None):
        if obs is not None:
            self.observation_space = obs
        if action is not None:
            self.action_space = action


class Numbered(Base):
    """Of Discrete or uint8 observations that are not what they should be."""

    def __init__(self, value, image=False):
        self.value = value
        self.observation_space = spaces.Discrete(3)
        if image:
            self.observation_space = spaces.Box(0, 255, (16, 16), np.uint8)

    def obs(self):
        return self.value


class Writing(Base):
    """Writes into what it is given, and always returns the same array."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)
    buffer = None

    def step(self, action):
        result = super().step(action)
        action *= 0
        return result

    def obs(self):
        if self.buffer is None:
            self.buffer = np.zeros(3, np.float32)
        self.buffer += 1
        return self.buffer


class Lenient(Base):
    """Returns things that NumPy can make into what they should be."""

    def step(self, action):
        obs, _, terminated, _, info = super().step(action)
        numbers = obs.astype(np.float64).tolist()
        return numbers, np.array([2.0]), int(terminated), np.array([False]), info


class Masked(Base):
    """Allows two of four actions."""

    action_space = spaces.Discrete(4)

    def mask(self):
        return {"action_mask": np.array([1, 0, 1, 0], np.int8)}

    def reset(self, **how):
        return super().reset(**how)[0], self.mask()

    def step(self, action):
        if action in (1, 3):
            raise ValueError(f"action {action} is not allowed now")
        return *super().step(action)[:4], self.mask()


class Needy(Base):
    """Has parameters."""

    def __init__(self, size, colour="red"):
        if colour == "blue":
            raise AssertionError("blue is sold out")


class OldRandom(Base):
    """Has another generator than Gymnasium's."""

    np_random = np.random.RandomState(0)


ENVS = (Base, Faulty, Interrupting, Spaces, Numbered, Writing, Lenient, Masked, Needy, OldRandom)
for kind in ENVS:
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=50)


def gym_node(id, **kwargs):
    """The config group env=gym of an id."""
    node = {"_target_": "rlx.envs.gym.GymEnv", "id": id, "kwargs": kwargs}
    return {**node, "max_episode_steps": None, "workers": 1}


def play(env, steps=3):
    """So many steps of actions 0."""
    env.reset(seed=0)
    space = env.action_space
    for _ in range(steps):
        result = env.step(np.zeros(space.shape, space.dtype))
    return result


STEP = {
    "raise": r"raised RuntimeError \(test_gym_env.py:\d+\): simulator lost its connection\.$",
    "none": r"returned None; expected 5, \(observation, reward, terminated, truncated, info\)\.$",
    "four": r"returned 4 values; expected 5, ",
    "reward none": r"returned reward None; expected a finite number\.$",
    "reward nan": "returned reward nan; expected a finite number",
    "reward inf": "returned reward inf; expected a finite number",
    "reward huge": r"returned reward 1e\+39; expected a finite number",
    "reward two": r"returned reward \[1, 2\]; expected a finite number",
    "reward text": "returned reward one; expected a finite number",
    "flag none": "returned terminated None; expected true or false",
    "flag text": "returned terminated no; expected true or false",
    "flag two": r"returned terminated \[True, False\]; expected true or false",
    "flag half": r"returned terminated 0\.5; expected true or false",
    "obs none": r"observation None of type NoneType; expected Box\(-1\.0, 1\.0, .*, float32\)\.$",
    "obs shape": r"returned an observation of shape \(2,\); expected Box",
    "obs nan": r"returned an observation with nan at \[1\]; expected Box",
    "obs inf": r"returned an observation with -?inf at \[0\]; expected Box",
    "obs text": r"returned an observation left of type str; expected Box",
    "obs dict": r"returned an observation \{'x': .*\} of type dict; expected Box",
}
RESET = {
    "raise": r"raised OSError \(test_gym_env.py:\d+\): no licence\.$",
    "none": r"returned None; expected 2, \(observation, info\)\.$",
    "three": "returned 3 values; expected 2",
    "shape": r"returned an observation of shape \(2,\); expected Box",
    "nan": r"returned an observation with nan at \[0\]; expected Box",
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("what", STEP)
def test_what_a_step_does_wrong_is_said_of_the_env(what):
    env = GymEnv("Faulty-v0", 3, kwargs={"what": what})
    play(env, 2)
    with pytest.raises(RunError, match=STEP[what]) as error:
        env.step(torch.zeros(3, dtype=torch.int64))
    assert env.state_dict()["played"].tolist() == [2, 2, 2]  # the step did not happen
    assert str(error.value).startswith("env.id=Faulty-v0: step(0), number 3 of its episode, ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", RESET)
def test_what_a_reset_does_wrong_is_said_of_the_env(what):
    env = GymEnv("Faulty-v0", 3, kwargs={"what": what, "at": "reset"})
    with pytest.raises(RunError, match=RESET[what]) as error:
        env.reset(seed=5)
    assert str(error.value).startswith("env.id=Faulty-v0: reset(seed=5) ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "told"), [(3, "3"), (-1, "-1"), (1.5, "1.5"), (np.nan, "nan")])
def test_a_discrete_observation_is_one_of_its_numbers(value, told):
    with pytest.raises(RunError, match=rf"returned an observation {told}; expected Discrete\(3\)"):
        play(GymEnv("Numbered-v0", kwargs={"value": value}))
    assert play(GymEnv("Numbered-v0", kwargs={"value": 2}))[0].tolist() == [2]


def test_an_image_of_another_dtype_is_taken_where_nothing_is_lost():
    image = np.arange(256).reshape(16, 16)
    obs = play(GymEnv("Numbered-v0", kwargs={"value": image, "image": True}))[0]
    assert obs.dtype == torch.uint8 and torch.equal(obs[0, 0], torch.from_numpy(image).byte())
    told = r"of dtype float64 with values from 0\.0 to 1\.0; expected Box\(0, 255, .*, uint8\)"
    with pytest.raises(RunError, match=told):
        play(GymEnv("Numbered-v0", kwargs={"value": image / 255, "image": True}))
    with pytest.raises(RunError, match=r"of dtype int64 with values from 0 to 510"):
        play(GymEnv("Numbered-v0", kwargs={"value": image * 2, "image": True}))


def test_what_numpy_can_make_right_is_taken():
    obs, reward, terminated, truncated, info = play(GymEnv("Lenient-v0", 2), 10)
    assert reward.tolist() == [2, 2]
    assert terminated.tolist() == [True, True] and truncated.tolist() == [False, False]
    assert obs.dtype == info["final_obs"].dtype == torch.float32
    assert info["_final_obs"].tolist() == [True, True]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ConfigError, RunError])
def test_what_is_no_fault_of_the_env_passes(kind):
    with pytest.raises(kind, match="^told$"):
        play(GymEnv("Interrupting-v0", kwargs={"kind": kind}))


def test_the_same_errors_come_out_of_processes():
    node = gym_node("test_gym_env:Faulty-v0", what="reward none")
    env = make_env({**node, "workers": 2}, 3, "cpu")
    assert isinstance(env, Workers)
    play(env, 2)
    told = r"^env\.id=test_gym_env:Faulty-v0: step\(0\), number 3 .* returned reward None; expected"
    with pytest.raises(RunError, match=told):
        env.step(torch.zeros(3, dtype=torch.int64))
    env.processes[1].kill()
    with pytest.raises(RunError, match=r"^env\.workers: a process .* has died, exit code -9\.$"):
        env.reset(seed=0)


class Dying(Base):
    """Action 1 kills its process in a second; meanwhile it answers, or leaves a child behind."""

    observation_space = spaces.Box(-1, 1, (400_000,), np.float32)  # more than a pipe holds

    def __init__(self, how):
        self.how = how

    def step(self, action):
        if action == 0:
            time.sleep(2)
        elif self.how == "answering":
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                Path("waited for").touch()
                os._exit(0)
            Path("child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gymnasium.register("Dying-v0", Dying, max_episode_steps=50)


@pytest.mark.parametrize("how", ["answering", "leaving a child"])
def test_a_process_that_dies_is_not_waited_for(how, tmp_path, monkeypatch):
    """The child has the pipe, as its parent had it, for a minute."""
    monkeypatch.chdir(tmp_path)
    env = make_env({**gym_node("test_gym_env:Dying-v0", how=how), "workers": 2}, 2, "cpu")
    env.reset(seed=0)
    with pytest.raises(RunError, match=r"^env\.workers: a process .* has died, exit code -9\.$"):
        env.step(torch.tensor([0, 1]))
    if how == "leaving a child":
        assert not Path("waited for").exists()
        os.kill(int(Path("child").read_text()), signal.SIGKILL)


def test_a_run_ends_with_the_envs_fault(rlx):
    env = ("env=gym", "env.id=Faulty-v0", "+env.kwargs.what=raise")
    result = rlx("train", "agent=dqn", *env, "steps=100", "num_envs=1", "seeds=1")
    assert result.code == 1 and "Traceback" not in result.err
    assert "env.id=Faulty-v0: step(" in result.err and "simulator lost its connection" in result.err


def test_an_image_that_cannot_be_drawn_is_said_of_the_env():
    env = GymEnv("Faulty-v0", kwargs={"what": "render raises", "render_mode": "rgb_array"})
    env.reset(seed=0)
    told = r"Faulty-v0: render\(\) after 0 steps of an episode raised RuntimeError .*no screen"
    with pytest.raises(RunError, match=told):
        env.render()
    env = GymEnv("Faulty-v0", kwargs={"render_mode": "rgb_array"})
    env.reset(seed=0)
    told = r"render\(\) after 0 steps .* returned None; expected an image \[H, W, 3\]"
    with pytest.raises(RunError, match=told):
        env.render()
    with pytest.raises(ConfigError, match=r"Lenient-v0: cannot be drawn, since its class takes no"):
        GymEnv("Lenient-v0", kwargs={"render_mode": "rgb_array"})


def test_a_masked_action_names_the_way_out():
    env = GymEnv("Masked-v0", 2)
    env.reset(seed=0)
    env.step(torch.tensor([0, 2]))
    told = r"step\(3\), number 2 .*: action 3 is not allowed.* Its info's action_mask rules this"
    with pytest.raises(RunError, match=told):
        env.step(torch.tensor([0, 3]))


def test_what_the_constructor_does_wrong_names_the_key():
    given = {"size": 3}
    for kwargs, told in (
        ({}, r"^env\.kwargs\.size: missing; Needy-v0 needs it"),
        (given | {"color": 1}, r"^env\.kwargs\.color: Needy-v0 has no .*Did you mean 'colour'\?"),
        (given | {"colour": "blue"}, r"^env\.id=Needy-v0: .* AssertionError .*blue is sold out\.$"),
        (3, r"^env\.kwargs=3: expected names and values"),
    ):
        with pytest.raises(ConfigError, match=told):
            GymEnv("Needy-v0", kwargs=kwargs)
    with pytest.raises(ConfigError, match=r"^env\.id=OldRandom-v0: its np_random is RandomState"):
        GymEnv("OldRandom-v0")


REGISTERING = "import gymnasium\ngymnasium.register('My-v0', entry_point='my_own_env:My')"
UNKNOWN = {
    "CartPol-v1": r"^env\.id=CartPol-v1: not registered .*Did you mean 'CartPole-v1'\?",
    "Zzyzx-v0": r"^env\.id=Zzyzx-v0: .* module:Id, as in env\.id=myenv:Zzyzx-v0\.$",
    "no_such_env:My-v0": r"module no_such_env cannot .*: ModuleNotFoundError: .*'no_such_env'\.$",
    "broken_env:My-v0": r"broken_env cannot be .*: \w+ \(broken_env.py:1\): .*'no_such_library'",
    "empty_env:My-v1": r"empty_env does not register My-v1\. Call gymnasium\.register in it\.$",
    "my_own_env:Mi-v0": r"my_own_env does not register Mi-v0\. Did you mean 'My-v0'\?$",
}


@pytest.mark.parametrize("id", UNKNOWN)
def test_ids_that_are_unknown_say_how_they_are_written(id, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "empty_env.py").write_text("")
    (tmp_path / "broken_env.py").write_text("import no_such_library")
    (tmp_path / "my_own_env.py").write_text(REGISTERING)
    with pytest.raises(ConfigError, match=UNKNOWN[id]):
        GymEnv(id)
    gymnasium.registry.pop("My-v0", None)


UNBOUNDED = (-np.inf, np.inf)
SHOWN = [
    (spaces.Box(-1, 1, ()), spaces.Box(-1, 1, (1,))),
    (spaces.Box(-1, 5, (2, 2), np.float64), spaces.Box(-1, 5, (2, 2))),
    (spaces.Box(-2, 2, (3,), np.float16), spaces.Box(-2, 2, (3,))),
    (spaces.Box(-5, 5, (3,), np.int64), spaces.Box(-5, 5, (3,))),
    (spaces.Box(*UNBOUNDED, (3,), np.int64), spaces.Box(*UNBOUNDED, (3,))),
    (spaces.Box(np.finfo(np.float32).min, 3, (3,)), spaces.Box(-np.inf, 3, (3,))),
    (spaces.Box(-8e307, 8e307, (3,), np.float64), spaces.Box(*UNBOUNDED, (3,))),
    (spaces.Box(0, 255, (128,), np.uint8), spaces.Box(0, 255, (128,))),
    (spaces.Box(0, 255, (16, 24, 3), np.uint8), spaces.Box(0, 255, (3, 16, 24), np.uint8)),
    (spaces.Box(0, 255, (16, 24, 1), np.uint8), spaces.Box(0, 255, (1, 16, 24), np.uint8)),
    (spaces.Box(0, 255, (2, 16, 24, 3), np.uint8), spaces.Box(0, 255, (6, 16, 24), np.uint8)),
    (spaces.Box(0, 255, (16, 24), np.uint8), spaces.Box(0, 255, (1, 16, 24), np.uint8)),
    (spaces.Box(0, 255, (3, 16, 24), np.uint8), spaces.Box(0, 255, (3, 16, 24), np.uint8)),
    (spaces.Box(0, 1, (16, 24, 3)), spaces.Box(0, 1, (3, 16, 24))),
    (spaces.Box(0, 255, (7, 7, 3), np.uint8), spaces.Box(0, 255, (7, 7, 3))),
    (spaces.Discrete(4), spaces.Discrete(4)),
    (spaces.MultiBinary(4), spaces.MultiBinary(4)),
]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("own", "seen"), SHOWN, ids=str)
def test_agents_see_float32_and_channels_first(own, seen):
    space, convert = agent_observations(own)
    assert space == seen
    own.seed(0)
    obs = np.stack([own.sample() for _ in range(3)])
    assert all(space.contains(row) for row in convert(obs))


def test_pixels_stay_where_they_are():
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30, 4), np.uint8)
    _, convert = agent_observations(spaces.Box(0, 255, (3, 20, 30, 4), np.uint8))
    seen = convert(image)
    assert seen[1, 2 * 4 + 1, 5, 7] == image[1, 2, 5, 7, 1]


def test_an_env_is_given_actions_of_its_own_space():
    actions = np.array([[2.6, -0.4], [-9.0, 0.1]], np.float32)
    space, convert = agent_actions(spaces.Box(-5, 5, (2,), np.int64))
    assert space == spaces.Box(-5, 5, (2,)) and convert(actions).dtype == np.int64
    assert convert(actions).tolist() == [[3, 0], [-5, 0]]
    own = spaces.Box(-0.1, 0.1, (2,), np.float64)
    space, convert = agent_actions(own)
    assert space == spaces.Box(-0.1, 0.1, (2,))
    assert convert(actions).tolist() == [[0.1, -0.1], [-0.1, 0.1]]
    # 0.1 in float32 is more than in float64.
    assert all(own.contains(row) for row in convert(space.high * [[1], [-1]]))
    assert agent_actions(spaces.Discrete(3))[1](np.array([0, 2], np.int32)).dtype == np.int64


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float64, np.float32])
def test_what_is_saved_is_what_was_played(dtype):
    def make():
        return GymEnv("Spaces-v0", 2, kwargs={"action": spaces.Box(0, 9, (1,), dtype)})

    env, again = make(), make()
    env.reset(seed=3)
    for action in torch.rand(4, 2, 1) * 11 - 1:
        env.step(action)
    again.load_state_dict(env.state_dict())
    for one, other in zip(env.envs, again.envs, strict=True):
        assert one.unwrapped.given == other.unwrapped.given and len(one.unwrapped.given) == 4
        assert {given.dtype for given in other.unwrapped.given} == {np.dtype(dtype)}
    action = torch.full((2, 1), 2.4)
    assert torch.equal(env.step(action)[0], again.step(action)[0])


class Forgetful(Base):
    """Does not pass its seed on."""

    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


gymnasium.register("Forgetful-v0", Forgetful, max_episode_steps=50)


@pytest.mark.parametrize("id", ["Base-v0", "Forgetful-v0"])
def test_nothing_depends_on_what_the_generators_were_before_the_first_seed(id):
    envs = [GymEnv(id, 2), GymEnv(id, 2)]
    for env in envs:
        env.reset(seed=3)
    for _ in range(4):
        one, other = (env.step(torch.zeros(2, dtype=torch.int64))[0] for env in envs)
        assert torch.equal(one, other) and not torch.equal(one[0], one[1])
    state, other_state = (env.state_dict() for env in envs)
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())
    again = GymEnv(id, 2)
    again.load_state_dict(state)
    actions = torch.ones(2, dtype=torch.int64)
    for _ in range(9):  # into the next episode
        assert torch.equal(envs[0].step(actions)[0], again.step(actions)[0])


def test_an_env_may_write_into_its_arrays():
    env = GymEnv("Writing-v0", 2)
    first, _ = env.reset(seed=0)
    obs = env.step(torch.full((2, 2), 0.5))[0]
    assert first.tolist() == [[1, 1, 1]] * 2 and obs.tolist() == [[2, 2, 2]] * 2
    assert env.state_dict()["actions"].tolist() == [[[0.5, 0.5]]] * 2
    for _ in range(9):
        *_, info = env.step(torch.zeros(2, 2))
    assert info["final_obs"][0, 0] == 11 and env.envs[0].unwrapped.buffer[0] == 12


def test_the_time_limit_truncates_what_has_not_terminated():
    env = GymEnv("Base-v0", 2, max_episode_steps=4)
    *_, terminated, truncated, info = play(env, 4)
    assert truncated.all() and not terminated.any() and info["_final_obs"].all()
    assert env.max_episode_steps == 4 and GymEnv("Base-v0").max_episode_steps == 50
    env = GymEnv("Base-v0", 2, max_episode_steps=10)
    *_, terminated, truncated, _ = play(env, 10)
    assert terminated.all() and not truncated.any()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reset_of_some_copies_leaves_the_others(workers):
    env = make_env(gym_node("test_gym_env:Base-v0") | {"workers": workers}, 3, "cpu")
    with pytest.raises(ValueError, match="reset_mask needs a reset of all copies before it"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    first, _ = env.reset(seed=0)
    obs = env.step(torch.zeros(3, dtype=torch.int64))[0]
    mixed, _ = env.reset(seed=0, options={"reset_mask": np.array([True, False, False])})
    assert torch.equal(mixed, torch.stack([first[0], obs[1], obs[2]]))


def test_reset_options_reach_the_env_and_are_not_saved():
    env = GymEnv("Base-v0", 2)
    env.reset(seed=0, options={"level": 3})
    assert [copy.unwrapped.options for copy in env.envs] == [{"level": 3}] * 2
    with pytest.raises(RunError, match="episodes that began with reset options cannot be saved"):
        env.state_dict()
    env.reset(seed=0)
    assert env.state_dict()["played"].tolist() == [0, 0]


def test_a_window_passes_who_began_anew():
    env = View(GymEnv("Base-v0", 2), [0, 2], 2)
    first, _ = env.reset(seed=0)
    *_, info = env.step(torch.zeros(2, dtype=torch.int64))
    assert info["_final_obs"].tolist() == [False, False] and info["final_obs"].shape == (2, 4)
    mixed, _ = env.reset(seed=0, options={"reset_mask": np.array([False, True])})
    assert torch.equal(mixed[1], first[1]) and torch.equal(mixed[0], info["final_obs"][0])


@pytest.mark.parametrize("observe", [3, [], [3], [-1], ["0"], [0.0], [True], "0", {"0": 1}])
def test_components_that_there_are_not(observe):
    told = r"env\.observe=.*: expected a list of some of the components 0 to 2, such as \[0\]"
    with pytest.raises(ConfigError, match=told):
        View(GymEnv("Base-v0"), observe, 1)
    with pytest.raises(ConfigError, match=r"env\.stack=two: expected a whole number"):
        View(GymEnv("Base-v0"), None, "two")


REFUSED = {
    "dict": (spaces.Dict({"pos": spaces.Box(-1, 1, (2,)), "door": spaces.Discrete(3)}), None),
    "tuple": (spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float64))), None),
    "multi_obs": (spaces.MultiDiscrete([2, 3]), None),
    "binary_obs": (spaces.MultiBinary(4), None),
    "start_obs": (spaces.Discrete(3, start=-1), None),
    "text": (spaces.Text(3), None),
    "start": (None, spaces.Discrete(2, start=10)),
    "multi": (None, spaces.MultiDiscrete([2, 3])),
    "multi_start": (None, spaces.MultiDiscrete([2, 3], start=[1, -1])),
    "multi_many": (None, spaces.MultiDiscrete([40, 50], start=[1, -1])),
    "binary": (None, spaces.MultiBinary(3)),
    "matrix": (None, spaces.Box(-2, 2, (2, 2))),
    "scalar": (None, spaces.Box(-2, 2, ())),
}


class Odd(Spaces):
    """Of spaces that rlx does not take."""

    def __init__(self, kind):
        super().__init__(*REFUSED[kind])


gymnasium.register("Odd-v0", Odd, max_episode_steps=50)


@pytest.mark.parametrize("kind", REFUSED)
def test_the_way_out_that_a_refusal_names_works(kind, tmp_path, monkeypatch):
    space = next(space for space in REFUSED[kind] if space is not None)
    with pytest.raises(ConfigError) as error:
        env_spec(gym_node("test_gym_env:Odd-v0", kind=kind))
    message = str(error.value)
    assert message.startswith("env.id=test_gym_env:Odd-v0: needs ")
    assert f"but they are {space}." in message
    assert "\n" not in message
    way, _, line = message.partition(" with a file mine.py of the line: ")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(line)
    id = way.rpartition("env.id=")[2]
    try:
        spec = env_spec(gym_node(id, kind=kind))
        assert spec.max_episode_steps == 50
        env = make_env(gym_node(id, kind=kind), 2, "cpu")
        env.reset(seed=0)
        spec.action_space.seed(0)
        for _ in range(12):  # Base itself refuses actions that are not in its space
            env.step(np.stack([spec.action_space.sample() for _ in range(2)]))
    finally:
        gymnasium.registry.pop("Wrapped-v0", None)
        sys.modules.pop("mine", None)


def test_unbounded_actions_need_bounds():
    node = gym_node("Spaces-v0", action=spaces.Box(-np.inf, 1, (1,)))
    told = r"bounded Box actions of one axis, but .*TransformAction.*Box\(low, high, \(1,\)\)"
    with pytest.raises(ConfigError, match=told):
        env_spec(node)
    with pytest.raises(ConfigError, match=r"bounded Box actions of one axis"):
        env_spec(gym_node("Spaces-v0", action=spaces.Box(-np.inf, np.inf, (1,), np.int64)))


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_a_run_of_any_actions_resumed_is_the_run_uninterrupted(rlx, dtype, monkeypatch):
    space = spaces.Box(-5, 5, (2,), dtype)
    monkeypatch.setitem(gymnasium.registry["Spaces-v0"].kwargs, "action", space)
    arguments = ["train", "agent=ppo", "env=gym", "env.id=Spaces-v0", "seeds=2", *TINY]
    arguments += small("ppo")
    arguments += ["steps=246", "eval_every=123", "checkpoint_every=123"]  # in the midst of episodes
    whole, shorter = rlx(*arguments), rlx(*arguments, "steps=123")
    assert rlx("resume", shorter.run, "steps=246").code == 0
    assert fingerprint(shorter.run) == fingerprint(whole.run)


def test_some_games_of_atari_begin_anew():
    pytest.importorskip("ale_py")
    env = make_env(compose("train", "env=atari", "env.game=freeway").env, 2, "cpu")
    first, _ = env.reset(seed=0)
    for _ in range(30):
        obs, *_, info = env.step(torch.tensor([1, 1]))
    mixed, _ = env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    assert not torch.equal(first, obs) and torch.equal(mixed, torch.stack([first[0], obs[1]]))
    assert info["_final_obs"].tolist() == [False, False]


def train(rlx, agent, kwargs):
    """A short run in Spaces-v0."""
    short = ("steps=240", "eval_every=120", "eval_episodes=2", "final_episodes=2", "num_envs=2")
    env = ("env=gym", "env.id=Now-v0", "seeds=2")
    gymnasium.register("Now-v0", Spaces, max_episode_steps=50, kwargs=kwargs)
    try:
        result = rlx("train", f"agent={agent}", *env, *short, *small(agent))
    finally:
        gymnasium.registry.pop("Now-v0")
    assert result.code == 0, result.err
    assert "nothing was learnt" not in result.out
    return result


@pytest.mark.parametrize(
    ("agent", "kwargs"),
    [
        ("dqn", {"obs": spaces.Box(-1, 1, ())}),
        ("ppo", {"obs": spaces.Box(-1, 1, ())}),
        ("actenv", {"obs": spaces.Box(-5, 5, (3,), np.int64)}),
        ("dqn", {"obs": spaces.Box(0, 255, (4,), np.uint8)}),
        ("ppo", {"action": spaces.Box(-5, 5, (2,), np.int64)}),
        ("preferences", {"action": spaces.Box(-1, 1, (2,), np.float64)}),
        ("hdqn", {"obs": spaces.Box(-1, 1, (3,), np.float64)}),
    ],
    ids=str,
)
def test_agents_learn_from_any_box(rlx, agent, kwargs):
    train(rlx, agent, kwargs)


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_channel_last_images_reach_the_convolutions(rlx, agent):
    result = train(rlx, agent, {"obs": spaces.Box(0, 255, (32, 40, 3), np.uint8)})
    weights = load_file(sorted(result.run.glob("checkpoints/*/agent.safetensors"))[-1])
    shapes = [tuple(value.shape) for value in weights.values() if value.dim() == 5]
    assert shapes and all(shape[2] % 3 == 0 and shape[3:] == (8, 8) for shape in shapes)


def test_car_racing_is_seen_channels_first():
    node = compose("train", "env=gym", "env.id=CarRacing-v3", "+env.kwargs.continuous=false").env
    assert env_spec(node).observation_space == spaces.Box(0, 255, (3, 96, 96), np.uint8)
