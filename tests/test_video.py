"""Videos: envs that draw their states, and episodes with all that was decided in them."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, compose, small
from gymnasium.utils.env_checker import check_env
from PIL import Image

from rlx.conf import conf_dir
from rlx.envs.acrobot import Acrobot
from rlx.envs.batched import BatchedEnv, Dynamics
from rlx.envs.cartpole import CartPole
from rlx.envs.catch import Catch
from rlx.envs.chain import Chain
from rlx.envs.connect_four import ConnectFour
from rlx.envs.drawing import BLACK, BLUE, BROWN, GREEN, RED, WHITE, YELLOW, Canvas
from rlx.envs.maze import Maze
from rlx.envs.mini_breakout import MiniBreakout
from rlx.envs.mountain_car import MountainCar
from rlx.envs.pendulum import Pendulum
from rlx.envs.tabular import Tabular
from rlx.envs.tic_tac_toe import TicTacToe
from rlx.envs.view import View
from rlx.experiment import make_env
from rlx.show import video
from rlx.show.video import FLIPPED, Decision, Film

BATCHED = [
    path.stem
    for path in sorted(Path(conf_dir(), "env").glob("*.yaml"))
    if path.stem not in ("attacked", "atari", "breakout", "pong", "dmc", "dmc_state", "gym")
    and path.stem not in ("car_racing", "lunar_lander")
]


@dataclass(frozen=True)
class Unseen(CartPole):
    """An env of a user's own that draws no images."""

    render = Dynamics.render


def place(image, colour, near=12):
    """The mean (row, column) of the pixels of a colour, as shares of the image; they must exist."""
    found = (np.abs(np.asarray(image).astype(int) - colour) <= near).all(-1)
    assert found.any(), f"no pixel is {colour}"
    rows, columns = found.nonzero()
    return rows.mean() / len(found), columns.mean() / found.shape[1]


def drawn(dynamics, *states):
    """The images of some states."""
    return dynamics.render(torch.tensor(states)).numpy()


def cell(image, row, column, rows, columns):
    """The colour in the middle of a cell of a board."""
    height, width, _ = image.shape
    at = (int((row + 0.5) * height / rows), int((column + 0.5) * width / columns))
    return tuple(image[at].tolist())


def test_shapes_cover_what_they_should():
    canvas = Canvas(2, (0, 10), (0, 5), torch.device("cpu"), columns=100)
    canvas.rectangle((torch.tensor([2.0, 8.0]), 1.0), 2, 2, BLACK)
    canvas.line((1.0, 4.0), (9.0, 4.0), 0.4, RED)
    canvas.disc((5.0, 2.5), 0.5, BLUE)
    images = canvas.images().numpy()
    assert images.shape == (2, 50, 100, 3) and images.dtype == np.uint8
    for image, left in zip(images, (10, 70), strict=True):
        assert (image[30:50, left : left + 20] == BLACK).all()
        assert (image == BLACK).all(-1).sum() == 400
        assert place(image, RED) == pytest.approx((0.2, 0.5), abs=0.02)
        assert (image == BLUE).all(-1).sum() == pytest.approx(math.pi * 25, rel=0.25)
        assert (image[15] == WHITE).all()


def test_poles_lean_where_they_should():
    left, right, far = drawn(CartPole(), [0, 0, -0.2, 0], [0, 0, 0.2, 0], [2.0, 0, 0.0, 0])
    assert place(left, BROWN)[1] < 0.49 and place(right, BROWN)[1] > 0.51
    assert place(left, BLACK)[1] == pytest.approx(0.5, abs=0.01)
    assert place(far, BLACK)[1] == pytest.approx(0.5 + 2 / 5.2, abs=0.01)
    up, aside = drawn(Pendulum(), [0.0, 0.0], [math.pi / 2, 0.0])
    assert place(up, RED)[0] < 0.4 and place(aside, RED)[1] < 0.4
    hanging, standing, bent = drawn(
        Acrobot(), [0.0, 0, 0, 0], [math.pi, 0, 0, 0], [math.pi / 2, math.pi / 2, 0, 0]
    )
    assert place(hanging, GREEN)[0] > 0.75 and place(standing, GREEN)[0] < 0.25
    row, column = place(bent, GREEN)  # the lower link stands at the end of the upper one
    assert row < 0.45 and column > 0.7


def test_as_gymnasium_draws_them():
    """Pole, car and pendulum are in the same places, but for the extent that is shown."""
    for name, dynamics, state, ours, theirs in (
        ("CartPole-v1", CartPole(), [1.0, 0.0, 0.3, 0.0], BROWN, (202, 152, 101)),
        ("Pendulum-v1", Pendulum(), [0.7, 0.0], RED, (204, 77, 77)),
    ):
        env = gymnasium.make(name, render_mode="rgb_array").unwrapped
        env.reset(seed=0)
        env.state = np.array(state)
        env.last_u = None
        row, column = place(drawn(dynamics, state)[0], ours)
        expected_row, expected_column = place(env.render(), theirs)
        assert (column > 0.5) == (expected_column > 0.5)
        assert (row > 0.5) == (expected_row > 0.5) or name == "CartPole-v1"


def test_the_car_is_on_the_hill():
    valley, top = drawn(MountainCar(), [-0.5, 0.0], [0.45, 0.0])
    low, high = place(valley, BLUE), place(top, BLUE)
    assert low[1] == pytest.approx((1.25 - 0.5) / 1.9, abs=0.03)
    assert high[1] > 0.8 and high[0] < low[0] - 0.3


def test_boards():
    image = drawn(Catch(), [3, 4, 1])[0]
    assert cell(image, 3, 4, 10, 5) == RED and cell(image, 9, 1, 10, 5) == BLACK
    assert cell(image, 5, 0, 10, 5) == WHITE
    image = drawn(Maze(), [9 * 2 + 1])[0]
    assert cell(image, 2, 1, 7, 9) == BLUE and cell(image, 0, 0, 7, 9) == BLACK
    assert cell(image, 5, 7, 7, 9) == GREEN and cell(image, 3, 4, 7, 9) == WHITE
    before, after = drawn(Chain(), [2, 0], [2, 1])
    assert cell(before, 0, 2, 1, 6) == cell(after, 0, 2, 1, 6) == BLUE
    assert cell(before, 0, 5, 1, 6) != YELLOW and cell(after, 0, 5, 1, 6) == YELLOW
    bricks = [1] * 30
    bricks[12] = 0
    image = drawn(MiniBreakout(), [6, 3, 1, 1, 5, 2, 8, 0, *bricks])[0]
    assert cell(image, 6, 3, 10, 10) == BLUE and cell(image, 9, 8, 10, 10) == BLACK
    assert cell(image, 2, 2, 10, 10) == WHITE and cell(image, 2, 3, 10, 10) == YELLOW
    assert cell(image, 5, 2, 10, 10) not in (WHITE, BLUE)  # where the ball was


def test_stones_keep_their_colours_whoever_moves():
    game = TicTacToe("self")
    state = torch.zeros(1, 2, dtype=torch.int64)
    for action, expected in ((0, BLUE), (4, RED), (8, BLUE), (2, RED)):
        state, _, _ = game.move(state, torch.tensor([action]))
        image = game.render(state)[0].numpy()
        assert cell(image, action // 3, action % 3, 3, 3) == expected
        assert cell(image, 0, 0, 3, 3) == BLUE
    game = ConnectFour("random")
    state, _, _ = game.move(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([3]))
    image = game.render(state.flip(-1))[0].numpy()
    assert cell(image, 5, 3, 6, 7) == BLUE and cell(image, 4, 3, 6, 7) == WHITE


def test_tables_are_drawn_by_gymnasium():
    env = gymnasium.make("FrozenLake-v1", render_mode="rgb_array")
    env.reset(seed=0)
    images = drawn(Tabular("FrozenLake-v1", None), [0], [6])
    assert (images[0] == env.render()).all() and (images[0] != images[1]).any()


@pytest.mark.parametrize("name", BATCHED)
def test_every_env_draws_each_copy_as_if_it_were_alone(name):
    env = make_env(compose("train", f"env={name}", "agent=dqn", "tuned=none").env, 3, "cpu")
    inner = getattr(env, "env", env)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        env.step(torch.from_numpy(env.action_space.sample()))
    images = inner.render()
    height, width, channels = images[0].shape
    assert len(images) == 3 and channels == 3 and 50 <= height <= 600 and 150 <= width <= 800
    assert all(image.dtype == np.uint8 for image in images)
    alone = inner.dynamics.render(inner.state[1:2])[0].numpy()
    if inner.drift is None:
        assert np.abs(alone.astype(int) - images[1]).max() <= 1
    assert inner.metadata["render_fps"] == inner.dynamics.render_fps > 0


def test_gymnasium_takes_the_images():
    env = gymnasium.make("rlx/Catch-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (320, 160, 3) and env.unwrapped.metadata["render_fps"] == 5
    assert gymnasium.make("rlx/Catch-v0").unwrapped.render() is None
    with pytest.raises(TypeError, match="expected 'rgb_array'"):
        BatchedEnv(CartPole(), render_mode="ansi")


def frames(file):
    """The frames of a GIF, uint8 [T, H, W, 3], and the seconds that each is shown."""
    images = []
    seconds = []
    with Image.open(file) as gif:
        for number in range(gif.n_frames):
            gif.seek(number)
            images.append(np.asarray(gif.convert("RGB")))
            seconds.append(gif.info["duration"] / 1000)
    return np.stack(images), np.array(seconds)


def is_marked(image):
    """Whether a frame shows that a decision was flipped."""
    red = np.abs(image.astype(int) - FLIPPED).max(-1) < 40
    return bool((red.mean(0) > 0.25).any())  # a line from top to bottom of the image


class Still(torch.nn.Module):
    """A policy that leaves the paddle where it is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def initial_carry(self, batch):
        return {}

    def act(self, obs, first, carry, choose):
        return torch.ones(1, 1, dtype=torch.int64), carry


@pytest.mark.parametrize("stacked", [False, True])
def test_the_last_image_is_where_the_last_step_has_led(stacked):
    env = BatchedEnv(Catch())
    camera = video.Camera(View(env, None, 2) if stacked else env)
    for episode in range(3):
        film = Film("catch")
        camera.play(film, Still(), episode, film.greedy)
        assert len(film.images) == 10 and len(film.rewards) == len(film.decisions) == 9
        for step in range(10):
            assert place(film.image(step), RED)[0] == pytest.approx((step + 0.5) / 10, abs=0.01)
        caught = place(film.image(-1), RED)[1] == pytest.approx(0.5, abs=0.01)
        assert film.rewards == [0.0] * 8 + [1.0 if caught else -1.0]


@pytest.fixture
def no_pyav(monkeypatch):
    """As where the extra is missing."""
    monkeypatch.setitem(sys.modules, "av", None)


def test_a_greedy_episode(tiny_runs, rlx, no_pyav):
    result = rlx("evaluate", tiny_runs / "train/dqn-cartpole", "episodes=3", "video=true")
    assert result.code == 0, result.err
    images, seconds = frames(result.run / "video.gif")
    returns = np.load(result.run / "returns.npz")["returns"]
    assert len(images) == returns[0, 0] + 1  # CartPole's return is its length
    assert (seconds == 0.02).all()
    assert not any(map(is_marked, images))
    assert (images[0] != images[-1]).any()
    assert json.loads((result.run / "summary.json").read_text())["status"] == "completed"
    chosen = rlx(
        "evaluate",
        tiny_runs / "train/dqn-cartpole",
        "episodes=3",
        "video=true",
        "video_seeds=[1]",
        "video_episodes=[0,2]",
    )
    images, _ = frames(chosen.run / "video.gif")
    assert len(images) == max(returns[1, 0], returns[1, 2]) + 1
    assert images.shape[2] > 800  # two beside each other


def test_a_video_of_pyav_has_the_same_frames(tiny_runs, rlx):
    av = pytest.importorskip("av")
    result = rlx("evaluate", tiny_runs / "train/dqn-cartpole", "episodes=1", "video=true")
    assert result.code == 0, result.err
    returns = np.load(result.run / "returns.npz")["returns"]
    with av.open(str(result.run / "video.mp4")) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        assert count == returns[0, 0] + 1 and stream.average_rate == 50
    assert (result.run / "video.mp4").stat().st_size < 2000 * count


@pytest.mark.parametrize("attack", ["pgd", "noise"])
def test_flips_are_marked_where_they_happen(attack, tiny_runs, rlx, no_pyav):
    result = rlx(
        "attack",
        min((tiny_runs / "train/hdqn-acrobot").iterdir()),
        f"attack={attack}",
        "modes=action",
        "seeds=1",
        "eps=[0.5]",
        "episodes=1",
        "video=true",
    )
    assert result.code == 0, result.err
    images, _ = frames(result.run / "video.gif")
    half = images.shape[2] // 2
    clean, attacked = images[:, :, :half], images[:, :, half:]
    (attacked_cell,) = result.summary["cells"]
    assert len(attacked) == 101  # the action decides at every step, and nobody swings it up
    flips = attacked_cell["flip_rate"] * 100
    assert flips > 0 and sum(map(is_marked, attacked)) == round(flips)
    assert not any(map(is_marked, clean))


def test_the_mark_is_at_the_flipped_steps(tmp_path, no_pyav):
    films = []
    flipped = {2, 3, 7}
    for number in range(2):
        film = Film("clean" if number == 0 else "attacked")
        obs = np.zeros(2, np.float32)
        for step in range(12):
            is_flipped = number == 1 and step in flipped
            shown = obs + number
            decision = Decision(obs, shown, np.array(1), np.array(0), is_flipped)
            film.decisions.append({"action": decision})
            film.rewards.append(1.0)
        for _ in range(13):
            film.add(np.full((120, 200, 3), 255, np.uint8))
        films.append(film)
    camera = video.Camera(BatchedEnv(MountainCar()))
    file = video.save(camera, films, tmp_path, group=2)
    images, seconds = frames(file)
    half = images.shape[2] // 2
    assert {step for step, image in enumerate(images) if is_marked(image[:, half:])} == flipped
    assert not any(is_marked(image[:, :half]) for image in images)
    # 30 images a second are not whole hundredths of a second each, but they are on average.
    assert seconds.sum() == pytest.approx(13 / 30, abs=0.01)


SEARCH = ("effort=quick", "effort.rounds=1", "effort.learning_episodes=2", "effort.updates=2")
LEARN = (
    "effort.adversary_steps=400",
    "effort.restarts=2",
    "attack.selection_episodes=1",
    "attack.adversary_envs=8",
)


@pytest.mark.parametrize(
    "keys",
    [
        ("attack=fgsm", "modes=goal", "episodes=2", "video_episodes=2"),
        ("attack=learned", "modes=goal", "episodes=2", "video_episodes=2", *LEARN),
        ("attack=auto", "episodes=1", "effort.trial_episodes=1", *SEARCH),
    ],
    ids=lambda keys: keys[0],
)
def test_a_film_is_of_the_episodes_of_the_study(keys, rlx, monkeypatch):
    """The same return, as many flips, and what was shown lies in the box."""
    films = []
    monkeypatch.setattr(video, "save", lambda camera, made, path, group: films.extend(made))
    line = ("zoo:hdqn-acrobot", "seeds=[3,5]", "eps=[0,0.02]")
    result = rlx("attack", *line, "video=true", "video_seeds=[3,5]", *keys)
    assert result.code == 0 and "in the study" not in result.out, result
    cell = result.summary["cells"][1]
    returns = np.load(result.run / "returns.npz")[cell["head"]]
    clean, attacked = films[::2], films[1::2]
    assert [sum(film.rewards) for film in clean] == returns[:, 0].flatten().tolist()
    assert [sum(film.rewards) for film in attacked] == returns[:, 1].flatten().tolist()
    assert attacked[-1].title.startswith(f"seed 5, episode {len(attacked) // 2 - 1}: ")
    assert returns[:, 1].mean() < returns[:, 0].mean()
    if keys[0] == "attack=auto":
        assert any("planned" in film.title for film in attacked)
    steps = [step for film in attacked for step in film.decisions]
    radius = cell["eps"] * np.array(result.summary["scale"])
    for head, rate in cell["flip_rate_per_head"].items():
        decisions = [step[head] for step in steps if head in step]
        assert rate == pytest.approx(np.mean([decision.flipped for decision in decisions]))
        moved = np.array([decision.shown - decision.obs for decision in decisions])
        assert (np.abs(moved) <= radius * 1.001 + 1e-6).all()
        assert all((one.shown != one.obs).any() for one in decisions if one.flipped)


def test_hierarchical_agents_and_the_same_start(tiny_runs, rlx, no_pyav):
    run = min((tiny_runs / "train/hdqn-acrobot").iterdir())
    line = ("attack=fgsm", "eps=[0,0.05,0.1]", "episodes=2", "video=true", "video_episodes=[1]")
    result = rlx("attack", run, *line, "video_eps=0.05", "modes=goal")
    assert result.code == 0, result.err
    images, seconds = frames(result.run / "video.gif")
    half = images.shape[2] // 2
    colours = (np.abs(images[0].astype(int) - GREEN) < 12).all(-1)
    assert (colours[:, :half] == colours[:, half:]).all() and colours.any()
    assert seconds.sum() == pytest.approx(len(images) / 15, abs=0.01)


def test_envs_of_gymnasium_are_drawn_by_themselves(rlx, no_pyav):
    line = ("env=gym", "env.id=CartPole-v1", "env.max_episode_steps=20")
    run = rlx("train", "agent=dqn", *line, "seeds=1", *TINY, *small("dqn"))
    result = rlx("evaluate", run.run, "episodes=1", "video=true")
    assert result.code == 0, result.err
    images, _ = frames(result.run / "video.gif")
    assert len(images) == np.load(result.run / "returns.npz")["returns"][0, 0] + 1
    assert images.shape[1] > 400 and images.shape[2] >= 600


def test_what_cannot_be_filmed_is_said_before_anything_is_written(tiny_runs, rlx):
    run = tiny_runs / "train/dqn-cartpole"
    for line, message in (
        (("evaluate", "video_seeds=[7]"), "video_seeds=[7]: 7 is not played; of 0–1."),
        (("evaluate", "video_episodes=[3]"), "video_episodes=[3]: 3 is not played; of 0 to 2"),
        (("evaluate", "video_episodes=x"), "video_episodes=x: 'x' is not a count"),
        (("evaluate", "video_episodes=0"), "video_episodes=0: expected at least one"),
        (("attack", "scale=std", "eps=[0,.1]", "video_eps=.2"), "=0.2: is not played; of 0, 0.1."),
        (("attack", "scale=std", "video_eps=-1"), "video_eps=-1: must be at least 0"),
    ):
        command, *keys = line
        result = rlx(command, run, "episodes=3", "video=true", *keys)
        assert result.code == 2 and message in result.err, result.err
        assert len(result.err.strip().splitlines()) == 1 and not Path("outputs").exists()
    result = rlx("evaluate", run, "episodes=3", "video_seeds=[1]")
    assert result.code == 2 and "video_seeds=[1]: is of a video; add video=true" in result.err
    result = rlx("evaluate", run, "episodes=37", "video=true", "video_episodes=37")
    assert result.code == 2 and "at most 36" in result.err


def test_an_env_that_draws_nothing(rlx, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    line = ("agent=dqn", "env=cartpole", "env._target_=test_video.Unseen", "seeds=1")
    run = rlx("train", *line, *TINY, *small("dqn"))
    assert run.code == 0, run.err
    result = rlx("evaluate", run.run, "episodes=1", "video=true")
    assert result.code == 2 and not Path("outputs/evaluate").exists()
    assert result.err == "rlx: video: Unseen draws no images: it has no `render`.\n"


def test_of_a_stack_the_newest_observation_is_written(rlx, no_pyav):
    line = ("agent=dqn", "env=cartpole", "env.stack=3", "seeds=1")
    run = rlx("train", *line, *TINY, *small("dqn"))
    assert run.code == 0, run.err
    attacked = rlx(
        "attack", run.run, "attack=fgsm", "scale=std", "eps=[0.5]", "episodes=1", "video=true"
    )
    assert attacked.code == 0, attacked.err
    images, _ = frames(attacked.run / "video.gif")
    # The attacked episode has four rows of numbers below it, the clean one none.
    half = images.shape[2] // 2
    rows = (images[0][-80:, half:] < 100).all(-1).any(1)
    assert rows.any() and not (images[0][-80:, :half] < 100).all(-1).any()


@pytest.mark.parametrize("name", BATCHED)
def test_nothing_is_drawn_on_another_device_than_the_state_is(name):
    """A meta tensor, as one of a GPU, cannot be mixed with others."""
    node = compose("train", f"env={name}", "agent=dqn", "tuned=none").env
    env = make_env(node, 2, "cpu")
    env.reset(seed=0)
    inner = getattr(env, "env", env)
    if isinstance(inner.dynamics, Tabular):
        return  # drawn by Gymnasium
    images = inner.dynamics.render(inner.state.to("meta"))
    assert images.shape == torch.stack([torch.from_numpy(i) for i in inner.render()]).shape
